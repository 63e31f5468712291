"""Models and batches whose gradients are what a test plants, and what a gloo process runs of them."""

import torch
from torch import nn
from world_cases import CLASSES, CUTS, build_model, global_batch, take

from equipoise import balancers
from equipoise.models import Classification, EquipoiseError
from equipoise.models.contract import MultimodalModel
from equipoise.models.fusion import FUSIONS


def fitting(name):
    """What a model of a registered balancer is built with: its first kind of unimodal logits, its fusion."""
    kind = balancers.get(name)
    made = {"unimodal": kind.accepts[0]}
    if kind.fusions:
        made |= {"fusion": kind.fusions[0], "absence": FUSIONS[kind.fusions[0]].absences[0]}
    return made


class Unbounded(nn.Module):
    """An encoder with sqrt(0) in it: what it gives is finite, the derivative is not."""

    def __init__(self, inner, out_features):
        super().__init__()
        self.inner, self.out_features = inner, out_features

    def forward(self, x, length=None):
        feature = self.inner(x)
        return feature + (0 * feature).square().sqrt()


class Planted(MultimodalModel):
    """Two modalities, two classes, logits (v, 0) in every row; what v is, the test says.

    - "identical": one shared number, whatever is present: all objectives have one gradient.
    - "opposite": w_a or w_b alone, -(w_a + w_b) together: the fused gradient opposes each modality's own.
    - "one zero": as "opposite", but what "b" alone predicts depends on nothing.
    - "zero": no logit depends on anything.
    """

    modalities = ("a", "b")

    def __init__(self, plant, name):
        super().__init__()
        kind = balancers.get(name)
        self.plant, self.unimodal = plant, kind.accepts[0]
        self.fusion_name = kind.fusions[0] if kind.fusions else ""
        self.w = nn.ParameterDict({m: torch.zeros((), dtype=torch.float64) for m in ("a", "b", "shared", "head")})

    def features(self, inputs, present):
        return {m: self.w[m] * torch.ones(len(present), 1, dtype=torch.float64) for m in self.modalities}

    def _logits(self, values):
        if self.plant == "identical":
            values = self.w["shared"] + 0 * values
        elif self.plant == "zero":
            values = 0 * values
        # Every parameter takes part, so that a gradient of zeros is one and not none.
        values = values + 0 * sum(self.w.values())
        return torch.cat([values, torch.zeros_like(values)], dim=1)

    def fuse(self, features, present):
        alone = torch.where(present[:, :1], self._alone("a", features), self._alone("b", features))
        return self._logits(torch.where(present.all(dim=1, keepdim=True), -features["a"] - features["b"], alone))

    def _alone(self, m, features):
        return 0 * features[m] if self.plant == "one zero" and m == "b" else features[m]

    def unimodal_logits(self, features):
        return {m: self._logits(self._alone(m, features)) for m in self.modalities}

    def parameter_groups(self):
        return {owner: [p] for owner, p in self.w.items()}


def pairs(rows=4):
    """Rows of class 0 with both modalities."""
    return {
        "sample_id": torch.arange(rows),
        "copy": torch.zeros(rows, dtype=torch.int16),
        "inputs": {m: torch.zeros(rows, 1, dtype=torch.float64) for m in ("a", "b")},
        "present": torch.ones(rows, 2, dtype=torch.bool),
        "target": torch.zeros(rows, dtype=torch.int64),
    }


def planted_steps(plant, name, steps=2):
    """Where two SGD steps with learning rate 1 lead from zeros: {owner: number}, and the last result."""
    model = Planted(plant, name)
    step = balancers.BalancedStep(
        model, Classification(2), balancers.get(name), torch.optim.SGD(model.parameters(), lr=1.0)
    )
    for _ in range(steps):
        result = step(pairs())
    return {m: p.item() for m, p in model.w.items()}, result


def refusals(rank, world, group, value):
    """{balancer: (the sentence, whether anything changed)}, where one number of the last rank's rows is `value`."""
    edges = CUTS["even"][world]
    found = {}
    for name in balancers.names():
        model = build_model(torch.float64, **fitting(name))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        step = balancers.BalancedStep(model, Classification(CLASSES), balancers.get(name), optimizer, group=group)
        local = take(global_batch(0, torch.float64), slice(edges[rank], edges[rank + 1]))
        if rank == world - 1:
            local["present"][:] = True
            for x in local["inputs"].values():
                x[-1, 0] = value
        before = [p.detach().clone() for p in model.parameters()]
        try:
            step(local)
            sentence = "no error"
        except EquipoiseError as error:
            sentence = str(error)
        found[name] = sentence, all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
    return found
