"""PCGrad: gradient surgery between the fused and the unimodal objectives."""

from typing import Literal

from pydantic import Field
from torch import Tensor

from equipoise.balancers.balancer import Balancer
from equipoise.balancers.conflicts import random_orders, remove_conflicts
from equipoise.balancers.context import StepContext
from equipoise.balancers.gradients import Gradients
from equipoise.balancers.modality_objectives import ModalityObjectives, length, weighted


class PCGrad(ModalityObjectives):
    """Add up the gradients of all objectives, each without what opposes the others (Yu et al., "Gradient Surgery for
    Multi-Task Learning", NeurIPS 2020, algorithm 1).

        G = gradients of the fused and of each unimodal loss, over all parameters as one vector each;  K = G G^T
        g_i' = g_i;  for j in a random order of the others: where <g_i', g_j> < 0: g_i' -= <g_i', g_j> / K_jj g_j
        gradient = sum_i g_i'

    Found on K alone: g_i' = sum_j C_ij g_j with C = remove_conflicts(K, orders). Orders are drawn by (seed, step), the same
    on every worker.
    """

    name = "pcgrad"

    class Options(Balancer.Options):
        """How the projected gradients are put together."""

        reduction: Literal["sum", "mean"] = Field("sum", description="how the projected gradients are put together")

    def combine(self, gradients: Gradients, ctx: StepContext) -> Tensor:
        k = len(gradients.names)
        ctx.calibrated = ctx.agreed(remove_conflicts(gradients.gram(), random_orders(k, ctx.generator("pcgrad"))))
        weights = ctx.calibrated.sum(dim=0) / (k if self.options.reduction == "mean" else 1)
        everything = [slice(0, gradients.layout.size)]
        combined = weighted(gradients, weights, everything)
        for name, weight in zip(gradients.names, weights.tolist(), strict=True):
            ctx.report(f"pcgrad_weight_{name}", weight)
        ctx.report("pcgrad_norm", length(combined, everything))
        return combined
