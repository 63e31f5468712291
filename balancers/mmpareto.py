"""MMPareto: unimodal assistance along the Pareto direction, at no smaller a magnitude."""

from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from equipoise.balancers.balancer import Balancer
from equipoise.balancers.context import StepContext
from equipoise.balancers.gradients import Gradients
from equipoise.balancers.min_norm import min_norm_weights
from equipoise.balancers.modality_objectives import ModalityObjectives


class MMPareto(ModalityObjectives):
    """Let each encoder learn from the fused and from its own loss, along a direction that serves both (Wei and Hu,
    "MMPareto: Boosting Multimodal Learning with Innocent Unimodal Assistance", ICML 2024).

        for the encoder of m, g_1 of the fused loss, g_2 of its own loss, as one vector each:
        a = (1/2, 1/2) where cos(g_1, g_2) > 0, else the a >= 0, a_1 + a_2 = 1 of smallest |a_1 g_1 + a_2 g_2|
        h = 2 a_1 g_1 + 2 a_2 g_2;  per tensor: gradient = gamma h max(1, |g_1 + g_2| / |h|)
        all else (fusion, heads, shared parameters): the plain sum of all gradients

    The encoder of m is what m owns and both losses reach. `gamma` scales it in conflict or not, as in the authors' code.
    Where one of the two gradients is zero there is no conflict; where they cancel in a tensor, it stands still.

    `apply="gradient"` is the paper's. An adaptive optimiser divides the factor of h out again, gamma first of all;
    `apply="update"` gives the optimiser h alone and scales what it did with it.
    """

    name = "mmpareto"
    accepts = ("split", "heads")

    class Options(Balancer.Options):
        """How much larger, and what is scaled."""

        gamma: float = Field(1.5, gt=0, description="how much larger an encoder's gradient is made")
        apply: Literal["gradient", "update"] = "gradient"

    def combine(self, gradients: Gradients, ctx: StepContext) -> Tensor:
        combined = gradients.flat.sum(dim=0)
        encoders = {m: self.encoder(gradients, m) for m in ctx.modalities if m in gradients.names}
        self._factors: dict[str, dict[int, Tensor]] = {m: {} for m in encoders}
        if not encoders:
            return combined
        shares, cosines = zip(*(self.share(gradients, m, parts) for m, parts in encoders.items()), strict=True)
        agreed = ctx.agreed(combined.new_tensor(shares, dtype=torch.float64)).tolist()
        for (m, parts), share, cosine in zip(encoders.items(), agreed, cosines, strict=True):
            squares = combined.new_zeros(())
            for n, part in parts.items():
                h, factor = self.along(gradients.flat[0, part], gradients.flat[gradients.names.index(m), part], share)
                squares += (factor * h).square().sum()
                combined[part] = h
                self._factors[m][n] = factor
                if self.options.apply == "gradient":
                    combined[part] *= factor
            ctx.report(f"mmpareto_cosine_{m}", cosine)
            ctx.report(f"mmpareto_conflict_{m}", float(cosine < 0))
            ctx.report(f"mmpareto_fused_share_{m}", share)
            ctx.report(f"mmpareto_norm_{m}", float(squares.sqrt()))
        return combined

    def encoder(self, gradients: Gradients, modality: str) -> dict[int, slice]:
        """The tensors that both the modality's own loss and the fused one reach, by their number among those that it owns."""
        owned = gradients.layout.owners[modality]
        both = gradients.reached[[0, gradients.names.index(modality)]].all(dim=0).tolist()
        tensors = zip(gradients.layout.tensors, both, strict=True)
        own = [(part, reached) for part, reached in tensors if owned.start <= part.start < owned.stop]
        return {n: part for n, (part, reached) in enumerate(own) if reached}

    def share(self, gradients: Gradients, modality: str, parts: dict[int, slice]) -> tuple[float, float]:
        """a_1, the fused gradient's share in an encoder, and the cosine of the two gradients."""
        rows = [0, gradients.names.index(modality)]
        gram = gradients.products(list(parts.values()))[rows][:, rows]
        lengths = float(gram[0, 0].sqrt() * gram[1, 1].sqrt())
        if lengths == 0:
            return 0.5, 0.0
        return (0.5 if gram[0, 1] > 0 else float(min_norm_weights(gram)[0])), float(gram[0, 1]) / lengths

    def along(self, fused: Tensor, own: Tensor, share: float) -> tuple[Tensor, Tensor]:
        """h of one tensor from the gradients of the two losses, and the factor gamma max(1, |g_1 + g_2| / |h|)."""
        first, second = 2 * share * fused, 2 * (1 - share) * own
        h = first + second
        # What is left of two gradients that cancel is rounding: it must not be blown up to their size.
        rounding = 64 * torch.finfo(h.dtype).eps * (first.norm() + second.norm())
        left = h.norm() > rounding
        grown = torch.where(left, ((fused + own).norm() / h.norm()).clamp(min=1.0), 1.0)
        return torch.where(left, h, 0.0), self.options.gamma * grown

    @property
    def changes_update(self) -> bool:
        return bool(self.options.apply == "update")

    def after_step(self, update: Mapping[str, list[Tensor]], ctx: StepContext) -> None:
        for m, factors in self._factors.items():
            for n, factor in factors.items():
                update[m][n].mul_(factor)
