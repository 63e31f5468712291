"""Synthetic families of comparisons in which nothing differs: the same method under different names, row by row.

Whether a test row is predicted rightly, in one condition (all modalities, or one missing), is a latent normal above zero:

    z[m, s, i] = h + R[i] + Q[s, i] + S[s] + T[m, s] + E[m, s, i],    variances row + row_seed + seed + training + rest = 1

for method m, seed s, test row i. R: how hard the row is for every training; Q: for the trainings of one seed, which share their
train rows and first weights; S: how good a seed is; T: how good one training is, whatever the row. Two methods within a seed
agree on a row by row + row_seed + seed (a tetrachoric correlation), two seeds by row, which is 0 where each seed has test rows
of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import integrate, optimize, stats

from equipoise.models.errors import EquipoiseError
from equipoise.pipelines.comparing.statistics import LEVEL, detectable, holm, paired

#: Cells of latent normals that are drawn at once.
CELLS = 4_000_000


@dataclass(frozen=True)
class Pattern:
    """Of what a data set's figure is made: the mean, over conditions, of the share of `rows` test rows that are right.

    `shares` of right rows, a condition each; variances of the latent normal as above, the same in every condition. Row effects of
    two conditions are independent, seed and training effects are one for all.
    """

    shares: tuple[float, ...]
    rows: int
    row: float
    row_seed: float
    seed: float = 0.0
    training: float = 0.0

    def __post_init__(self) -> None:
        if min(self.row, self.row_seed, self.seed, self.training, self.rest) < 0:
            raise EquipoiseError(f"The variances of a pattern must be at least 0 and at most 1 in all, found {self}.")

    @property
    def rest(self) -> float:
        return 1 - self.row - self.row_seed - self.seed - self.training

    def right(self, methods: int, seeds: int, rng: np.random.Generator, families: int = 1) -> np.ndarray:
        """bool [families, conditions, methods, seeds, rows]: which rows are right."""
        n, c = self.rows, len(self.shares)

        def normal(variance: float, *shape: int) -> np.ndarray:
            drawn = rng.standard_normal((families, *shape), np.float32)
            return np.multiply(drawn, np.float32(math.sqrt(variance)), out=drawn)

        z = normal(self.rest, c, methods, seeds, n)
        z += stats.norm.ppf(self.shares).astype(np.float32)[:, None, None, None]
        z += normal(self.row, c, 1, 1, n) + normal(self.row_seed, c, 1, seeds, n)
        z += normal(self.seed, 1, 1, seeds, 1) + normal(self.training, 1, methods, seeds, 1)
        return z > 0

    def figures(self, methods: int, seeds: int, rng: np.random.Generator, families: int) -> np.ndarray:
        """float [families, methods, seeds]: the figure of every training."""
        size = max(1, CELLS // (len(self.shares) * methods * seeds * self.rows))
        parts = [min(size, families - at) for at in range(0, families, size)]
        return np.concatenate([self.right(methods, seeds, rng, k).mean((1, 4)) for k in parts])


def agreement(share: float, correlation: float) -> float:
    """Probability that two rows of a share of right ones are both right, by the correlation of their latent normals."""
    h2 = float(stats.norm.ppf(share)) ** 2
    # d Phi2(h, h; r) / dr is the density of two normals at (h, h); r = sin(angle) takes its pole at 1 away.
    found = integrate.quad(lambda a: math.exp(-h2 / (1 + math.sin(a))), 0, math.asin(correlation))[0]
    return share**2 + found / (2 * math.pi)


def correlation(share: float, both: float) -> float:
    """The tetrachoric correlation: `agreement` the other way; between 0 and .999."""
    low, high = (agreement(share, r) - both for r in (0.0, 0.999))
    if low >= 0 or high <= 0:
        return 0.0 if low >= 0 else 0.999
    return float(optimize.brentq(lambda r: agreement(share, r) - both, 0.0, 0.999))


def row_correlations(right: np.ndarray, same_rows: bool = True) -> tuple[float, float]:
    """Latent correlations on the same row: (between methods within a seed, between seeds), the latter of different methods.

    Args:
        right: bool [methods, seeds, rows]. Methods may differ in how good they are: it is the mean share that counts.
        same_rows: whether row i is the same in every seed; else there is nothing between seeds.
    """
    x = right.astype(float)
    methods, seeds, rows = x.shape
    share = float(x.mean())
    if not 0 < share < 1:
        return 0.0, 0.0
    by_seed, by_method = x.sum(0), x.sum(1)
    within = float((by_seed**2 - by_seed).sum()) / (methods * (methods - 1) * seeds * rows)
    everything = by_seed.sum(0) ** 2 - (by_seed**2).sum(0) - (by_method**2).sum(0) + x.sum((0, 1))
    between = float(everything.sum()) / (methods * (methods - 1) * seeds * (seeds - 1) * rows)
    inner = correlation(share, within)
    return inner, min(correlation(share, between), inner) if same_rows else 0.0


def fit(right: np.ndarray, scores: np.ndarray, same_rows: bool = True) -> Pattern:
    """The pattern of a data set's figure.

    Args:
        right: bool [methods, seeds, rows], of the condition with all modalities: gives the correlations on a row, which are taken
            for those of every condition.
        scores: float [conditions, methods, seeds], the shares of right rows: give their level, and how much seeds and trainings
            differ beyond what their rows explain, once the mean of a method is taken out.
        same_rows: whether row i is the same in every seed.
    """
    inner, between = row_correlations(right, same_rows)
    conditions, methods, seeds = scores.shape
    rows = right.shape[2]
    shares = np.clip(scores.mean((1, 2)), 0.5 / rows, 1 - 0.5 / rows)
    figure = scores.mean(0)
    left = figure - figure.mean(1, keepdims=True)
    of_seeds = left.mean(0)
    left = left - of_seeds
    found = float((left**2).sum()) / ((methods - 1) * (seeds - 1))
    # What rows alone make the figure of one training, and the mean of a seed, differ by.
    apart = [(p - agreement(p, inner)) / rows / conditions for p in shares]
    drawn = [(agreement(p, inner) - agreement(p, between)) / rows / conditions for p in shares]
    slope = float(np.mean(stats.norm.pdf(stats.norm.ppf(shares))))
    training = max(found - float(np.mean(apart)), 0.0) / slope**2
    between_seeds = float(of_seeds.var(ddof=1)) - found / methods - float(np.mean(drawn))
    seed = max(between_seeds, 0.0) / slope**2
    # Seed and training effects are of the whole figure, and small beside 1; the rest keeps a share.
    seed = min(seed, 0.2)
    training = min(training, max(0.95 - inner - seed, 0.0))
    return Pattern(tuple(map(float, shares)), rows, between, max(inner - between - seed, 0.0), seed, training)


def patterns_of(runs: pd.DataFrame, figure: str, phase: str = "steps") -> dict[str, Pattern]:
    """{data set: its pattern} from a frame of runs (docs/compare.md): "full" or "missing Avg". Data sets of which fewer than two
    methods have two seeds, or whose predictions are not right or wrong, are not in it."""
    some = runs[(runs["phase"] == phase) & (runs["status"] == "done") & runs["right"].notna()]
    out = {}
    for data in dict.fromkeys(some["data"]):
        rows = some[some["data"] == data]
        modalities = list(rows["modalities"].iloc[0])
        names = ["test/full"] if figure == "full" else [f"test/missing/{m}" for m in modalities]
        wide = rows.pivot(index="method", columns="seed", values=["right", "test_rows", *names]).dropna()
        seeds = sorted(set(rows["seed"]))
        if len(wide) < 2 or len(seeds) < 2:
            continue
        counts = wide["test_rows"].iloc[0].astype(int)
        n = int(counts.min())
        bits = [[np.unpackbits(np.frombuffer(b, np.uint8), count=n) for b in line] for line in wide["right"].to_numpy()]
        scores = np.stack([wide[name].to_numpy(float) for name in names])
        # Folds test on other rows, and on another number of them.
        out[data] = fit(np.array(bits, bool), scores, same_rows=counts.nunique() == 1)
    return out


@dataclass(frozen=True)
class Rates:
    """What the tests made of families of the same method: the share of families in which they called any difference, and the
    share of planted ones that they called.

    `planted` is found with a probability of at least 80 % if the promise of `detectable` holds.
    """

    families: int
    tests: int
    error: float
    planted: float

    @property
    def standard_error(self) -> float:
        """Binomial, at the level."""
        return math.sqrt(LEVEL * (1 - LEVEL) / self.families)

    @property
    def bound(self) -> float:
        return LEVEL + 2 * self.standard_error


#: p-values of figures a minus b over the last axis.
Test = Callable[[np.ndarray, np.ndarray], np.ndarray]
Correction = Callable[[np.ndarray], np.ndarray]


def rates(
    patterns: Sequence[Pattern],
    methods: int,
    seeds: int,
    families: int,
    rng: np.random.Generator,
    test: Test = lambda a, b: paired(a, b).p,
    correction: Correction = holm,
) -> Rates:
    """Families of `methods` names of one method on a data set for each pattern, the first name being the reference.

    The planted difference is added to the figure of the second name on every data set: what `detectable` promises to be found at
    the first step of the correction, from the deviation that paired differences have here.
    """
    drawn = [pattern.figures(methods, seeds, rng, families) for pattern in patterns]
    a = np.stack([figures[:, 1:] for figures in drawn], 1)
    b = np.stack([figures[:, :1] for figures in drawn], 1)
    tests = len(patterns) * (methods - 1)
    size = detectable(seeds, LEVEL / tests)
    deviations = (a - b).std(-1, ddof=1)
    # The root mean square: the deviation that the differences are drawn with, not that of a few seeds.
    shift = size * np.sqrt((deviations**2).mean((0, 2)))
    better = a.copy()
    better[:, :, 0] += shift[:, None]
    plain, moved = (test(x, np.broadcast_to(b, a.shape)).reshape(families, tests) for x in (a, better))
    planted = np.arange(len(patterns)) * (methods - 1)
    any_called = [bool((correction(p) <= LEVEL).any()) for p in plain]
    found = [float((correction(p)[planted] <= LEVEL).mean()) for p in moved]
    return Rates(families, tests, float(np.mean(any_called)), float(np.mean(found)))
