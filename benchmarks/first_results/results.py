"""The records of one data set together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.first_results.schedule import Found, best
from benchmarks.first_results.statistics import Difference, Runs, Spread, compared, spread
from benchmarks.first_results.studies import METHODS, Study


@dataclass(frozen=True)
class Results:
    """`tries` are joint training on validation at each setting; `runs` the methods and the checks, {name: {seed: record}}."""

    study: Study
    tries: Found
    runs: Found

    @property
    def name(self) -> str:
        return self.study.name

    @property
    def first(self) -> Mapping[str, Any]:
        """Any record of a method: what all share can be read from it."""
        return next(iter(self.runs["joint"].values()))

    @property
    def modalities(self) -> list[str]:
        return list(self.first["modalities"])

    @property
    def seeds(self) -> int:
        return len(self.runs["joint"])

    @property
    def chosen(self) -> int:
        """The number of the try whose settings all runs have."""
        return best(self.tries)

    @property
    def records(self) -> list[Mapping[str, Any]]:
        return [record for found in (self.tries, self.runs) for seeds in found.values() for record in seeds.values()]

    def of(self, method: str) -> Runs:
        return self.runs[method]

    def spread(self, method: str, name: str) -> Spread:
        return spread(self.runs[method], name)

    def difference(self, a: str, b: str, name: str) -> Difference:
        """Method a minus method b, seed by seed."""
        return compared(self.runs[a], self.runs[b], name)

    def check_equal_steps(self) -> None:
        """The promise of the page: every method made the study's steps."""
        for method in METHODS:
            for seed, record in self.runs[method].items():
                made = record["steps"]
                assert made == self.study.steps, (
                    f"{self.name} {method} seed {seed}: {made} steps, not {self.study.steps}"
                )
