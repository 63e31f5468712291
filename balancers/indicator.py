"""The gradient indicator: how large the objectives' gradients are, and how far they point apart."""

import math
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from equipoise.balancers.gradients import CHUNK, Gradients

#: Steps from one look at a method's own gradients to the next, where no monitor says otherwise: the products of every pair
#: in float64 are another pass over all gradients.
EVERY = 10
#: Up to so many objectives every pair is a number of its own (all sets of four modalities are 15), above only their summary.
PAIRED = 15


@dataclass(frozen=True)
class Indicator:
    """What k gradients look like beside each other (Wang et al., AAAI 2024, "Gradient indicator of modality dominance").

    - `names`: of the k objectives.
    - `norms` [k]: 2-norm over all parameters that an objective reaches.
    - `products` [k, k]: inner products of each pair over the parameters that both reach.
    - `cosines` [k, k]: likewise; NaN where the two reach nothing in common or one of the gradients is zero there.

    All float64.
    """

    names: tuple[str, ...]
    norms: Tensor
    products: Tensor
    cosines: Tensor

    @property
    def angles(self) -> Tensor:
        """Degrees in [0, 180], NaN where there is no cosine: [k, k]."""
        return torch.rad2deg(torch.acos(self.cosines.clamp(-1, 1)))

    @property
    def conflicts(self) -> float:
        """The share of the pairs that have an angle in which it is obtuse; NaN where no pair has one."""
        i, j = torch.triu_indices(len(self.names), len(self.names), 1)
        there = self.cosines[i, j][~self.cosines[i, j].isnan()]
        return float((there < 0).double().mean())

    @property
    def dominance(self) -> float:
        """The largest norm over the smallest; inf where one is zero, NaN where all are."""
        low, high = float(self.norms.min()), float(self.norms.max())
        return high / low if low > 0 else (math.inf if high > 0 else math.nan)

    @property
    def along(self) -> Tensor:
        """How far the plain sum goes along each objective's gradient, (sum_i K_ij) / sqrt(K_jj): [k], NaN for a zero one."""
        return self.products.sum(dim=0) / self.norms.masked_fill(self.norms == 0, math.nan)

    def numbers(self, where: str) -> dict[str, float]:
        """{"<where>/norm/a": ..., "<where>/along/a": ..., "<where>/cosine/a/b": ..., "<where>/conflicts": ...,
        "<where>/dominance": ...}; without the cosines where there are more than `PAIRED` objectives.
        """
        pairs = combinations(range(len(self.names)), 2) if len(self.names) <= PAIRED else ()
        cosines = self.cosines.tolist()
        return {
            **{f"{where}/norm/{name}": n for name, n in zip(self.names, self.norms.tolist(), strict=True)},
            **{f"{where}/along/{name}": a for name, a in zip(self.names, self.along.tolist(), strict=True)},
            **{f"{where}/cosine/{self.names[i]}/{self.names[j]}": cosines[i][j] for i, j in pairs},
            f"{where}/conflicts": self.conflicts,
            f"{where}/dominance": self.dominance,
        }


Grams = list[tuple[Tensor, Tensor]]
"""Inner products float64 [k, k] of neighbouring parameters that the same objectives bool[k] reach, region by region."""


def region_grams(gradients: Gradients) -> Grams:
    """One pass over all gradients: what every number of the indicator is made of."""
    return [(gradients.products([span]), reached.to(gradients.flat.device)) for span, reached in gradients.regions()]


def indicate(grams: Grams, names: tuple[str, ...], calibrated: Tensor | None = None) -> Indicator:
    """The indicator of k gradients; with `calibrated` C [k, k] that of C G, row i the calibrated gradient of objective i in
    terms of the originals, each pair over the same parameters as before.
    """
    if calibrated is not None:
        c = calibrated.to(grams[0][0]) if grams else calibrated
        grams = [(c @ gram @ c.T, reached) for gram, reached in grams]
    return _over(grams, names)


def _over(regions: Grams, names: tuple[str, ...]) -> Indicator:
    k = len(names)
    products = torch.zeros(k, k, dtype=torch.float64, device=regions[0][0].device if regions else None)
    squares = products.clone()  # [i, j]: |g_i|^2 over what i and j both reach
    for gram, reached in regions:
        both = reached[:, None] & reached[None, :]
        products += torch.where(both, gram, 0.0)
        squares += torch.where(both, gram.diagonal()[:, None].expand(k, k), 0.0)
    # The roots are taken one by one: the product of two squares of small norms is 0 long before they are.
    scale = squares.clamp(min=0).sqrt() * squares.T.clamp(min=0).sqrt()
    cosines = (products / scale.masked_fill(scale == 0, math.nan)).clamp(-1, 1)
    norms = squares.diagonal().clamp(min=0).sqrt()
    return Indicator(names, norms.cpu(), products.cpu(), cosines.cpu())


def towards(gradients: Gradients, combined: Tensor) -> dict[str, float]:
    """How the step lies to each objective: {"gradient/towards/a": its cosine with the gradient of a, over what that reaches;
    NaN where one is zero}, and in "gradient/opposed" how many objectives it raises to first order.
    """
    k = len(gradients.names)
    products, own, step = gradients.flat.new_zeros(3, k, dtype=torch.float64)
    for span, reached in gradients.regions():
        there = reached.to(combined.device)
        for start in range(span.start, span.stop, CHUNK):
            part = slice(start, min(start + CHUNK, span.stop))
            g, c = gradients.flat[:, part].double(), combined[part].double()
            products += torch.where(there, g @ c, 0.0)
            own += torch.where(there, g.square().sum(dim=1), 0.0)
            step += torch.where(there, c @ c, 0.0)
    scale = own.sqrt() * step.sqrt()
    cosines = (products / scale.masked_fill(scale == 0, math.nan)).tolist()
    found = {f"gradient/towards/{name}": c for name, c in zip(gradients.names, cosines, strict=True)}
    return found | {"gradient/opposed": float(sum(c < 0 for c in cosines))}
