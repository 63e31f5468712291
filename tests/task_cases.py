"""What each gloo process runs for the tasks' world-size tests: the four tasks on the same global batches, cut differently."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from world_cases import CUTS, SHAPES, G, take
from world_cases import global_batch as class_batch

from equipoise import balancers
from equipoise.models import (
    Classification,
    DenseFusion,
    LateFusion,
    MultiLabel,
    MultimodalModel,
    Regression,
    Segmentation,
    Task,
    UNet,
)
from equipoise.models.encoders import MLP
from equipoise.models.segmentation import pooled_dice_loss

STEPS = 8
SIDE = 6  # pixels each way of a picture to segment


class PooledSegmentation(Segmentation):
    """Dice pooled over the rows at hand: each row's loss is that of the whole (local) batch."""

    def losses(self, logits: Tensor, target: Tensor) -> Tensor:
        return pooled_dice_loss(logits, target).expand(len(target)) if len(target) else logits.flatten(1).sum(dim=1)


TASKS = {
    "classification": lambda: Classification(5),
    "multilabel": lambda: MultiLabel(4),
    "multilabel, exact": lambda: MultiLabel(4, benefit="exact"),
    "regression": lambda: Regression(2, loss="l1", tolerance=0.5, center=[1.0, -2.0], scale=[2.0, 0.5]),
    "regression, squared": lambda: Regression(1, loss="l2", benefit="sign"),
    "segmentation": lambda: Segmentation(["WT", "ET"]),
    "segmentation, pooled": lambda: PooledSegmentation(["WT", "ET"]),
}


def build_model(task: Task, **how: Any) -> MultimodalModel:
    torch.manual_seed(3)
    if task.dense:
        encoders = {m: UNet(1, out_features=3, hidden=2, depth=1, dims=2) for m in SHAPES}
        return DenseFusion(encoders, task.num_outputs, **how).double()
    vectors = {m: MLP((d,), hidden=(6,), out_features=5) for m, d in SHAPES.items()}
    return LateFusion(vectors, task.num_outputs, **how).double()


def global_batch(task: Task, step: int) -> Any:
    """The rows and absences of `world_cases.global_batch`, with targets (and pictures) of the task."""
    batch = class_batch(step, torch.float64)
    rng = np.random.default_rng([13, step])
    if task.dense:
        mask = rng.random((G, task.num_outputs, SIDE, SIDE)) < np.linspace(0, 0.6, G)[:, None, None, None]
        batch["target"] = torch.from_numpy(mask.astype(np.uint8))
        seen = mask[:, :1] + rng.normal(size=(len(SHAPES), G, 1, SIDE, SIDE))
        batch["inputs"] = dict(zip(SHAPES, torch.from_numpy(seen), strict=True))
    elif task.name == "multilabel":
        batch["target"] = torch.from_numpy((rng.random((G, task.num_outputs)) < 0.4).astype(np.uint8))
    elif task.name == "regression":
        batch["target"] = torch.from_numpy(rng.normal(size=(G, task.num_outputs)).astype(np.float32) * 3)
    return batch


def train(
    rank: int, world: int, group: Any, name: str, task_name: str, how: Mapping[str, Any], cut: str, micro: int
) -> dict[str, np.ndarray]:
    """A few steps on this rank's rows; returns the parameters."""
    task = TASKS[task_name]()
    model = build_model(task, **how)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    balancer = balancers.get(name)
    balancer.check(model, task)
    step = balancers.BalancedStep(model, task, balancer, optimizer, seed=11, clip_norm=5.0, group=group)
    edges = CUTS[cut][world]
    for t in range(STEPS):
        local = take(global_batch(task, t), slice(edges[rank], edges[rank + 1]))
        n = len(local["sample_id"])
        parts = [take(local, slice(n * i // micro, n * (i + 1) // micro)) for i in range(micro)]
        step(parts if micro > 1 else local)
    return {name: p.detach().numpy().copy() for name, p in model.named_parameters()}
