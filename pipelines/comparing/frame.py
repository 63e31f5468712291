"""The frame of all runs as a comparison: figures of a run, families of tests, costs, and what is not there.

It is read as far as it is: methods refused, failed or not finished on a data set leave holes, and `absent` names them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from functools import cache, cached_property

import numpy as np
import pandas as pd

from equipoise.models.errors import EquipoiseError
from equipoise.pipelines.comparing.statistics import LEVEL, Difference, Spread, detectable, family
from equipoise.pipelines.impaired import avg_and_gap

#: Test figures of a run.
FIGURES = ("full", "missing Avg", "missing Gap", "noisy Avg", "noisy Gap")
#: What all methods are compared with.
REFERENCES = ("joint", "summed")
#: Kinds of final runs, and what is equal in them.
PHASES = {"steps": "equal optimiser steps", "time": "equal processor time"}
#: Metrics of which lower is better, as the tasks have them (`Task.lower_is_better`).
LOWER_IS_BETTER = ("mae", "mse", "rmse", "loss")

_NEEDED = ("data", "method", "phase", "seed", "status")
_KEY = ["data", "method", "phase", "seed"]
Tests = dict[tuple[str, str], Difference]
Planned = Mapping[str, Mapping[str, Sequence[int]]]


def figures(row: pd.Series) -> dict[str, float]:
    """{name of `FIGURES`: value} of a final run; Avg and Gap by `avg_and_gap`. NaN where a part of it is missing."""
    modalities = [] if row["modalities"] is None else list(row["modalities"])
    out = {"full": _number(row.get("test/full"))}
    for kind in ("missing", "noisy"):
        scores = [_number(row.get(f"test/{kind}/{m}")) for m in modalities]
        known = bool(scores) and not any(map(math.isnan, scores))
        out[f"{kind} Avg"], out[f"{kind} Gap"] = avg_and_gap(scores) if known else (math.nan, math.nan)
    return out


def _number(value: object) -> float:
    return math.nan if value is None else float(value)  # type: ignore[arg-type]


class Comparison:
    """All runs of a comparison.

    Args:
        runs: a row a training that was finished, failed or refused (docs/compare.md has the columns), in any order but that
            data sets keep the order in which they come.
        planned: {data set: {method: seeds}} of the final runs that there are to be. Without it, that is every seed of the data
            set for every method that has a row on it.
    """

    def __init__(self, runs: pd.DataFrame, planned: Planned | None = None, equal_time: bool = True) -> None:
        runs = runs if len(runs.columns) else pd.DataFrame(columns=list(_NEEDED))
        lacking = [name for name in _NEEDED if name not in runs]
        if lacking:
            raise EquipoiseError(
                f"The frame of runs has no column {', '.join(lacking)}. Give the runs.parquet that `equipoise compare` wrote."
            )
        self.runs = runs.reset_index(drop=True)
        self.planned = planned
        #: Kinds of final runs that there are to be.
        self.expected = tuple(PHASES) if equal_time else ("steps",)
        plans = [(d, m) for d, methods in (planned or {}).items() for m in methods]
        self.data: list[str] = list(dict.fromkeys([*(d for d, _ in plans), *self.runs["data"]]))
        self.methods: list[str] = sorted({*(m for _, m in plans), *self.runs["method"]}, key=lambda m: ("+" in m, m))
        refused = self.runs[self.runs["status"] == "refused"]
        #: {(data set, method): the sentence}
        self.refused = {
            (d, m): str(e) for d, m, e in refused.reindex(columns=["data", "method", "error"]).itertuples(index=False)
        }

    @cached_property
    def final(self) -> pd.DataFrame:
        """The finished final runs, with their figures as columns."""
        some = self.runs[self.runs["phase"].isin(PHASES) & (self.runs["status"] == "done")]
        twice = some[some.duplicated(_KEY, keep=False)]
        if len(twice):
            d, m, phase, seed = twice.iloc[0][_KEY]
            raise EquipoiseError(
                f"The frame of runs has two finished runs of {m} on {d}, phase {phase}, seed {seed}. "
                "Which of them counts is not for the statistics to say: leave one out."
            )
        found = pd.DataFrame(
            [figures(row) for _, row in some.iterrows()], some.index, columns=list(FIGURES), dtype=float
        )
        return pd.concat([some.drop(columns=[c for c in FIGURES if c in some]), found], axis=1)

    @cached_property
    def phases(self) -> list[str]:
        """Those that have a finished run."""
        return [phase for phase in PHASES if (self.final["phase"] == phase).any()]

    @cached_property
    def _wide(self) -> dict[tuple[str, str], pd.DataFrame]:
        """{(phase, column): seeds along, (data set, method) down}."""
        columns = [*FIGURES, *(c for c in ("seconds", "memory", "passes", "sweeps", "steps") if c in self.final)]
        return {
            (phase, c): some.pivot(index=["data", "method"], columns="seed", values=c).astype(float)
            for phase in self.phases
            for some in [self.final[self.final["phase"] == phase]]
            for c in columns
        }

    def values(self, phase: str, data: str, method: str, column: str) -> np.ndarray:
        """float [seeds of the whole comparison] of a figure or a cost, NaN where there is no run."""
        wide = self._wide.get((phase, column))
        if wide is None:
            return np.full(0, math.nan)
        return wide.reindex(index=[(data, method)]).to_numpy()[0]

    def spread(self, phase: str, data: str, method: str, column: str) -> Spread:
        return Spread.of(self.values(phase, data, method, column))

    def seeds(self, phase: str, data: str) -> list[int]:
        """Seeds of which any method has a final run on the data set, finished or failed."""
        some = self.runs[
            (self.runs["phase"] == phase) & (self.runs["data"] == data) & (self.runs["status"] != "refused")
        ]
        return sorted(int(s) for s in set(some["seed"]))

    def ran(self, phase: str, data: str) -> list[str]:
        """Methods with a finished final run on the data set."""
        some = self.final[(self.final["phase"] == phase) & (self.final["data"] == data)]
        there = set(some["method"])
        return [m for m in self.methods if m in there]

    def lower_is_better(self, data: str) -> bool:
        return self.metric(data) in LOWER_IS_BETTER

    def metric(self, data: str) -> str:
        """Name of the data set's headline metric."""
        some = self.final[self.final["data"] == data]
        known = some["metric"].dropna() if "metric" in some else some["data"].iloc[:0]
        return str(known.iloc[0]) if len(known) else "accuracy"

    @cache  # noqa: B019  a Comparison lives as long as its page is made
    def family(self, phase: str, figure: str, reference: str) -> Tests:
        """{(data set, method): its difference to the reference}: every method on every data set, corrected together."""
        pairs = [
            (d, m) for d in self.data for m in self.ran(phase, d) if m != reference and reference in self.ran(phase, d)
        ]
        if not pairs:
            return {}
        a = np.stack([self.values(phase, d, m, figure) for d, m in pairs])
        b = np.stack([self.values(phase, d, reference, figure) for d, _ in pairs])
        return dict(zip(pairs, family(a, b), strict=True))

    def tests(self, phase: str, figure: str, reference: str) -> int:
        """How many tests the family has: those of at least two seeds."""
        return sum(not math.isnan(d.p) for d in self.family(phase, figure, reference).values())

    def deviation(self, phase: str, data: str, figure: str, reference: str) -> float:
        """Median over methods of the deviation of their paired differences to the reference; NaN without two seeds."""
        found = [d.deviation for (name, _), d in self.family(phase, figure, reference).items() if name == data]
        known = [x for x in found if not math.isnan(x)]
        return float(np.median(known)) if known else math.nan

    def detectable(self, phase: str, data: str, figure: str, reference: str, n: int, corrected: bool) -> float:
        """The smallest true difference that n seeds call with probability 80 %: as a test by itself, or at the first step of
        Holm's correction of the family (Bonferroni's level)."""
        tests = self.tests(phase, figure, reference)
        level = LEVEL / max(tests, 1) if corrected else LEVEL
        return detectable(n, level) * self.deviation(phase, data, figure, reference)

    def seconds_ratio(self, phase: str, data: str, method: str, reference: str = "joint") -> float:
        """Processor seconds over those of the reference, median over the seeds that both have."""
        a, b = (self.values(phase, data, m, "seconds") for m in (method, reference))
        both = ~np.isnan(a) & ~np.isnan(b) if len(a) else np.zeros(0, bool)
        return float(np.median(a[both] / b[both])) if both.any() else math.nan

    def cost(self, phase: str, data: str, method: str, column: str) -> float:
        """Median over seeds: other work on a machine, and the first training of a process, make single ones dear."""
        found = self.values(phase, data, method, column)
        return float(np.median(found[~np.isnan(found)])) if (~np.isnan(found)).any() else math.nan

    def tuning(self, data: str, method: str) -> pd.DataFrame:
        """The rows of its tuning, in the order of their configurations."""
        some = self.runs[(self.runs["data"] == data) & (self.runs["method"] == method) & (self.runs["phase"] == "tune")]
        some = some[some["status"] != "refused"]
        return some.sort_values("number") if "number" in some else some

    def chosen(self, phase: str, data: str, method: str) -> pd.Series | None:
        """A finished final run: `overrides`, `number` and `spent` are the same in all of them."""
        some = self.final[
            (self.final["data"] == data) & (self.final["method"] == method) & (self.final["phase"] == phase)
        ]
        return some.sort_values("seed").iloc[0] if len(some) else None

    @cached_property
    def failures(self) -> list[tuple[str, str, str, list[int], str]]:
        """(data set, method, phase, seeds, sentence) of what failed and was not made again since."""
        failed = self.runs[self.runs["status"] == "failed"]
        done = set(map(tuple, self.runs[self.runs["status"] == "done"].reindex(columns=[*_KEY, "number"]).to_numpy()))
        found: dict[tuple[str, str, str, str], list[int]] = {}
        for d, m, phase, seed, number, error in failed.reindex(columns=[*_KEY, "number", "error"]).itertuples(
            index=False
        ):
            if (d, m, phase, seed, number) not in done:
                said = "no reason was kept" if error is None or error != error else str(error)
                found.setdefault((d, m, phase, said), []).append(int(seed))
        return [(d, m, phase, sorted(seeds), said) for (d, m, phase, said), seeds in sorted(found.items())]

    def absent(self, phase: str) -> dict[str, dict[str, list[int]]]:
        """{data set: {method: seeds}} of final runs that are neither finished nor failed nor refused: to be made yet."""
        some = self.runs[(self.runs["phase"] == phase) & self.runs["status"].isin(["done", "failed"])]
        there = set(zip(some["data"], some["method"], some["seed"].astype(int), strict=True))
        out: dict[str, dict[str, list[int]]] = {}
        planned = self._planned(phase)
        for d, m in itertools.product(self.data, self.methods):
            left = [s for s in planned.get((d, m), ()) if (d, m, s) not in there]
            if left and (d, m) not in self.refused:
                out.setdefault(d, {})[m] = left
        return out

    def _planned(self, phase: str) -> dict[tuple[str, str], Sequence[int]]:
        if self.planned is not None:
            return {(d, m): seeds for d, methods in self.planned.items() for m, seeds in methods.items()}
        begun = set(zip(self.runs["data"], self.runs["method"], strict=True))
        return {(d, m): self.seeds(phase, d) for d in self.data for m in self.methods if (d, m) in begun}

    def not_begun(self) -> dict[str, list[str]]:
        """{data set: methods} without a row, where no plan says whether there is to be one."""
        begun = set(zip(self.runs["data"], self.runs["method"], strict=True))
        lacking = {d: [m for m in self.methods if (d, m) not in begun] for d in self.data}
        return {d: methods for d, methods in lacking.items() if methods and self.planned is None}

    def frame(self) -> pd.DataFrame:
        """Every test, a row: phase, figure, reference, data, method, and the numbers of its `Difference`."""
        rows: list[Sequence[object]] = []
        for phase in self.phases:
            for figure in FIGURES:
                for reference in REFERENCES:
                    for (data, method), d in self.family(phase, figure, reference).items():
                        numbers = (d.n, d.mean, d.low, d.high, d.deviation, d.p, d.adjusted, d.verdict)
                        rows.append((phase, figure, reference, data, method, *numbers))
        names = ["phase", "figure", "reference", "data", "method", "seeds", "mean", "low", "high", "deviation"]
        return pd.DataFrame(rows, columns=[*names, "p", "adjusted", "verdict"])
