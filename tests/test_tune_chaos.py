"""A search whose trial process and whose driver are killed, and a winner trained again by `fit`: minutes, so slow."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import psutil
import pytest
import yaml

import equipoise
from equipoise import EquipoiseError
from equipoise.pipelines.tuning.records import Records
from equipoise.pipelines.tuning.trials import row_of
from equipoise.pipelines.tuning.tune import tune

pytestmark = [pytest.mark.ray, pytest.mark.slow]

LIGHT, TRAIN = 8, 3
# One learning rate learns and the other does not: early stopping has something to stop, light trials and whole runs alike.
SPACE = {"optimizer.lr": {"choice": [3e-3, 1e-7]}, "optimizer.weight_decay": {"log": [1e-4, 1e-1]}}
EXACT = ("epoch", "step", "full", "missing", "score", "loss")


class Driver:
    """`equipoise tune` in a process of its own, with a Ray of its own."""

    def __init__(self, config: Path) -> None:
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
        environment.pop("RAY_ADDRESS", None)
        self.process = psutil.Popen(
            [sys.executable, "-m", "equipoise.cli", "tune", str(config)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment,
            text=True,
        )

    def trial_process(self) -> psutil.Process | None:
        found = [p for p in self._children() if _title(p).startswith("ray::ImplicitFunc")]
        return found[0] if found else None

    def kill(self) -> None:
        # Ray's agents notice a minute late that it is gone; they hold nothing.
        children = [p for p in self._children() if "Agent" not in _title(p)]
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(30)
        _, left = psutil.wait_procs(children, timeout=60)
        assert not left, [_title(p) for p in left]

    def _children(self) -> list[psutil.Process]:
        return self.process.children(recursive=True)


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""


def records(out: Path) -> dict[int, dict]:
    return {int(p.parent.name): json.loads(p.read_text()) for p in out.glob("trials/*/record.json")}


def until(ready, driver: Driver, seconds: float = 600.0):
    deadline = time.monotonic() + seconds
    while not (found := ready()):
        assert time.monotonic() < deadline, "it never came to this"
        assert driver.process.poll() is None, driver.process.stdout.read()
        time.sleep(0.05)
    return found


def kill_a_trial(driver: Driver, out: Path) -> list[int]:
    """kill -9 a trial's process where one trains; the trials that have been begun again, none where it was between two."""
    if any(r["curve"] for r in records(out).values() if r["status"] == "running") and (found := driver.trial_process()):
        found.send_signal(signal.SIGKILL)
        time.sleep(3)
    return [n for n, r in records(out).items() if r["attempts"] == 2]


def ended(out: Path, kind: str) -> dict[Path, int]:
    """{record: when it was last written} of ended trials."""
    found = {out / "trials" / f"{n:04d}" / "record.json": r for n, r in records(out).items()}
    return {p: p.stat().st_mtime_ns for p, r in found.items() if r["kind"] == kind and r["status"] != "running"}


