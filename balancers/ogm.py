"""OGM: on-the-fly gradient modulation."""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from equipoise.balancers.balancer import Balancer
from equipoise.balancers.context import StepContext
from equipoise.balancers.modulation import Modulation


class OGM(Modulation):
    """Slow down the modality that is ahead (Peng et al., "Balanced Multimodal Learning via On-the-fly Gradient
    Modulation", CVPR 2022, section 3.2).

        s_m = mean over the global batch's rows with m of softmax(z_m)[y]
        rho_m = s_m / mean of the other modalities' s          (two modalities: s_m / s_other, the paper's ratio)
        k_m = 1 - tanh(alpha * rho_m) where rho_m > 1, else 1;  the gradient of what m owns is multiplied by k_m

    Differences from the authors' code: scores are those of the global batch (theirs differ between workers); what a
    modality owns is declared (theirs: 4-D weights, found by name); more than two modalities and rows that lack one are
    our extension. With own unimodal heads (`unimodal="heads"`), the heads learn from detached features, so that the
    encoders are trained by the fused loss alone, as in the paper.

    `apply="gradient"` is the paper's. An adaptive optimiser divides a constant factor of the gradient out again;
    `apply="update"` scales what the optimiser did instead.
    """

    name = "ogm"
    accepts = ("split", "heads")

    class Options(Balancer.Options):
        """How strongly, in which epochs, and what is scaled."""

        alpha: float = Field(0.3, ge=0, description="how strongly the modality that is ahead is slowed")
        apply: Literal["gradient", "update"] = "gradient"
        starts: int = Field(0, ge=0, description="first epoch that is modulated")
        ends: int | None = Field(None, ge=0, description="first epoch that is not modulated any more; None: to the end")

    def objectives(self, ctx: StepContext) -> dict[str, Tensor]:
        losses = {"fused": ctx.mean(ctx.task.losses(ctx.outputs.logits, ctx.target))}
        if ctx.model.unimodal == "heads":
            probes = ctx.probe_logits()
            losses |= {
                f"{m}_probe": ctx.mean(ctx.task.losses(probes[m], ctx.target), m)
                for m in ctx.modalities
                if ctx.counts[m]
            }
        return losses

    def statistics(self, ctx: StepContext) -> dict[str, Tensor]:
        return {m: (self._confidence(ctx, m) * ctx.has(m)).sum() for m in ctx.modalities}

    def _confidence(self, ctx: StepContext, modality: str) -> Tensor:
        p = ctx.unimodal_logits(modality).softmax(dim=1)
        return p.gather(1, ctx.target[:, None]).squeeze(1)

    def active(self, ctx: StepContext) -> bool:
        """Whether the step's epoch is one that is modulated."""
        return self.options.starts <= ctx.epoch and (self.options.ends is None or ctx.epoch < self.options.ends)

    def coefficients(self, ctx: StepContext) -> dict[str, float]:
        """k_m of every modality that some row of the global batch has."""
        s = {m: float(ctx.statistics[m]) / ctx.counts[m] for m in ctx.modalities if ctx.counts[m]}
        k = dict.fromkeys(s, 1.0)
        if self.active(ctx) and len(s) > 1:
            for m in s:
                others = (sum(s.values()) - s[m]) / (len(s) - 1)
                rho = s[m] / max(others, 1e-12)
                if rho > 1:
                    k[m] = 1.0 - float(torch.tensor(self.options.alpha * rho, dtype=torch.float64).tanh())
        for m in s:
            ctx.report(f"ogm_score_{m}", s[m])
            ctx.report(f"ogm_coefficient_{m}", k[m])
        return k
