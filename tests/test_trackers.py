"""Trackers hold what the Parquet files hold, whatever was killed and when; read by other readers than ours."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tracked import in_mlflow, in_parquet, in_tensorboard, in_wandb

from equipoise import EquipoiseError, Run
from equipoise.pipelines.config import Config
from equipoise.pipelines.history import History
from equipoise.pipelines.trackers import check_tracker, tracker_for

HERE = Path(__file__).parent
ENVIRONMENT = {"PYTHONPATH": str(HERE.parent), "WANDB_MODE": "offline", "OMP_NUM_THREADS": "1"}


def attempts(folder: Path, tracker: str, *words: str) -> Path:
    command = [sys.executable, str(HERE / "tracker_attempts.py"), str(folder / "run"), tracker, *words]
    done = subprocess.run(command, env={**os.environ, **ENVIRONMENT}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder / "run"


def test_tensorboard_after_kills_holds_each_number_once(tmp_path):
    run = attempts(tmp_path, "tensorboard")
    assert in_tensorboard(run) == in_parquet(run, np.float32)
    assert len(list((run / "tensorboard").iterdir())) > 3  # the attempts did write


def test_mlflow_after_kills_holds_each_number_once(tmp_path):
    pytest.importorskip("mlflow", reason="mlflow is not installed: pip install 'equipoise[mlflow]'")
    run = attempts(tmp_path, "mlflow")
    # MLflow stores infinity as the largest number.
    assert in_mlflow(run) == in_parquet(run, lambda v: min(v, sys.float_info.max))


def test_wandb_after_kills_holds_each_number_once(tmp_path):
    pytest.importorskip("wandb", reason="wandb is not installed: pip install 'equipoise[wandb]'")
    run = attempts(tmp_path, "wandb")
    assert in_wandb(run) == in_parquet(run)


def small(tmp_path: Path, tracker: str) -> tuple[Run, list[dict], list[dict]]:
    """A run's folder with its rows, three steps and an epoch."""
    run = Run(tmp_path, Config(data="nowhere", out=str(tmp_path), max_steps=3, tracker=tracker))
    steps, metrics = History(tmp_path / "steps.parquet"), History(tmp_path / "metrics.parquet")
    steps.rows = [{"step": i, "loss": 1 / (i + 1), "gradient_norm": float(i)} for i in range(3)]
    metrics.append({"epoch": 0, "step": 3, "validation/accuracy": 0.5})
    steps.write()
    metrics.write()
    return run, steps.rows, metrics.rows


def test_an_event_file_cut_anywhere_is_mended(tmp_path):
    run, steps, metrics = small(tmp_path, "tensorboard")
    tracker_for(run).start(steps, metrics)
    [path] = (tmp_path / "tensorboard").iterdir()
    whole, expected = path.read_bytes(), in_parquet(tmp_path, np.float32)
    assert in_tensorboard(tmp_path) == expected
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        tracker_for(run).start(steps, metrics)
        assert in_tensorboard(tmp_path) == expected, length
        for later in set((tmp_path / "tensorboard").iterdir()) - {path}:
            later.unlink()


def test_a_tracker_that_forgets_is_caught(tmp_path):
    run, steps, metrics = small(tmp_path, "tensorboard")
    for attempt in range(2):
        tracker = tracker_for(run)
        if attempt:
            tracker.held = dict  # the planted fault: it asks nobody what is there
        tracker.start(steps, metrics)
    assert in_tensorboard(tmp_path) - in_parquet(tmp_path, np.float32) == in_parquet(tmp_path, np.float32)


def test_a_tracker_that_fails_gets_the_rows_later(tmp_path):
    run, steps, metrics = small(tmp_path, "tensorboard")
    tracker = tracker_for(run)
    tracker.start(steps[:1], [])
    folder = tmp_path / "tensorboard"
    away, expected = tmp_path / "away", in_parquet(tmp_path, np.float32)
    folder.rename(away)
    folder.write_text("in the way")
    tracker._there = None  # as after an error of the disk
    tracker.log(steps[:2], [])
    with pytest.raises(
        EquipoiseError, match=r"^tracker=tensorboard did not take the rows of .*run the same command again"
    ):
        tracker.close()
    folder.unlink()
    away.rename(folder)
    tracker.log(steps, metrics)
    tracker.close()
    assert in_tensorboard(tmp_path) == expected


def test_no_tracker_takes_everything_and_writes_nothing(tmp_path):
    run, steps, metrics = small(tmp_path, "none")
    before = sorted(tmp_path.rglob("*"))
    tracker = tracker_for(run)
    tracker.start(steps, metrics)
    tracker.close()
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(("name", "package"), [("mlflow", "sqlalchemy"), ("mlflow", "mlflow"), ("wandb", "wandb")])
def test_a_missing_package_is_a_sentence(monkeypatch, name, package):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    present = "mlflow" if package == "sqlalchemy" else None
    if present:
        pytest.importorskip(present, reason="mlflow is not installed: pip install 'equipoise[mlflow]'")
    monkeypatch.setitem(sys.modules, package, None)  # as Python marks what cannot be imported
    with pytest.raises(
        EquipoiseError, match=rf"tracker={name} needs the package '{package}'.*pip install 'equipoise\[{name}\]'"
    ):
        check_tracker(name)


def test_an_mlflow_server_out_of_reach_is_a_sentence_before_training(monkeypatch, tmp_path):
    pytest.importorskip("mlflow", reason="mlflow is not installed: pip install 'equipoise[mlflow]'")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    run, _, _ = small(tmp_path, "mlflow")
    with pytest.raises(EquipoiseError, match=r"tracker=mlflow did not take .*127\.0\.0\.1.*No row is lost"):
        tracker_for(run).start([], [])
