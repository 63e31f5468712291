"""GMD: gradient-guided modality decoupling."""

from itertools import combinations
from typing import Any, Literal

import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor

from equipoise.balancers.balancer import Balancer
from equipoise.balancers.conflicts import random_orders, remove_conflicts, walk
from equipoise.balancers.context import StepContext
from equipoise.balancers.gradients import Gradients
from equipoise.models.batch import Batch
from equipoise.models.contract import MultimodalModel, check_ownership
from equipoise.models.errors import EquipoiseError
from equipoise.models.task import Task

#: More backward passes a step than anyone takes unawares: six modalities have 63 sets.
MANY = 63


class GMD(Balancer):
    """Train for every set of available modalities at once, each one's gradient without what opposes the others' (Wang et
    al., "Gradient-Guided Modality Decoupling for Missing-Modality Robustness", AAAI 2024, equations 3, 5, 8, 9).

        L_S = mean of loss(logits of the modalities S alone, y) over the global batch's rows that have all of S
        K = G G^T over the shared parameters;  C = remove_conflicts(K, random orders);  w_j = mean_i C_ij
        gradient = sum_j w_j grad L_j, of shared and modality-specific parameters alike

    Shared is what no modality owns: the trunk of Dynamic Sharing, the head of any model. S runs over all sets of modalities
    (`subsets="all"`), or over the set of all and `subsets - 1` others drawn by (seed, step). A set that no row of the global
    batch has is no objective of that step. Orders are drawn by (seed, step), the same on every worker.

    `compat="official"` does what the released code does on one GPU: inner products over all parameters, an objective met on
    its own walk too, what all objectives reach by the mean of the projected gradients, the rest by their sum.
    """

    name = "gmd"
    family = "gradient"
    losses = "one a set of available modalities"
    separate = True
    accepts = ("split", "heads", "coalition")
    tasks = ("classification", "multilabel", "regression", "segmentation")

    class Options(Balancer.Options):
        """Which sets of modalities, and how their gradients are calibrated and put together."""

        subsets: Literal["all"] | int = Field(
            "all", description="which sets of modalities: all, or so many a step, that of all modalities among them"
        )
        project: bool = Field(True, description="remove conflicts; without it, the plain mean or sum of the losses")
        reduction: Literal["mean", "sum"] = Field("mean", description="how the calibrated gradients are put together")
        specific: Literal["weights", "plain"] = Field(
            "weights", description="what a modality owns: by the weights of the shared parameters, or without weights"
        )
        compat: Literal["official"] | None = Field(None, description="official: as the released one-GPU code")

        @field_validator("subsets", mode="before")
        @classmethod
        def _a_number(cls, value: Any) -> Any:
            if value != "all" and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise EquipoiseError(f"subsets must be 'all' or a number of sets >= 1, found {value!r}.")
            return value

        @model_validator(mode="after")
        def _one_rule(self) -> "GMD.Options":
            if self.compat and (not self.project or self.reduction != "mean" or self.specific != "weights"):
                raise EquipoiseError(
                    "compat='official' fixes how gradients are projected and put together (the mean of what is shared, the sum "
                    "of the rest): leave project, reduction and specific out, or leave compat out."
                )
            return self

    def backward_passes(self, modalities: int) -> int:
        every = int(2**modalities - 1)
        return every if self.options.subsets == "all" else min(self.options.subsets, every)

    def check(self, model: MultimodalModel, task: Task) -> None:
        super().check(model, task)
        owned = check_ownership(model)
        if self.options.project and not self.options.compat and not owned["shared"] and not owned["head"]:
            raise EquipoiseError(
                "Balancer 'gmd' seeks conflicts over the parameters that no modality owns, and this model has none, so that "
                "nothing would be removed: build it with a shared trunk (model.kind: sharing) or a fusion with a head of all "
                "(such as concat), or take project=False, the mean of the losses."
            )
        passes = self.backward_passes(len(model.modalities))
        if self.options.subsets == "all" and passes > MANY:
            raise EquipoiseError(
                f"Balancer 'gmd' over all sets of {len(model.modalities)} modalities goes backward {passes} times a step and "
                f"keeps as many gradients: give subsets=5, as the paper does, or subsets={passes} if that is meant."
            )

    def subsets(self, ctx: StepContext) -> dict[str, tuple[str, ...]]:
        """{"a+b": ("a", "b"), ...}: the sets of this step, larger ones first."""
        names = ctx.modalities
        every = 2 ** len(names) - 1
        if self.options.subsets == "all" or self.options.subsets >= every:
            chosen = [s for size in range(len(names), 0, -1) for s in combinations(names, size)]
        else:
            # Coalitions by number, bit i for modality i: the full one is the largest.
            drawn = 1 + torch.randperm(every - 1, generator=ctx.generator("gmd_subsets"))[: self.options.subsets - 1]
            chosen = [tuple(m for i, m in enumerate(names) if c >> i & 1) for c in [every, *drawn.tolist()]]
            chosen.sort(key=lambda s: (-len(s), [names.index(m) for m in s]))
        return {"+".join(s): s for s in chosen}

    def rows(self, batch: Batch, ctx: StepContext) -> dict[str, Tensor]:
        columns = {m: batch["present"][:, i] for i, m in enumerate(ctx.modalities)}
        return {name: torch.stack([columns[m] for m in s]).all(dim=0) for name, s in self.subsets(ctx).items()}

    def objectives(self, ctx: StepContext) -> dict[str, Tensor]:
        there = {name: s for name, s in self.subsets(ctx).items() if ctx.counts[name]}
        if not there:  # rows that lack modalities may have none of the sets drawn; each has a single one
            there = {m: (m,) for m in ctx.modalities if ctx.counts[m]} or {ctx.modalities[0]: ctx.modalities[:1]}
        return {name: ctx.mean(ctx.task.losses(ctx.fuse(s), ctx.target), name) for name, s in there.items()}

    def combine(self, gradients: Gradients, ctx: StepContext) -> Tensor:
        k = len(gradients.names)
        if self.options.compat == "official":
            return self._official(gradients, ctx)
        w = torch.ones(k, dtype=torch.float64, device=gradients.flat.device)
        if self.options.project:
            gram = gradients.gram(["shared", "head"])
            ctx.calibrated = ctx.agreed(remove_conflicts(gram, random_orders(k, ctx.generator("gmd_orders"))))
            w = ctx.calibrated.sum(dim=0)
        share = 1.0 if self.options.reduction == "sum" else 1.0 / k
        for name, weight in zip(gradients.names, (share * w).tolist(), strict=True):
            ctx.report(f"gmd_weight_{name}", weight)
        combined = (share * w).to(gradients.flat.dtype) @ gradients.flat
        if self.options.specific == "plain":
            for m in ctx.modalities:
                combined[gradients.layout.owners[m]] = share * gradients.of(m).sum(dim=0)
        return combined

    def _official(self, gradients: Gradients, ctx: StepContext) -> Tensor:
        k = len(gradients.names)
        generator = ctx.generator("gmd_orders")
        orders = torch.stack([torch.randperm(k, generator=generator) for _ in range(k)])
        ctx.calibrated = ctx.agreed(walk(gradients.gram(), orders))
        combined = ctx.calibrated.sum(dim=0).to(gradients.flat.dtype) @ gradients.flat
        for span in gradients.common(*gradients.names):
            combined[span] /= k
        return combined
