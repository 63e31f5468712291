"""CML: calibrating multimodal learning."""

import torch
from pydantic import Field
from torch import Tensor

from equipoise.balancers.balancer import Balancer
from equipoise.balancers.context import StepContext
from equipoise.models.batch import Batch


class CML(Balancer):
    """The confidence must not rise when a modality is taken away (Ma et al., "Calibrating Multimodal Learning", ICML 2023).

        L = mean over the losses of z and of each z_-m, the logits without m
            + weight * mean over rows of sum_m max(0, conf(z_-m) - conf(z)),  conf(z) = max softmax(z)

    z_-m counts the rows that have m and another modality. The gradient goes through both confidences.
    """

    name = "cml"
    losses = "fused, one without each modality, rising confidence"
    accepts = ("split", "heads", "coalition")

    class Options(Balancer.Options):
        """The weight of the penalty."""

        weight: float = Field(1.0, ge=0, description="weight of the penalty on rising confidence")

    def rows(self, batch: Batch, ctx: StepContext) -> dict[str, Tensor]:
        present = batch["present"]
        spare = present & (present.sum(dim=1, keepdim=True) > 1)
        return {f"without/{m}": spare[:, i] for i, m in enumerate(ctx.modalities)}

    def objectives(self, ctx: StepContext) -> dict[str, Tensor]:
        z = ctx.outputs.logits
        there = [m for m in ctx.modalities if ctx.counts[f"without/{m}"]]
        reduced = {m: ctx.fuse(set(ctx.modalities) - {m}) for m in there}
        found = {"fused": ctx.mean(ctx.task.losses(z, ctx.target)) / (1 + len(there))}
        rise = torch.zeros_like(z[:, 0])
        for m, without in reduced.items():
            losses = ctx.task.losses(without, ctx.target)
            found[f"without/{m}"] = ctx.mean(losses, f"without/{m}") / (1 + len(there))
            higher = (confidence(without) - confidence(z)).clamp(min=0)
            rise = rise + torch.where(ctx.rows[f"without/{m}"], higher, 0.0)
        return found | ({"rise": self.options.weight * ctx.mean(rise)} if there else {})


def confidence(logits: Tensor) -> Tensor:
    """The probability of the likeliest class, [B]."""
    return logits.softmax(dim=1).amax(dim=1)
