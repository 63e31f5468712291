"""Modality dropout: train with modalities masked at random."""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from equipoise.balancers.balancer import Balancer
from equipoise.balancers.context import StepContext
from equipoise.balancers.joint import Joint
from equipoise.models.batch import Batch


class ModalityDropout(Joint):
    """Mask modalities of a row before the forward pass, never all that it has (ModDrop, Neverova et al., TPAMI 2016).

    `distribution="independent"`: each present modality is dropped with probability `p`; where all would be, the one that
    came nearest to staying stays. `"uniform"`: every non-empty subset of the present modalities is equally likely.
    The choice is a hash of (seed, epoch, sample_id, copy), so it is the same on any worker and in a resumed run.
    """

    name = "modality_dropout"
    family = "data"

    class Options(Balancer.Options):
        """How often a modality is dropped."""

        p: float = Field(0.3, ge=0, lt=1, description="probability that a modality is dropped (independent)")
        distribution: Literal["independent", "uniform"] = "independent"

    def before_forward(self, batch: Batch, ctx: StepContext) -> Batch:
        present = batch["present"]
        keep = (
            self._independent(present, ctx)
            if self.options.distribution == "independent"
            else self._uniform(present, ctx)
        )
        return Batch(
            sample_id=batch["sample_id"],
            copy=batch["copy"],
            inputs=batch["inputs"],
            present=keep,
            target=batch["target"],
        )

    def _independent(self, present: Tensor, ctx: StepContext) -> Tensor:
        u = torch.stack([ctx.random("modality_dropout", m) for m in ctx.modalities], dim=1)
        u = torch.where(present, u, -1.0)
        best = torch.zeros_like(present).scatter_(1, u.argmax(dim=1, keepdim=True), True)
        stays: Tensor = u >= self.options.p
        return present & (stays | best)

    def _uniform(self, present: Tensor, ctx: StepContext) -> Tensor:
        # The c-th non-empty subset of k present modalities, c uniform in 1 .. 2**k - 1; bit j of c is the j-th present one.
        number = 2 ** present.sum(dim=1)
        c = 1 + (ctx.random("modality_dropout") * (number - 1)).long()
        place = present.long().cumsum(dim=1) - 1
        return present & ((c[:, None] >> place.clamp(min=0)) & 1).bool()
