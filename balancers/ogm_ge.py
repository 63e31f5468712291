"""OGM-GE: gradient modulation with generalisation enhancement."""

from collections.abc import Mapping

import torch
from torch import Tensor

from equipoise.balancers.context import StepContext
from equipoise.balancers.ogm import OGM


class OGMGE(OGM):
    """OGM, then Gaussian noise on the modulated gradient (Peng et al., CVPR 2022, section 3.3).

        g <- k_m g + N(0, std(g)^2), tensor by tensor, std that of the gradient before it is scaled

    in the epochs that are modulated, for the weights (two dimensions or more) that a modality owns; biases and gains get
    no noise. The noise is drawn from (seed, step, tensor), so it is the same on every worker. The authors' code adds
    noise to 4-D weights only and draws it anew on every worker, so replicas drift apart.
    """

    name = "ogm_ge"

    def modulate(self, gradients: Mapping[str, list[Tensor]], ctx: StepContext) -> None:
        deviations = {
            m: [float(g.std()) if g.ndim >= 2 and g.numel() > 1 else 0.0 for g in gradients[m]] for m in ctx.modalities
        }
        super().modulate(gradients, ctx)
        if not self.active(ctx):
            return
        generator = ctx.generator("ogm_ge")
        for m in self._k:
            for g, deviation in zip(gradients[m], deviations[m], strict=True):
                if deviation > 0:
                    noise = torch.randn(g.shape, generator=generator, dtype=torch.float64)
                    g.add_(noise.to(g), alpha=deviation)
