import os
import sys
from pathlib import Path

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
sys.path.insert(0, str(Path(__file__).parent))

import pytest
from gloo_pool import GlooPool


@pytest.fixture(scope="session")
def gloo():
    pool = GlooPool()
    yield pool
    pool.close()
