"""Runs that find no room on a real Ray: they end with a sentence, where Ray Train alone would wait for ever."""

import contextlib
import os
import threading
import time

import psutil
import pytest

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


@pytest.fixture
def held(ray_cluster):
    """Three of the six CPUs belong to somebody else."""
    import ray

    @ray.remote(num_cpus=3)
    class Somebody:
        def there(self):
            return True

    somebody = Somebody.remote()
    ray.get(somebody.there.remote())
    yield somebody
    ray.kill(somebody)
    deadline = time.monotonic() + 20
    while ray.available_resources().get("CPU") != 6 and time.monotonic() < deadline:
        time.sleep(0.1)


def test_a_run_that_finds_no_room_ends_with_its_sentence(held, data, tmp_path, monkeypatch):
    import ray

    monkeypatch.setenv("EQUIPOISE_START_TIMEOUT_S", "2")
    sentence = (
        r"no room for the run within 2 s: it asks for 5 CPUs \(workers=2, actors=2, one data task\), and 3 of 6 CPUs are free\. "
        r"End what holds the rest, ask for fewer workers or actors, or wait longer \(EQUIPOISE_START_TIMEOUT_S=600\)\."
    )
    with pytest.raises(EquipoiseError, match=sentence):
        equipoise.fit(CONFIG, data=data, out=str(tmp_path / "run"))
    # Nothing is left behind that would hold room: neither actors nor the group that asked for it.
    from ray.util.placement_group import placement_group_table

    assert not [group for group in placement_group_table().values() if group["state"] != "REMOVED"]
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
