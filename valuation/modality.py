"""Modality-level resampling: the modality that contributes least on average is learnt again, from random samples."""

from collections.abc import Iterable, Mapping
from fractions import Fraction
from math import tanh
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from equipoise.valuation.coalitions import presence
from equipoise.valuation.draws import bounded, draw
from equipoise.valuation.gather import mean_contributions
from equipoise.valuation.plan import Plan
from equipoise.valuation.resampler import Resampler, Schedule
from equipoise.valuation.values import Values

Func = Literal["linear", "tanh", "power"]


class ModalityOptions(Schedule):
    """- `alpha`, `func`: how the gap becomes a probability, see `probability`.
    - `part_ratio`: the share of rows that are valued, drawn anew for each sweep.
    """

    alpha: float = Field(1.0, ge=0)
    func: Func = "linear"
    part_ratio: float = Field(0.2, gt=0, le=1)


class ModalityLevel(Resampler):
    """int(p N) distinct samples get one copy of modality m. Wei et al. (CVPR 2024), modality-level.

    m = argmin of the mean contributions phi_m over the valued rows that have it (ties: the first);
    d = mean of the others' means - phi_m;  p = `probability`(d).
    The samples are drawn among those that have m and something else: alone, m is its own original.

    Differences from the authors' code: only part_ratio * N rows are valued (there, all, and then 20 % are looked at); both
    draws are without replacement; p is clipped to [0, 1] and exact for func="linear"; any number of modalities.
    """

    name = "modality"
    needs_values = True
    Options = ModalityOptions
    options: ModalityOptions

    def valued_ids(self, num_rows: int, epoch: int, seed: int) -> NDArray[np.int64] | None:
        """int(part_ratio * N) ids, at least one."""
        count = max(1, int(Fraction(str(self.options.part_ratio)) * num_rows))
        return draw(np.arange(num_rows), count, seed, "valued", epoch)

    def _plan(
        self,
        epoch: int,
        values: Iterable[Values],
        num_rows: int,
        num_modalities: int,
        seed: int,
        present: NDArray[np.bool_] | None,
        state: NDArray[np.float64] | None,
    ) -> Plan:
        plan = Plan.plain(num_rows, num_modalities)
        there = presence(present, (num_rows, num_modalities))
        low, gap = lowest(mean_contributions(values, there))
        p = probability(gap, num_modalities, self.options.alpha, self.options.func)
        eligible = np.flatnonzero(there[:, low] & (there.sum(axis=1) > 1))
        plan.copies[draw(eligible, int(p * num_rows), seed, "modality", epoch), low] = 1
        return Plan(bounded(plan.copies, self.options.max_entries, seed, epoch), plan.repeats)


def lowest(means: Mapping[int, Fraction]) -> tuple[int, Fraction]:
    """The modality with the lowest mean contribution, and how far it lies below the mean of the others (0 if it is alone)."""
    low = min(means, key=lambda m: (means[m], m))
    others = [mean for m, mean in means.items() if m != low]
    return low, sum(others, Fraction(0)) / len(others) - means[low] if others else Fraction(0)


def probability(gap: Fraction, num_modalities: int, alpha: float = 1.0, func: Func = "linear") -> Fraction:
    """p in [0, 1] from x = gap * 2 / (M + 1), which is gap over the largest contribution there is: alpha * x ("linear"),
    tanh(alpha * x) or alpha * x ** 1.5 ("power").

    Linear is an exact rational: int(p * N) must not lose a sample to a rounding just below an integer (means 1.3 and 0.7 at
    N = 1000 are 400 copies).
    """
    x, a = gap * Fraction(2, num_modalities + 1), Fraction(str(alpha))
    if func == "linear":
        p = a * x
    elif func == "tanh":
        p = Fraction(tanh(a * x))
    else:
        p = Fraction(alpha * float(x) ** 1.5)
    return min(max(p, Fraction(0)), Fraction(1))
