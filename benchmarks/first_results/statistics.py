"""From records to figures: impaired conditions, means and deviations over seeds, paired differences and what to call them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from equipoise.pipelines.comparing.statistics import POWER as POWER
from equipoise.pipelines.comparing.statistics import detectable as detectable
from equipoise.pipelines.comparing.statistics import holm as adjusted

LEVEL = 0.95
Record = Mapping[str, Any]
Runs = Mapping[int, Record]


def impaired(record: Record) -> dict[str, float]:
    """{modality: test accuracy where this one is missing}: the impaired conditions of BalGrad's protocol."""
    full = 2 ** len(record["modalities"]) - 1
    return {m: record["test"][str(full ^ 1 << i)]["accuracy"] for i, m in enumerate(record["modalities"])}


def alone(record: Record) -> dict[str, float]:
    """{modality: test accuracy with this one alone}."""
    return {m: record["test"][str(1 << i)]["accuracy"] for i, m in enumerate(record["modalities"])}


def measure(record: Record, name: str) -> float:
    """A figure of a run: "all", "Avg", "Gap", "subsets", "seconds", or "without", "alone", "contribution" and a modality.

    Avg and Gap as BalGrad's tables have them (mean and absolute difference of the two impaired accuracies), for any number
    of modalities: mean, and largest minus smallest, of the accuracies with one modality missing. "subsets" is the mean over
    all non-empty subsets, all modalities included, which is how GMD reports missing modalities.
    """
    kind, _, modality = name.partition(" ")
    if kind == "all":
        return float(record["test"][str(2 ** len(record["modalities"]) - 1)]["accuracy"])
    if kind in ("Avg", "Gap"):
        values = list(impaired(record).values())
        return float(np.mean(values)) if kind == "Avg" else max(values) - min(values)
    if kind == "subsets":
        return float(np.mean([cell["accuracy"] for cell in record["test"].values()]))
    if kind == "seconds":
        return float(record["seconds"]["cpu"])
    if kind == "contribution":
        return float(record["contributions"][modality])
    return {"without": impaired, "alone": alone}[kind](record)[modality]


def right(record: Record) -> np.ndarray:
    """bool [test rows, 2^M - 1]: which coalitions were right, in no order of the rows (`patterns` undone)."""
    codes = np.array([list(bytes.fromhex(code)) for code in record["patterns"]], np.uint8)
    width = 2 ** len(record["modalities"]) - 1
    return np.repeat(
        np.unpackbits(codes, axis=1, count=width, bitorder="little").astype(bool),
        list(record["patterns"].values()),
        axis=0,
    )


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation (n - 1) over n seeds; the deviation of one seed is NaN."""

    mean: float
    deviation: float
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else math.nan, len(values))


def spread(runs: Runs, name: str) -> Spread:
    return Spread.of([measure(record, name) for record in runs.values()])


@dataclass(frozen=True)
class Difference:
    """Mean of paired differences over n seeds, its confidence interval, the p-value of the t test, and their deviation."""

    mean: float
    low: float
    high: float
    p: float
    deviation: float
    n: int

    @property
    def verdict(self) -> str:
        """What the interval allows to say."""
        if self.n < 2:
            return "one seed"
        if self.low > 0:
            return "higher"
        if self.high < 0:
            return "lower"
        return "not distinguishable"


def paired(a: Sequence[float], b: Sequence[float]) -> Difference:
    """a - b over the same seeds in the same order: Student's paired t (scipy's `ttest_rel`), two-sided."""
    differences = np.asarray(a, float) - np.asarray(b, float)
    n, mean = len(differences), float(differences.mean())
    if n < 2:
        return Difference(mean, math.nan, math.nan, math.nan, math.nan, n)
    deviation = float(differences.std(ddof=1))
    if deviation < 1e-12:  # equal in every seed: t has no scale
        return Difference(mean, mean, mean, 1.0 if abs(mean) < 1e-12 else 0.0, 0.0, n)
    found = stats.ttest_rel(a, b)
    interval = found.confidence_interval(LEVEL)
    return Difference(mean, float(interval.low), float(interval.high), float(found.pvalue), deviation, n)


def compared(a: Runs, b: Runs, name: str) -> Difference:
    """The figure `name` of runs a minus that of runs b, seed by seed."""
    seeds = sorted(set(a) & set(b))
    return paired([measure(a[s], name) for s in seeds], [measure(b[s], name) for s in seeds])


def holm(ps: Sequence[float]) -> list[bool]:
    """Which of several tests hold when all are looked at together (Holm 1979). A NaN never does."""
    return [bool(p <= 1 - LEVEL) for p in adjusted(ps)]
