"""The records of one data set as figures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from benchmarks.first_results.results import Results
from benchmarks.first_results.statistics import Difference, Spread, paired
from equipoise.pipelines.impaired import avg_and_gap

FIGURES = ("full", "missing Avg", "missing Gap", "noisy Avg", "noisy Gap")


@dataclass(frozen=True)
class MethodResults(Results):
    """`refused` {method: why it is not among the runs}."""

    refused: Mapping[str, str] = field(default_factory=dict)

    @property
    def methods(self) -> list[str]:
        return list(self.runs)

    def spread(self, method: str, name: str) -> Spread:
        return Spread.of([figure(record, name) for record in self.runs[method].values()])

    def difference(self, a: str, b: str, name: str) -> Difference:
        """Method a minus method b, seed by seed."""
        seeds = sorted(set(self.runs[a]) & set(self.runs[b]))
        return paired([figure(self.runs[a][s], name) for s in seeds], [figure(self.runs[b][s], name) for s in seeds])

    def check_equal_steps(self) -> None:
        """The promise of the page: every method made the study's steps."""
        for method, seeds in self.runs.items():
            for seed, record in seeds.items():
                made = record["steps"]
                assert made == self.study.steps, (
                    f"{self.name} {method} seed {seed}: {made} steps, not {self.study.steps}"
                )


def figure(record: Mapping[str, Any], name: str) -> float:
    """One of `FIGURES`, of the test accuracies; or "seconds", of the processor."""
    if name == "seconds":
        return float(record["seconds"]["cpu"])
    if name == "full":
        return float(record["impaired"]["full"][""])
    condition, kind = name.split()
    return avg_and_gap(list(record["impaired"][condition].values()))[kind == "Gap"]
