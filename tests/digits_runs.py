"""Runs of digits under Ray for the tests: their configuration, how two are compared, how one is disturbed."""

import json
import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import torch

HERE = Path(__file__).parent

CONFIG = {
    "balancer": "joint",
    "resampler": {"name": "sample", "options": {"warmup": 1}},
    "workers": 2,
    "actors": 2,
    "batch_size": 50,
    "max_epochs": 3,
    "seed": 5,
    "checkpoint": {"every_steps": 10},
}


def start_cluster(faults: Path) -> None:
    """A Ray of six logical CPUs whose worker processes look for the fault flags in a folder."""
    import ray

    ray.init(
        "local",
        num_cpus=6,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        runtime_env={
            "env_vars": {
                # This checkout, whichever one is installed.
                "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parent)]),
                "EQUIPOISE_TEST_FAULTS": str(faults),
                "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
            },
            "worker_process_setup_hook": "ray_faults.install",
        },
    )


def weights(run, position=None):
    """The weights of a checkpoint, the newest by default."""
    folder = run.checkpoints.folder / str(position or run.checkpoints.positions()[-1])
    return torch.load(folder / "model.pt", weights_only=True)


def assert_same_run(run, plain):
    """Bit-equal in all but times: parameters, optimiser, metrics, steps, stores and plans."""
    position = plain.checkpoints.positions()[-1]
    assert run.checkpoints.positions()[-1] == position
    for name, tensor in weights(plain).items():
        assert torch.equal(tensor, weights(run)[name]), name
    ours, theirs = (r.checkpoints.load(position)[1] for r in (run, plain))
    assert repr(ours["optimizer"]) == repr(theirs["optimizer"])
    for name in ("best", "stopping", "entries", "step", "schedule"):
        assert ours[name] == theirs[name], name
    for table in ("metrics", "steps"):
        ours, theirs = getattr(run, table), getattr(plain, table)
        columns = [c for c in theirs.columns if not c.startswith("seconds/")]
        assert ours[columns].equals(theirs[columns]), table
    for split in ("train", "validation"):
        assert run.epochs(split) == plain.epochs(split)
        for epoch in plain.epochs(split):
            assert run.values(split, epoch).equals(plain.values(split, epoch)), (split, epoch)
    plans = sorted(path.name for path in (plain.path / "plans").iterdir())
    assert sorted(path.name for path in (run.path / "plans").iterdir()) == plans
    for name in plans:
        assert (np.load(run.path / "plans" / name) == np.load(plain.path / "plans" / name)).all(), name


def kill_when(run: Path, name: str, ready) -> threading.Thread:
    """kill -9 one Ray process of this test whose title starts with `name`, once `ready(progress)`."""

    def watch():
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            try:
                progress = json.loads((run / "progress.json").read_text())
            except (FileNotFoundError, json.JSONDecodeError):
                progress = None
            if progress and ready(progress):
                found = [p for p in psutil.Process().children(recursive=True) if name in "".join(p.cmdline())[:60]]
                if found:
                    found[0].send_signal(signal.SIGKILL)
                    killed.append(found[0].pid)
                    return
            time.sleep(0.02)

    killed: list[int] = []
    thread = threading.Thread(target=watch, daemon=True)
    thread.killed = killed  # type: ignore[attr-defined]
    thread.start()
    return thread
