"""The balanced step in other people's loops: each ends with the parameters of the plain loop, bit for bit."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import equipoise
from equipoise import balancers

EXAMPLES = Path(equipoise.__file__).parents[1] / "examples"
#: Runs an example as a script and keeps the parameters that it ends with.
CHILD = """
import runpy, sys, torch
sys.path.insert(0, sys.argv[1].rpartition("/")[0])
ended = runpy.run_path(sys.argv[1], run_name="__main__")
torch.save(ended["model"].state_dict(), {out!r})
"""


def parameters(example: str, folder: Path) -> dict[str, torch.Tensor]:
    """Of an example that ran in a process of its own."""
    out = folder / f"{example}.pt"
    code = CHILD.format(out=str(out)).replace("sys.argv[1]", repr(str(EXAMPLES / f"{example}.py")))
    environment = {**os.environ, "PYTHONPATH": str(EXAMPLES.parent), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "left+right" in done.stdout
    return torch.load(out, weights_only=True)


def differing(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> list[str]:
    """The names of parameters that are not the same, bit for bit."""
    return [
        name
        for name in sorted({*ours, *theirs})
        if name not in ours or name not in theirs or not torch.equal(ours[name], theirs[name])
    ]


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return parameters("plain_torch", tmp_path_factory.mktemp("plain"))


@pytest.mark.parametrize(("example", "package"), [("lightning", "pytorch_lightning"), ("hf_trainer", "accelerate")])
def test_another_loop_ends_with_the_same_parameters(example, package, plain, tmp_path):
    pytest.importorskip(package, reason=f"{package} is not installed: it is in the extra 'test'")
    assert len(plain) == 10
    assert differing(parameters(example, tmp_path), plain) == []


def swapped(batches):
    return [batches[1], batches[0], *batches[2:]]


def skipped(batches):
    return batches[:-1]


@pytest.mark.parametrize("fault", [None, swapped, skipped])
def test_the_comparison_sees_a_swapped_batch_and_a_skipped_step(fault, plain):
    there = runpy.run_path(str(EXAMPLES / "plain_torch.py"), run_name="plain_torch")
    model = there["new_model"]()
    optimizer = torch.optim.SGD(model.parameters(), lr=there["RATE"], momentum=there["MOMENTUM"])
    step = balancers.BalancedStep(model, there["TASK"], balancers.get("ogm"), optimizer)
    epochs = [list(there["batches"](epoch)) for epoch in range(there["EPOCHS"])]
    if fault is not None:
        epochs[7] = fault(epochs[7])
    for step.epoch, batches in enumerate(epochs):
        for batch in batches:
            step(batch)
    found = differing(model.state_dict(), plain)
    assert found == ([] if fault is None else sorted(plain))
