"""Models whose gradients are their inputs, for conflicts worked out by hand; run in the test and by gloo processes."""

import numpy as np
import torch
from torch import nn

from equipoise.balancers import BalancedStep
from equipoise.balancers.gmd import GMD
from equipoise.models import MultimodalModel


class InputsAsGradients(MultimodalModel):
    """Logit of a modality: x . theta, theta shared; fused: their mean over what is present."""

    absence = "drop"

    def __init__(self, modalities, size):
        super().__init__()
        self.modalities = tuple(modalities)
        self.sizes = dict.fromkeys(self.modalities, 1)
        self.theta = nn.Parameter(torch.zeros(size, dtype=torch.float64))

    def encode(self, modality, x, length=None):
        return (x @ self.theta)[:, None]

    def fuse(self, features, present):
        total = sum(torch.where(present[:, i : i + 1], features[m], 0) for i, m in enumerate(self.modalities))
        return total / present.sum(dim=1, keepdim=True).clamp(min=1)

    def unimodal_logits(self, features):
        return {m: features[m] for m in self.modalities}

    def parameter_groups(self):
        return {"shared": [self.theta]}


class Logit:
    """A loss that is the logit: its gradient by theta is the input."""

    name = "classification"

    def losses(self, logits, target):
        return logits[:, 0]

    def check(self, target):
        pass


class Alone(GMD):
    """GMD over single modalities: as many objectives as modalities."""

    name = ""

    def subsets(self, ctx):
        return {m: (m,) for m in ctx.modalities}


def batch(rows):
    """Rows {modality: vector, absent where left out}."""
    names = sorted({m for row in rows for m in row})
    size = len(next(iter(rows[0].values())))
    zeros = np.zeros(size)
    return {
        "sample_id": torch.arange(len(rows)),
        "copy": torch.zeros(len(rows), dtype=torch.int16),
        "inputs": {m: torch.from_numpy(np.array([row.get(m, zeros) for row in rows], dtype=np.float64)) for m in names},
        "present": torch.tensor([[m in row for m in names] for row in rows]),
        "target": torch.zeros(len(rows), dtype=torch.int64),
    }


def gradient(rows, group=None, **options):
    """The step that GMD makes from theta = 0 under SGD with learning rate 1."""
    data = batch(rows)
    model = InputsAsGradients(data["inputs"], next(iter(data["inputs"].values())).shape[1])
    step = BalancedStep(model, Logit(), Alone(**options), torch.optim.SGD(model.parameters(), lr=1.0), group=group)
    step(data)
    return -model.theta.detach().numpy()


def gradient_of_part(rank, world, group, parts):
    """The same, each worker with its own rows."""
    return gradient(parts[rank], group)
