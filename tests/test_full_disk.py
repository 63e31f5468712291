"""A disk that fills up while a checkpoint is written: the run says so, the one before loads, and training goes on from it."""

import subprocess
import threading
import time
from pathlib import Path

import pytest
import torch
from digits_runs import CONFIG, weights

import equipoise
from equipoise import EquipoiseError
from equipoise.pipelines.checkpoint import Checkpoints, Position


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 8 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", folder], capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"mounting a small file system is not allowed here: {made.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def fill(folder: Path, leave: int) -> Path:
    """Take all room of a disk but `leave` bytes."""
    path = folder / "filler"
    with path.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass
        file.truncate(max(0, file.tell() - leave))
    return path


@pytest.mark.parametrize("part", ["model", "state"])
def test_a_full_disk_in_mid_checkpoint_leaves_the_one_before(small_disk, part):
    checkpoints = Checkpoints(small_disk / "checkpoints")
    first, second = Position(1, 0), Position(2, 0)
    small, large = {"w": torch.arange(10.0)}, {"w": torch.zeros(1 << 20)}
    checkpoints.commit(checkpoints.draft(first, small), first, {"epoch": 1})
    fill(small_disk, leave=64 << 10)

    def write() -> None:
        draft = checkpoints.draft(second, large if part == "model" else small)
        checkpoints.commit(draft, second, large if part == "state" else {})

    said = (
        r"The checkpoint epoch-0002-step-000000 could not be written .* 0 MiB are free .* The one before it, "
        r"epoch-0001-step-000000, is whole: make room, and the same command goes on"
    )
    with pytest.raises(EquipoiseError, match=said):
        write()
    assert checkpoints.positions() == [first]
    assert [path.name for path in checkpoints.folder.iterdir()] == [str(first)], "the draft would keep the disk full"
    loaded, state = checkpoints.load(first)
    assert torch.equal(loaded["w"], small["w"])
    assert state == {"epoch": 1}


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_run_on_a_full_disk_ends_with_a_sentence_and_goes_on_when_there_is_room(plain, data, small_disk):
    out = small_disk / "run"

    def watch():
        while not (out / "checkpoints" / "epoch-0001-step-000000").exists():
            time.sleep(0.01)
        fill(small_disk, leave=0)

    threading.Thread(target=watch, daemon=True).start()
    with pytest.raises(EquipoiseError, match=r"(could not be written to|The disk of the run is full).*make room"):
        equipoise.fit(CONFIG, data=data, out=str(out), max_failures=0)
    assert Checkpoints(out / "checkpoints").positions()[-1] < Position(3, 0)
    (small_disk / "filler").unlink()
    run = equipoise.fit(CONFIG, data=data, out=str(out), max_failures=0)
    for name, tensor in weights(plain).items():
        assert torch.equal(tensor, weights(run)[name]), name
