"""Fused and unimodal losses, summed: the control that every balancing method's gain must beat."""

from typing import ClassVar

from pydantic import Field
from torch import Tensor

from equipoise.balancers.balancer import Balancer, Family
from equipoise.balancers.context import StepContext
from equipoise.models.contract import Unimodal


class Summed(Balancer):
    """L = mean CE(z, y) + weight * sum_m mean CE(z_m, y), the mean of modality m over the rows that have it.

    Gains of auxiliary unimodal losses are often counted as gains of the method that needs them (peers.md 2.3); this is
    what they are worth alone.
    """

    name = "summed"
    family: ClassVar[Family] = "control"
    losses = "fused, one a modality"
    tasks = ("classification", "multilabel", "regression", "segmentation")
    accepts: ClassVar[tuple[Unimodal, ...]] = ("split", "heads")

    class Options(Balancer.Options):
        """`weight` of every unimodal loss beside the fused one, whose weight is 1."""

        weight: float = Field(1.0, ge=0, description="weight of each unimodal loss beside the fused one")

    def objectives(self, ctx: StepContext) -> dict[str, Tensor]:
        losses = {"fused": ctx.mean(ctx.task.losses(ctx.outputs.logits, ctx.target))}
        for m in ctx.modalities:
            if ctx.counts[m]:
                losses[m] = self.options.weight * ctx.mean(ctx.task.losses(ctx.unimodal_logits(m), ctx.target), m)
        return losses
