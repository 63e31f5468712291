"""A comparison whose process is killed goes on where it was."""

import os
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest
import yaml

CONFIG = {
    "balancers": [],
    "resamplers": [],
    "seeds": 2,
    "tuning": {"configurations": 3, "several": 2},
    "base": {"batch_size": 64, "max_steps": 200},
    "data": {"digits": {"source": "digits", "options": {"test_seed": 0}}},
    "jobs": 2,
}


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_comparison_repeats_nothing_and_ends_whole(tmp_path, number):
    out = tmp_path / "out"
    (tmp_path / "compare.yaml").write_text(yaml.safe_dump({**CONFIG, "out": str(out)}))
    command = [sys.executable, "-m", "equipoise.cli", "compare", str(tmp_path / "compare.yaml")]
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    first = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    deadline = time.monotonic() + 120
    while len(list(out.glob("runs/*/*/*.json"))) < 7:
        assert first.poll() is None, first.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    first.send_signal(number)
    said = first.communicate(timeout=60)[1]
    if number == signal.SIGINT:
        assert first.returncode == 130, said
        assert "Stopped; what is made is kept. To go on:" in said
    time.sleep(5)  # a task that outlived its driver by a moment may still write
    there = {path: path.stat().st_mtime_ns for path in out.glob("runs/*/*/*.json")}
    assert not (out / "runs.parquet").exists()
    subprocess.run(command, check=True, capture_output=True, env=environment)
    for path, stamp in there.items():
        assert path.stat().st_mtime_ns == stamp
    runs = pd.read_parquet(out / "runs.parquet")
    assert set(runs["status"]) == {"done"}
    # Six controls, two of which resample.
    assert runs.groupby("phase").size().to_dict() == {"tune": 4 * 3 + 2 * 2, "steps": 12, "time": 12}