def test_killed_trials_and_drivers(data, tmp_path, ray_cluster):
    # The Ray of the tests runs beside that of the search, as two searches on a machine would.
    out = tmp_path / "search"
    base = {
        "data": data,
        "max_steps": 400,
        "batch_size": 50,
        "workers": 2,
        "actors": 2,
        "seed": 3,
        "optimizer": {"lr": 3e-3},
    }
    asked = {"base": base, "out": str(out), "space": SPACE, "sampler": "random", "seed": 2, "confirm": {"seeds": 1}}
    (tmp_path / "tune.yaml").write_text(yaml.safe_dump({**asked, "trials": {"light": LIGHT, "train": TRAIN}}))

    first = Driver(tmp_path / "tune.yaml")
    again = until(lambda: kill_a_trial(first, out), first)
    until(lambda: len(ended(out, "light")) >= LIGHT // 2, first)
    at_first = ended(out, "light")
    first.kill()

    second = Driver(tmp_path / "tune.yaml")
    until(lambda: any(r["curve"] for r in records(out).values() if r["kind"] == "train"), second)
    at_second = ended(out, "light")
    assert len(at_second) == LIGHT
    assert at_first.items() <= at_second.items()
    second.kill()

    last = Driver(tmp_path / "tune.yaml")
    said = last.process.communicate(timeout=900)[0]
    assert last.process.returncode == 0, said
    assert at_second.items() <= ended(out, "light").items()
    found = records(out)
    assert sorted(found) == list(range(LIGHT + TRAIN))
    assert {r["status"] for r in found.values()} <= {"done", "stopped"}, said
    assert [r["kind"] for _, r in sorted(found.items())] == ["light"] * LIGHT + ["train"] * TRAIN
    assert found[again[0]]["attempts"] >= 2
    # A run of `train` that was cut off went on in its folder, and no epoch of its curve is missing or doubled.
    for record in found.values():
        assert [row["epoch"] for row in record["curve"]] == list(range(len(record["curve"])))
    attempts = {
        n: len(list((out / "trials" / f"{n:04d}" / "run" / "ray").glob("*"))) for n in range(LIGHT, LIGHT + TRAIN)
    }
    assert max(attempts.values()) == 2
    # Early stopping by optimiser steps ended whole runs too, and what they held is back.
    stopped = [r for r in found.values() if r["status"] == "stopped" and r["kind"] == "train"]
    assert stopped, found
    assert all(r["curve"][-1]["step"] < 400 for r in stopped)
    waited = re.search(r"resources back after (\d+) s: (\d+) of (\d+) CPUs", said)
    assert waited, said
    assert int(waited[1]) <= 30
    assert waited[2] == waited[3]
    trials = pd.read_parquet(out / "trials.parquet")
    assert list(trials["number"]) == list(range(LIGHT + TRAIN))
    assert trials.loc[0, "param/optimizer.lr"] == 3e-3  # the base as it is


def test_all_trials_fail(data, tmp_path, ray_cluster):
    never = {"space": {"optimizer.lr": {"choice": [1e30]}}, "trials": {"light": 3}}
    base = {"data": data, "max_steps": 40, "optimizer": {"lr": 1e30}}
    with pytest.raises(EquipoiseError, match=r"All 3 trials failed; the first said: .*\S"):
        tune({"base": base, "out": str(tmp_path / "search"), **never})
    assert list(pd.read_parquet(tmp_path / "search" / "trials.parquet")["status"]) == ["failed"] * 3
    assert "No trial was trained to its end" in (tmp_path / "search" / "index.html").read_text()


def test_a_budget_of_steps_is_never_exceeded(data, tmp_path, ray_cluster):
    base = {"data": data, "max_steps": 40, "batch_size": 100}
    asked = {"base": base, "out": str(tmp_path / "search"), "stop": "none", "confirm": {"seeds": 0}, "concurrent": 2}
    trials = tune({**asked, "trials": {"light": 9}, "budget": {"steps": 150}}).trials
    assert list(trials["steps"]) == [40] * 3
    # Raised, it goes on; what was spent counts.
    trials = tune({**asked, "trials": {"light": 9}, "budget": {"steps": 200}}).trials
    assert list(trials["steps"]) == [40] * 5
    with pytest.raises(EquipoiseError, match=r"The budget was spent before a trial ended: raise budget.hours"):
        tune({**asked, "out": str(tmp_path / "other"), "budget": {"hours": 1e-9}})


@pytest.mark.parametrize("resampler", ["none", "sample"])
def test_a_light_trial_is_a_run_of_one_worker(ray_cluster, data, tmp_path, resampler):
    base = {"data": data, "max_steps": 90, "batch_size": 50, "balancer": "ogm", "resampler": resampler, "seed": 3}
    out = tmp_path / "search"
    search = tune({"base": base, "out": str(out), "trials": {"light": 3}, "stop": "none", "confirm": {"seeds": 0}})
    best = search.trials.sort_values(["score", "number"], ascending=[False, True]).iloc[0]
    record = Records(out).by_number[best["number"]]
    run = equipoise.fit(out / "best.yaml", out=str(tmp_path / "run"), **{"valuation.final": False, "report": False})
    rows = [row_of(run, epoch, 0.0) for epoch in range(len(run.metrics))]
    assert [[row[key] for key in EXACT] for row in rows] == [[row[key] for key in EXACT] for row in record.curve]
    assert run.checkpoints.best["epoch"] == record.kept["epoch"]
