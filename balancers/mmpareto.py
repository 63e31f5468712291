"""MMPareto: unimodal assistance along the Pareto direction, at no smaller a magnitude."""

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

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
    """

    name = "mmpareto"
    accepts = ("split", "heads")

    class Options(BaseModel):
        model_config = ConfigDict(frozen=True, extra="forbid")
        gamma: float = Field(1.5, gt=0, description="how much larger an encoder's gradient is made")

    def combine(self, gradients: Gradients, ctx: StepContext) -> Tensor:
        combined = gradients.flat.sum(dim=0)
        encoders = {m: self.encoder(gradients, m) for m in ctx.modalities if m in gradients.names}
        if not encoders:
            return combined
        shares, cosines = zip(*(self.share(gradients, m, parts) for m, parts in encoders.items()), strict=True)
        agreed = ctx.agreed(combined.new_tensor(shares, dtype=torch.float64)).tolist()
        for (m, parts), share, cosine in zip(encoders.items(), agreed, cosines, strict=True):
            plain, made = combined.new_zeros(2)
            for part in parts:
                plain += combined[part].square().sum()
                combined[part] = self.along(
                    gradients.flat[0, part], gradients.flat[gradients.names.index(m), part], share
                )
                made += combined[part].square().sum()
            ctx.report(f"mmpareto_cosine_{m}", cosine)
            ctx.report(f"mmpareto_conflict_{m}", float(cosine < 0))
            ctx.report(f"mmpareto_fused_share_{m}", share)
            ctx.report(f"mmpareto_gain_{m}", float((made / plain).sqrt()) if plain > 0 else 0.0)
        return combined

    def encoder(self, gradients: Gradients, modality: str) -> list[slice]:
        """The tensors that a modality owns and that both its own loss and the fused one reach."""
        owned = gradients.layout.owners[modality]
        both = gradients.reached[[0, gradients.names.index(modality)]].all(dim=0).tolist()
        return [
            part
            for part, reached in zip(gradients.layout.tensors, both, strict=True)
            if reached and owned.start <= part.start < owned.stop
        ]

    def share(self, gradients: Gradients, modality: str, parts: list[slice]) -> tuple[float, float]:
        """a_1, the fused gradient's share in an encoder, and the cosine of the two gradients."""
        rows = [0, gradients.names.index(modality)]
        gram = gradients.products(parts)[rows][:, rows]
        lengths = float(gram[0, 0].sqrt() * gram[1, 1].sqrt())
        if lengths == 0:
            return 0.5, 0.0
        return (0.5 if gram[0, 1] > 0 else float(min_norm_weights(gram)[0])), float(gram[0, 1]) / lengths

    def along(self, fused: Tensor, own: Tensor, share: float) -> Tensor:
        """The gradient of one tensor, from those of the two losses."""
        first, second = 2 * share * fused, 2 * (1 - share) * own
        h = first + second
        # What is left of two gradients that cancel is rounding: it must not be blown up to their size.
        rounding = 64 * torch.finfo(h.dtype).eps * (first.norm() + second.norm())
        grown = ((fused + own).norm() / h.norm()).clamp(min=1.0)
        return torch.where(h.norm() > rounding, self.options.gamma * grown * h, 0.0)
