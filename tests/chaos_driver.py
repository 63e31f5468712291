"""A driver process that can be killed: `python chaos_driver.py FAULTS CONFIG`, with a Ray of its own."""

import json
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

from digits_runs import start_cluster  # noqa: E402

import equipoise  # noqa: E402

if __name__ == "__main__":
    faults, config = sys.argv[1:]
    start_cluster(Path(faults))
    equipoise.fit(json.loads(Path(config).read_text()))
