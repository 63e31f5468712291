"""MGDA: the multiple-gradient descent algorithm over the fused and the unimodal objectives."""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from equipoise.balancers.balancer import Balancer
from equipoise.balancers.context import StepContext
from equipoise.balancers.gradients import Gradients
from equipoise.balancers.min_norm import min_norm_weights
from equipoise.balancers.modality_objectives import ModalityObjectives, length, shared, weighted


class MGDA(ModalityObjectives):
    """Step along the smallest vector in the convex hull of the objectives' gradients, so that none of them rises (Sener and
    Koltun, "Multi-Task Learning as Multi-Objective Optimization", NeurIPS 2018, section 3; Désidéri, 2012).

        G = gradients of the fused and of each unimodal loss over the parameters that several of them reach
        w = argmin |sum_i w_i g_i|  over  w >= 0, sum_i w_i = 1
        gradient = sum_i w_i g_i there; what a single loss reaches, such as its own head, by that loss's own gradient

    `normalization` divides g_i for the search of w, not for the step: by |g_i| ("l2"), by the loss ("loss"), or by both
    ("loss+"), as in the authors' code; the paper has none.
    """

    name = "mgda"

    class Options(Balancer.Options):
        """What the gradients are divided by, and whose are weighed."""

        normalization: Literal["none", "l2", "loss", "loss+"] = Field(
            "none", description="what a gradient is divided by while the weights are sought"
        )
        parameters: Literal["shared", "all"] = Field(
            "shared", description="whose gradients are weighed: what several objectives reach, or all as one vector"
        )

    def combine(self, gradients: Gradients, ctx: StepContext) -> Tensor:
        spans = shared(gradients) if self.options.parameters == "shared" else [slice(0, gradients.layout.size)]
        gram = gradients.products(spans)
        divisor = self._divisor(gram, ctx)
        weights = ctx.agreed(min_norm_weights(gram / divisor[:, None] / divisor))
        combined = weighted(gradients, weights, spans)
        for name, weight in zip(gradients.names, weights.tolist(), strict=True):
            ctx.report(f"mgda_weight_{name}", weight)
        ctx.report("mgda_norm", length(combined, spans))
        return combined

    def _divisor(self, gram: Tensor, ctx: StepContext) -> Tensor:
        """float64 [k]; 1 where it would be zero."""
        found = torch.ones_like(gram.diagonal())
        if self.options.normalization in ("l2", "loss+"):
            found = found * gram.diagonal().sqrt()
        if self.options.normalization in ("loss", "loss+"):
            found = found * found.new_tensor(list(ctx.losses.values()))
        return torch.where(found > 0, found, 1.0)
