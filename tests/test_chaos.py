"""`kill -9` at seeded moments of workers, valuation actors and the driver itself, at epoch ends and in mid-epoch.

EQUIPOISE_SEEDS runs of EQUIPOISE_KILLS kills each (`make check SEEDS=4 KILLS=5`); every other run values beside training.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import psutil
import pytest
from digits_runs import CONFIG, HERE, assert_same_run

import equipoise
from equipoise import Run

pytestmark = [pytest.mark.ray, pytest.mark.slow]

SEEDS, KILLS = int(os.environ.get("EQUIPOISE_SEEDS", "1")), int(os.environ.get("EQUIPOISE_KILLS", "3"))
EPOCHS = 4
VICTIMS = {"worker": "RayTrainWorker", "actor": "ray::Valuer", "driver": ""}
ORDER = ("train", "validation", "sweep of train")


@pytest.fixture(scope="module")
def undisturbed(ray_cluster, data, tmp_path_factory):
    """{lag: the run that nobody disturbed}"""
    runs = tmp_path_factory.mktemp("undisturbed")
    return {lag: equipoise.fit(config(data, runs / f"lag{lag}", lag)) for lag in range(min(SEEDS, 2))}


def config(data, out, lag):
    lagged = {"valuation": {"lag": lag}, "max_epochs": EPOCHS, "max_failures": 3 + KILLS}
    return {**CONFIG, **lagged, "data": data, "out": str(out)}


def moments(seed):
    """KILLS (epoch, phase, share of the phase, victim), in the order in which a run comes by them."""
    choose = random.Random(seed)
    found = []
    for number in range(KILLS):
        victim = ("worker", "actor", "driver")[(number + seed) % 3]
        # A sweep of train follows the epochs that a plan follows, and with lag 1 it is no phase of its own.
        phase = choose.choice(ORDER if seed % 2 == 0 else ORDER[:2])
        epoch = choose.randrange(EPOCHS - (phase == "sweep of train"))
        found.append((epoch, ORDER.index(phase), choose.random() * 0.9, victim))
    return sorted(found)


class Disturbed:
    """A run in a driver process of its own, which is started again whenever it was killed."""

    def __init__(self, folder: Path, settings: dict) -> None:
        self.folder, self.out, self.config = folder, Path(settings["out"]), folder / "config.json"
        self.config.write_text(json.dumps(settings))
        (folder / "faults").mkdir()
        for flag in ("slow_steps", "slow_sweeps"):
            (folder / "faults" / flag).touch()
        self.start()

    def start(self) -> None:
        command = [sys.executable, str(HERE / "chaos_driver.py"), str(self.folder / "faults"), str(self.config)]
        environment = {**os.environ, "PYTHONPATH": str(HERE.parent)}
        with (self.folder / "log").open("ab") as log:
            self.driver = psutil.Popen(command, stdout=log, stderr=log, env=environment)

    def progress(self) -> dict:
        try:
            return json.loads((self.out / "progress.json").read_text())
        except (FileNotFoundError, json.JSONDecodeError):
            return {"phase": "", "epoch": -1, "done": 0, "total": 1}

    def at(self, epoch: int, phase: int, share: float) -> bool:
        now = self.progress()
        return now["phase"] == ORDER[phase] and now["epoch"] == epoch and now["done"] >= share * now["total"]

    def past(self, epoch: int, phase: int) -> bool:
        now = self.progress()
        return now["epoch"] > epoch or (now["epoch"] == epoch and now["phase"] in ORDER[phase + 1 :])

    def kill(self, victim: str) -> int | None:
        """kill -9 one such process; the driver is started again when all that was its is gone."""
        family = self.driver.children(recursive=True)
        if victim == "driver":
            self.driver.send_signal(signal.SIGKILL)
            self.driver.wait()
            psutil.wait_procs(family, timeout=60)
            self.start()
            return self.driver.pid
        for process in family:
            try:
                if VICTIMS[victim] in "".join(process.cmdline())[:60]:
                    process.send_signal(signal.SIGKILL)
                    return process.pid
            except psutil.Error:
                pass
        return None


@pytest.mark.parametrize("seed", range(SEEDS))
def test_kills_at_seeded_moments_change_nothing(undisturbed, data, tmp_path, seed):
    lag = seed % 2
    run = Disturbed(tmp_path, config(data, tmp_path / "out", lag))
    killed = []
    for epoch, phase, share, victim in moments(seed):
        deadline = time.monotonic() + 180
        while time.monotonic() < deadline and run.driver.poll() is None:
            # A phase too short to be seen, or one that a resume had behind it: the next moment serves as well.
            if (run.at(epoch, phase, share) or run.past(epoch, phase)) and run.kill(victim) is not None:
                killed.append((victim, ORDER[phase], epoch, round(share, 2)))
                break
            time.sleep(0.02)
    log = tmp_path / "log"
    assert run.driver.wait(timeout=300) == 0, log.read_text()[-3000:]
    print(f"seed {seed}, lag {lag}: killed {killed}")
    assert len(killed) == KILLS
    assert_same_run(Run.open(tmp_path / "out"), undisturbed[lag])
