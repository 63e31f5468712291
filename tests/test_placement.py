"""Runs that find no room on a real Ray: they end with a sentence, where Ray Train alone would wait for ever."""

import contextlib
import os
import threading
import time

import psutil
import pytest
from digits_runs import kill_when

import equipoise
from equipoise import EquipoiseError
from equipoise.datasets.prepare import prepare

pytestmark = pytest.mark.ray

CONFIG = {"workers": 2, "actors": 2, "batch_size": 50, "max_epochs": 1, "valuation": {"final": False}, "report": False}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("digits") / "data"
    prepare("digits", root, chunk_rows=100, shard_rows=400)
    return str(root)


def all_free():
    """Wait for what the tests before gave back: Ray shows it a little late."""
    import ray

    deadline = time.monotonic() + 20
    while ray.available_resources().get("CPU") != 6 and time.monotonic() < deadline:
        time.sleep(0.1)


@pytest.fixture
def somebody(ray_cluster):
    """Somebody else's actor of three of the six CPUs, not started yet."""
    import ray

    @ray.remote(num_cpus=3)
    class Somebody:
        def there(self):
            return True

    all_free()
    started = []

    def start():
        started.append(Somebody.remote())
        return started[-1]

    yield start
    for actor in started:
        ray.kill(actor)
    all_free()


@pytest.fixture
def held(somebody):
    """Three of the six CPUs belong to somebody else."""
    import ray

    actor = somebody()
    ray.get(actor.there.remote())
    return actor


def test_a_run_that_finds_no_room_ends_with_its_sentence(held, data, tmp_path, monkeypatch):
    import ray
    from ray.util.placement_group import placement_group_table

    before = set(placement_group_table())
    monkeypatch.setenv("EQUIPOISE_START_TIMEOUT_S", "2")
    sentence = (
        r"no room for the run within 2 s: it asks for 5 CPUs \(workers=2, actors=2, one data task\), and 3 of 6 CPUs are free\. "
        r"End what holds the rest, ask for fewer workers or actors, or wait longer \(EQUIPOISE_START_TIMEOUT_S=600\)\."
    )
    with pytest.raises(EquipoiseError, match=sentence):
        equipoise.fit(CONFIG, data=data, out=str(tmp_path / "run"))
    # Nothing is left behind that would hold room: neither actors nor the group that asked for it.
    after = placement_group_table()
    assert {group["state"] for name, group in after.items() if name not in before} <= {"REMOVED"}
    assert ray.available_resources()["CPU"] == 3


def test_a_timeout_that_is_no_number_is_a_sentence(ray_cluster, data, tmp_path, monkeypatch):
    monkeypatch.setenv("EQUIPOISE_START_TIMEOUT_S", "soon")
    with pytest.raises(EquipoiseError, match="EQUIPOISE_START_TIMEOUT_S is a number of seconds, found 'soon'"):
        equipoise.fit(CONFIG, data=data, out=str(tmp_path / "run"))


@pytest.mark.slow
def test_a_run_that_finds_room_later_goes_on_and_everyone_sits_on_their_cores(held, data, tmp_path, monkeypatch, capfd):
    import ray

    monkeypatch.setenv("EQUIPOISE_START_TIMEOUT_S", "60")
    timer = threading.Timer(7, lambda: ray.kill(held))
    timer.start()
    out = tmp_path / "run"
    cores, over = {}, threading.Event()

    def watch():
        while not over.wait(0.1):
            training = "train" in ((out / "progress.json").read_text() if (out / "progress.json").exists() else "")
            for process in psutil.Process().children(recursive=True) if training else ():
                for name in ("ray::Valuer", "RayTrainWorker"):
                    if name in "".join(process.cmdline())[:60]:
                        for thread in os.listdir(f"/proc/{process.pid}/task"):
                            with contextlib.suppress(ProcessLookupError):
                                cores.setdefault(name, set()).add(tuple(os.sched_getaffinity(int(thread))))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        run = equipoise.fit(
            CONFIG, data=data, out=str(out), max_steps=20, valuation={"placement": "separate", "lag": 1}
        )
    finally:
        over.set()
        watcher.join()
    assert run.finished
    assert "waiting up to 60 s for room on the Ray cluster: 5 CPUs" in " ".join(capfd.readouterr().err.split())
    there = sorted(os.sched_getaffinity(0))
    half = len(there) // 2
    assert cores == {"RayTrainWorker": {tuple(there[:-half])}, "ray::Valuer": {tuple(there[-half:])}}


@pytest.mark.slow
def test_workers_that_are_lost_and_find_no_room_again_end_the_run_with_its_sentence(
    faults, somebody, data, tmp_path, monkeypatch
):
    # Somebody waits for three CPUs and gets them when a killed worker's group gives up its two.
    faults.on("slow_steps")
    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "2")
    out = tmp_path / "run"

    def ready(progress):
        if progress["phase"] == "train" and progress["done"] >= 200:
            somebody()
            return True
        return False

    worker = kill_when(out, "RayTrainWorker", ready)
    with pytest.raises(
        EquipoiseError,
        match=r"Workers were lost, and the Ray cluster has no room to start them again: they ask for 5 CPUs .* and \d of 6 CPUs "
        r"are free\. The same command goes on from the last checkpoint once there is room\.",
    ):
        equipoise.fit(CONFIG, data=data, out=str(out), max_failures=1)
    assert len(worker.killed) == 1
