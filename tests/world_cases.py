"""What each gloo process runs for the world-size tests: the same global batches, cut differently."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from sketches import SKETCHES
from torch import Tensor

from equipoise import balancers
from equipoise.balancers.ogm import OGM
from equipoise.models import (
    Classification,
    DynamicSharing,
    EarlyFusion,
    LateFusion,
    MultimodalModel,
    Patches,
    SharedMLP,
)
from equipoise.models.encoders import MLP

CLASSES, G, STEPS, EPOCH = 5, 12, 12, 3  # EPOCH: steps between two validations
SHAPES = {"a": 7, "b": 4, "c": 3}


class OGMUnreduced(OGM):
    """OGM as public code has it under DDP: every worker modulates by its own scores. Must fail the world-size test."""

    name = ""

    def statistics(self, ctx: Any) -> dict[str, Tensor]:
        self._local = super().statistics(ctx)
        return {}

    def coefficients(self, ctx: Any) -> dict[str, float]:
        ctx.statistics = self._local
        return super().coefficients(ctx)


def build_model(dtype: torch.dtype, early: bool = False, sharing: bool = False, **how: Any) -> MultimodalModel:
    torch.manual_seed(3)
    if early:
        tokenizers = {m: Patches((d,), tokens=2, dim=8) for m, d in SHAPES.items()}
        return EarlyFusion(tokenizers, CLASSES, dim=8, depth=1, heads=2, **how).to(dtype)
    if sharing:
        linears = {m: torch.nn.Linear(d, 6) for m, d in SHAPES.items()}
        return DynamicSharing(linears, SharedMLP(tuple(SHAPES), 6, 1), CLASSES, **how).to(dtype)
    encoders = {m: MLP((d,), hidden=(6,), out_features=5) for m, d in SHAPES.items()}
    return LateFusion(encoders, CLASSES, **how).to(dtype)


def global_batch(step: int, dtype: torch.dtype, absent_everywhere: bool = True) -> balancers.step.Batch:
    """Twelve rows of three modalities, some absent; in steps 5 and 6, modality "b" is absent in all of them."""
    rng = np.random.default_rng([7, step])
    present = torch.from_numpy(rng.random((G, 3)) < 0.75)
    present[:, 0] |= ~present.any(dim=1)
    # The first rows lack "c" (so that under two or four workers one of them has none of it).
    present[: G // 2, 2] = False
    present[: G // 2, 0] = True
    if step in (5, 6) and absent_everywhere:
        present[:, 1] = False
        present[:, 0] = True
    target = torch.from_numpy(rng.integers(0, CLASSES, G))
    # The class shows in "a" at once and in the others faintly, so that one modality leads.
    inputs = {}
    for m, d in SHAPES.items():
        x = rng.normal(size=(G, d)) * 0.5
        x[np.arange(G), target.numpy() % d] += 2.0 if m == "a" else 0.3
        inputs[m] = torch.from_numpy(x).to(dtype)
    return {
        "sample_id": torch.arange(G) + G * step,
        "copy": torch.zeros(G, dtype=torch.int16),
        "inputs": inputs,
        "present": present,
        "target": target,
    }


def take(batch: Any, rows: slice) -> Any:
    return {
        "sample_id": batch["sample_id"][rows],
        "copy": batch["copy"][rows],
        "inputs": {m: x[rows] for m, x in batch["inputs"].items()},
        "present": batch["present"][rows],
        "target": batch["target"][rows],
    }


#: How a global batch of 12 rows is cut: cumulative fractions a worker, even, uneven, and with a worker without rows.
CUTS = {
    "even": {1: [0, 12], 2: [0, 6, 12], 4: [0, 3, 6, 9, 12]},
    "uneven": {1: [0, 12], 2: [0, 10, 12], 4: [0, 1, 6, 11, 12]},
    "empty": {1: [0, 12], 2: [0, 12, 12], 4: [0, 5, 5, 11, 12]},
}


def train(
    rank: int,
    world: int,
    group: Any,
    name: str,
    options: Mapping[str, Any],
    how: Mapping[str, Any],
    dtype_name: str,
    cut: str,
    micro: int,
    optimizer: str,
) -> dict[str, np.ndarray]:
    """`STEPS` steps on this rank's rows; returns the parameters."""
    dtype = getattr(torch, dtype_name)
    model = build_model(dtype, **how)
    if rank:  # a replica that starts elsewhere must be brought in line by the step
        with torch.no_grad():
            for p in model.parameters():
                p.add_(rank)
    planted = {"ogm_unreduced": OGMUnreduced, **SKETCHES}
    balancer = planted[name](**options) if name in planted else balancers.get(name, **options)
    made = {
        "sgd": lambda: torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3),
        "adamw": lambda: torch.optim.AdamW(model.parameters(), lr=1e-2),
    }[optimizer]()
    step = balancers.BalancedStep(model, Classification(CLASSES), balancer, made, seed=11, clip_norm=5.0, group=group)
    edges = CUTS[cut][world]
    for t in range(STEPS):
        step.epoch = t // EPOCH
        if t and t % EPOCH == 0:
            # Validation of the modalities alone, as `on_epoch` gets it: "b" stops improving.
            found = {1: (1.0 / t, 0.02 * t), 2: (float(t), 0.3), 4: (1.0 / t, 0.01 * t)}
            balancer.on_epoch({c: {"loss": loss, "accuracy": accuracy} for c, (loss, accuracy) in found.items()}, None)
        local = take(global_batch(t, dtype), slice(edges[rank], edges[rank + 1]))
        if micro == 1:
            step(local)
        else:
            n = len(local["sample_id"])
            step([take(local, slice(n * i // micro, n * (i + 1) // micro)) for i in range(micro)])
    return {name: p.detach().numpy().copy() for name, p in model.named_parameters()}
