"""AGM: adaptive gradient modulation."""

from collections.abc import Mapping
from itertools import combinations
from math import exp, factorial, log
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from equipoise.balancers.balancer import Balancer
from equipoise.balancers.context import StepContext
from equipoise.balancers.modulation import Modulation

#: The largest loss of a row, that of a probability of 1e-8, and the largest exponent: as in the authors' code.
LARGEST_LOSS = -log(1e-8)
LARGEST_EXPONENT = 10.0


class AGM(Modulation):
    """Split the logits among the modalities as Shapley values, and slow the part that is further ahead than it was on
    average (Li et al., "Boosting Multi-modal Model Performance with Adaptive Gradient Modulation", ICCV 2023, section 3).

        z_m = sum over S without m of |S|! (M - |S| - 1)! / M! (z(S + m) - z(S)),   z(nothing) = 0    two modalities:
        z_m = (z(all) - z(all without m) + z(m)) / 2                                   sum_m z_m = z(all)
        l_m = mean over the global batch's rows with m of loss(z_m, y)
        r_m = exp((mean of the other modalities' l) - l_m);  tau_m = the same of the means of l over all steps before
        k_m = exp(alpha * min(tau_m - r_m, 10));  the gradient that flows into z_m is multiplied by k_m

    z(S): the logits with the modalities S alone, [B, K]. In a row that lacks m, z_m = 0: the row's logits are split among
    the modalities that it has, and it does not count in l_m. A modality that no row of the global batch has takes no part.

    Differences from the authors' code: losses are those of the global batch; an absent modality is absent as the model
    says, where theirs has zeros for inputs; the rule for three modalities holds for any number. `apply="gradient"` is the
    paper's; "update" leaves gradients alone and scales what the optimiser did to what a modality owns.
    """

    name = "agm"
    tasks = ("classification", "multilabel")
    weights_from_statistics = True

    class Options(Balancer.Options):
        """How strongly, and what is scaled."""

        alpha: float = Field(1.0, ge=0, le=10, description="how strongly a part that runs ahead is slowed")
        apply: Literal["gradient", "update"] = "gradient"

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.mean: dict[str, float] = {}
        self.steps: dict[str, int] = {}

    @property
    def scales_owned(self) -> bool:
        return bool(self.options.apply == "update")  # else the parts of the logits, which any model has

    def parts(self, ctx: StepContext) -> dict[str, Tensor]:
        """{modality: z_m [B, K]}: they add up to the fused logits."""
        names = ctx.modalities
        fused: dict[tuple[str, ...], Tensor] = {(): torch.zeros(())}
        for size in range(1, len(names) + 1):
            for subset in combinations(names, size):
                nothing = ~torch.stack([ctx.has(m) for m in subset]).any(dim=0)
                fused[subset] = ctx.fuse(subset).masked_fill(nothing[:, None], 0)
        parts = {}
        for m in names:
            part = torch.zeros_like(fused[names])
            for without in fused:
                if m not in without:
                    both = tuple(o for o in names if o in without or o == m)
                    weight = factorial(len(without)) * factorial(len(names) - len(both)) / factorial(len(names))
                    part = part + weight * (fused[both] - fused[without].to(part))
            parts[m] = part.masked_fill(~ctx.has(m)[:, None], 0)
        return parts

    def statistics(self, ctx: StepContext) -> dict[str, Tensor]:
        losses = {m: ctx.task.losses(z, ctx.target).clamp(max=LARGEST_LOSS) for m, z in self.parts(ctx).items()}
        return {m: loss.masked_fill(~ctx.has(m), 0).sum() for m, loss in losses.items()}

    def objectives(self, ctx: StepContext) -> dict[str, Tensor]:
        logits = ctx.outputs.logits
        if self.options.apply == "gradient":
            k = self.coefficients(ctx)
            for m, part in self.parts(ctx).items():
                # The parts add up to the logits: what is added here is zero, and its gradient makes 1 of each part k_m.
                logits = logits + (k.get(m, 1.0) - 1.0) * (part - part.detach())
        return {"fused": ctx.mean(ctx.task.losses(logits, ctx.target))}

    def coefficients(self, ctx: StepContext) -> dict[str, float]:
        ratio = ratios(self._levels(ctx))
        reference = ratios({m: self.mean[m] for m in ratio if m in self.mean})
        return {m: exp(self.options.alpha * min(reference.get(m, 1.0) - r, LARGEST_EXPONENT)) for m, r in ratio.items()}

    def modulate(self, gradients: Mapping[str, list[Tensor]], ctx: StepContext) -> None:
        self._k = self.coefficients(ctx)  # with apply="gradient", the backward pass had them in it
        for m, level in self._levels(ctx).items():
            ctx.report(f"agm_loss_{m}", level)
            ctx.report(f"agm_coefficient_{m}", self._k[m])
            n = self.steps.get(m, 0)
            self.mean[m], self.steps[m] = (self.mean.get(m, 0.0) * n + level) / (n + 1), n + 1

    def _levels(self, ctx: StepContext) -> dict[str, float]:
        """l_m of every modality that some row of the global batch has."""
        return {m: float(ctx.statistics[m]) / ctx.counts[m] for m in ctx.modalities if ctx.counts[m]}

    def state_dict(self) -> dict[str, Any]:
        return {"mean": dict(self.mean), "steps": dict(self.steps)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        mean, steps = dict(state["mean"]), dict(state["steps"])
        self.mean, self.steps = mean, steps


def ratios(levels: Mapping[str, float]) -> dict[str, float]:
    """r_m = exp((mean of the other modalities' losses) - loss of m): above 1 where m is ahead; 1 where there is no other."""
    if len(levels) < 2:
        return dict.fromkeys(levels, 1.0)
    total = sum(levels.values())
    return {m: exp((total - level) / (len(levels) - 1) - level) for m, level in levels.items()}
