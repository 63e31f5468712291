"""What the cards of mmpareto, pcgrad, mgda and jd say of digits: `python -m benchmarks.multi_objective`, from the root.

Light runs of AdamW with learning rate 0.01, 130 steps of 100 rows, paired seeds, a method a row: test accuracy of the best
epoch by left, right and both, mean and standard deviation over seeds; then what the method reported, in the first and the
last third of the steps. A minute on one core. TorchJD's methods are left out where it is not installed.
"""

from __future__ import annotations

import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer

from equipoise.datasets.prepare import prepare
from equipoise.pipelines.config import load_config
from equipoise.pipelines.light import LightRun, train_light

STEPS, ROWS, RATE = 130, 100, 0.01
METHODS: dict[str, dict[str, Any]] = {
    "joint": {"name": "joint"},
    "summed": {"name": "summed"},
    "mmpareto": {"name": "mmpareto"},
    "mmpareto, apply=update": {"name": "mmpareto", "options": {"apply": "update"}},
    "pcgrad": {"name": "pcgrad"},
    "mgda": {"name": "mgda"},
    "mgda, normalization=l2": {"name": "mgda", "options": {"normalization": "l2"}},
    "jd, UPGrad": {"name": "jd"},
    "jd, AlignedMTL": {"name": "jd", "options": {"aggregator": "AlignedMTL"}},
}
SAID = ("mmpareto_conflict_", "mgda_weight_fused")  # reports that the cards name; those of modalities as their mean


def trained(data: Path, balancer: dict[str, Any], seed: int) -> LightRun:
    settings = {
        "data": str(data), "out": "unused", "balancer": balancer, "seed": seed, "max_steps": STEPS, "batch_size": ROWS,
        "optimizer": {"name": "adamw", "lr": RATE},
    }  # fmt: skip
    return train_light(load_config(settings))


def accuracies(run: LightRun) -> list[float]:
    """Test accuracy by coalition id: left, right, both."""
    return [run.matrix["test"][c]["accuracy"] for c in (1, 2, 3)]


def reported(run: LightRun, start: str) -> np.ndarray:
    """The mean a step of what reports of this name say, [steps]; none where the method has no such report."""
    return np.array([np.mean(found) for s in run.steps if (found := [v for k, v in s.items() if k.startswith(start)])])


def main(seeds: Annotated[int, typer.Option(help="seeds a method", min=2)] = 5) -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        prepare("digits", data := Path(folder) / "digits")
        print(f"{'':24}{'left':>15}{'right':>15}{'both':>15}")
        for name, balancer in METHODS.items():
            if balancer["name"] == "jd" and find_spec("torchjd") is None:
                print(f"{name:24}needs TorchJD")
                continue
            runs = [trained(data, balancer, seed) for seed in range(seeds)]
            found = np.array([accuracies(run) for run in runs])
            cells = (f"{m:.3f} ± {s:.3f}" for m, s in zip(found.mean(axis=0), found.std(axis=0, ddof=1)))
            print(f"{name:24}" + "".join(f"{cell:>15}" for cell in cells))
            for start in SAID:
                if len(said := np.array([reported(run, start) for run in runs]).mean(axis=0)):
                    third = len(said) // 3
                    print(
                        f"  {start.rstrip('_')}: {said.mean():.3f}, first third {said[:third].mean():.3f}, "
                        f"last third {said[-third:].mean():.3f}"
                    )


if __name__ == "__main__":
    typer.run(main)
