"""The statistics of a comparison: paired differences over seeds, a family of them, its correction, and what it could have found.

The unit of analysis is a seed: one training with its own draw of train and validation rows, first weights and order of rows.
The test rows of a data set are the same for all of them, so nothing here says what other test rows would have given.
docs/compare.md, "Statistics", has the reasons.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from scipy import optimize, stats

#: Of a family of tests: the probability of calling any difference where there is none.
LEVEL = 0.05
POWER = 0.8
#: Deviations below this share of the values are rounding: metrics are computed in float32, which keeps about 6e-8 of them,
#: so that five equal differences of accuracies differ by that much.
ROUNDING = 1e-6


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation (n - 1) over n seeds; the deviation of one seed is NaN, and so are both of none."""

    mean: float
    deviation: float
    n: int

    @classmethod
    def of(cls, values: Sequence[float] | np.ndarray) -> Spread:
        """Of the values that are there: NaNs are left out."""
        known = np.asarray(values, float)
        known = known[~np.isnan(known)]
        mean = float(known.mean()) if len(known) else math.nan
        return cls(mean, float(known.std(ddof=1)) if len(known) > 1 else math.nan, len(known))


class Paired(NamedTuple):
    """Many paired differences: arrays of one shape."""

    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    p: np.ndarray
    deviation: np.ndarray
    n: np.ndarray


def paired(a: np.ndarray | Sequence[float], b: np.ndarray | Sequence[float]) -> Paired:
    """a - b seed by seed, over the last axis: mean, 95 % interval and two-sided p of Student's paired t (scipy's `ttest_rel`).

    Args:
        a: values [..., seeds], NaN where a seed has no run.
        b: values of the reference, of a shape that goes with that of `a`.

    A pair of which either is NaN is left out; fewer than two pairs have no p and no interval. Where the differences are equal in
    every seed, t has no scale: the interval is their one value, p is 1 where that is zero, else that of the exact sign test,
    2^(1 - n): all that n equal signs say (.0625 for five). It is a matter of a few test rows where it occurs, and p = 0 there
    would call one row's difference the surest of all.
    """
    first, second = np.broadcast_arrays(np.asarray(a, float), np.asarray(b, float))
    differences = first - second
    known = ~np.isnan(differences)
    n = known.sum(-1)
    mean = np.where(known, differences, 0).sum(-1) / np.maximum(n, 1)
    squares = np.where(known, differences - mean[..., None], 0) ** 2
    deviation = np.sqrt(squares.sum(-1) / np.maximum(n - 1, 1))
    size = np.where(known, np.maximum(np.abs(first), np.abs(second)), 0).max(-1, initial=0)
    equal = (n > 1) & (deviation <= ROUNDING * size)
    p, low, high = (np.full(mean.shape, math.nan) for _ in range(3))
    tested = (n > 1) & ~equal
    if tested.any():
        found = stats.ttest_rel(first[tested], second[tested], axis=-1, nan_policy="omit")
        interval = found.confidence_interval(1 - LEVEL)
        p[tested], low[tested], high[tested] = found.pvalue, interval.low, interval.high
    p[equal] = np.where(np.abs(mean) <= ROUNDING * size, 1.0, 2.0 ** (1 - np.maximum(n, 1)))[equal]
    low[equal], high[equal], deviation[equal] = mean[equal], mean[equal], 0.0
    deviation = np.where(n > 1, deviation, math.nan)
    return Paired(np.where(n > 0, mean, math.nan), low, high, p, deviation, n)


def holm(ps: Sequence[float] | np.ndarray) -> np.ndarray:
    """Adjusted p-values of a family (Holm 1979): those at most `LEVEL` hold together, with a probability of at most `LEVEL` that
    any of no difference is among them, however the tests hang together. NaN stays NaN and is none of the family.

    Equal to statsmodels' `multipletests`, which collects the garbage of the whole process in every call (.02 to .7 s).
    """
    given = np.asarray(ps, float)
    adjusted = np.full(given.shape, math.nan)
    order = np.argsort(given, kind="stable")[: int((~np.isnan(given)).sum())]  # NaN comes last
    steps = given[order] * np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1)
    return adjusted


@dataclass(frozen=True)
class Difference:
    """A paired difference over n seeds and its place in a family: `p` by itself, `adjusted` with the others."""

    mean: float
    low: float
    high: float
    p: float
    deviation: float
    n: int
    adjusted: float = math.nan

    @classmethod
    def of(cls, a: Sequence[float] | np.ndarray, b: Sequence[float] | np.ndarray) -> Difference:
        """a - b, seed by seed."""
        return cls.each(paired(np.asarray(a, float)[None], np.asarray(b, float)[None]))[0]

    @classmethod
    def each(cls, found: Paired) -> list[Difference]:
        rows = zip(*(np.ravel(column).tolist() for column in found), strict=True)
        return [cls(mean, low, high, p, deviation, int(n)) for mean, low, high, p, deviation, n in rows]

    @property
    def verdict(self) -> str:
        """What the corrected test allows to say: "higher", "lower", "not distinguishable", or why it says nothing."""
        if self.n < 2:
            return "one seed" if self.n else "not run"
        if self.adjusted <= LEVEL:
            return "higher" if self.mean > 0 else "lower"
        return "not distinguishable"

    @property
    def alone(self) -> bool:
        """Whether p by itself, uncorrected, would have called it."""
        return self.p <= LEVEL


def family(a: np.ndarray, b: np.ndarray) -> list[Difference]:
    """All differences that are looked at together, [tests, seeds] each side, with their adjusted p."""
    found = paired(a, b)
    return [replace(d, adjusted=float(p)) for d, p in zip(Difference.each(found), holm(found.p), strict=True)]


def detectable(n: int, level: float = LEVEL, power: float = POWER) -> float:
    """The true mean difference, in standard deviations of the paired differences, that a two-sided t test over n seeds calls at
    `level` with probability `power`: from the non-central t distribution. NaN below two seeds.

    statsmodels' `TTestPower` gives the same at .05 and for many seeds; at the levels of a family of a hundred tests over five
    seeds its root finder stops at NaNs and returns a third too little without a word.
    """
    if n < 2:
        return math.nan
    critical = float(stats.t.isf(level / 2, n - 1))

    def missing(size: float) -> float:
        return float(stats.nct.sf(critical, n - 1, size * math.sqrt(n))) - power

    # t = (size sqrt(n) + normal) / chi: beyond the critical value times the upper quantile of chi, and 3, power is above .99.
    chi = math.sqrt(float(stats.chi2.isf(1e-3, n - 1)) / (n - 1))
    return float(optimize.brentq(missing, 1e-6, (critical * chi + 3) / math.sqrt(n)))
