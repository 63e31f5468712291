"""What is missing is run; what a method is not defined for is said."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.first_results.schedule import Say, Schedule, best
from benchmarks.first_results.studies import Study
from benchmarks.first_results.training import Job
from benchmarks.methods.fingerprint import fingerprint
from benchmarks.methods.results import MethodResults
from benchmarks.methods.studies import JOINT, methods
from benchmarks.methods.training import run
from equipoise import balancers
from equipoise.datasets.reading import Reader
from equipoise.models.errors import EquipoiseError
from equipoise.pipelines.assembly import assemble


class MethodSchedule(Schedule):
    """The runs of some methods {name: what differs from joint training} on some studies; all methods by default."""

    def __init__(
        self,
        data: Path,
        runs: Path,
        seeds: int,
        jobs: int,
        say: Say = print,
        chosen: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        super().__init__(data, runs, seeds, jobs, say, run)
        self.methods = methods() if chosen is None else chosen

    def results(self, studies: Sequence[Study]) -> list[MethodResults]:
        """First the tries of joint training at seed 0, then every method with the settings that these chose."""
        tries = self.ensure([job for study in studies for job in self._tries(study)])
        chosen = {study.name: study.tries[best(tries[study.name])] for study in studies}
        refused = {study.name: self._refused(study, chosen[study.name]) for study in studies}
        # Seed by seed: what is there when the time is over covers all methods.
        jobs = [
            self._job(study, method, seed, differs, chosen[study.name])
            for seed in range(self.wanted)
            for study in studies
            if seed in study.seeds(self.wanted)
            for method, differs in self.methods.items()
            if method not in refused[study.name]
        ]
        runs = self.ensure(jobs)
        return [MethodResults(s, tries[s.name], runs[s.name], refused[s.name]) for s in studies]

    def _tries(self, study: Study) -> list[Job]:
        seed = study.seeds(self.wanted)[0]
        return [
            self._job(study, f"try{i}", seed, {}, choice, test=False) for i, choice in enumerate(study.tries)
        ]  # fmt: skip

    def _job(
        self,
        study: Study,
        name: str,
        seed: int,
        differs: Mapping[str, Any],
        settings: Mapping[str, Any],
        test: bool = True,
    ) -> Job:
        config = study.configured(differs, seed, settings, str(self.folder(study, seed)))
        return Job.of(study.name, name, seed, config, self.runs, test, fingerprint(config.balancer.name))

    def _refused(self, study: Study, settings: Mapping[str, Any]) -> dict[str, str]:
        """{method: why} of those that are not defined for the data set, or lack what they need."""
        seed = study.seeds(self.wanted)[0]
        data = str(self.folder(study, seed))
        manifest = Reader(data).manifest
        found = {}
        for method, differs in self.methods.items():
            try:
                config = study.configured(differs, seed, settings, data)
                balancer = balancers.get(config.balancer.name, **config.balancer.options)
                balancer.check(assemble(config, manifest), manifest.build_task())
            except EquipoiseError as error:
                if method == JOINT:
                    raise
                found[method] = str(error)
                self.say(f"{study.name} {method}: {error}")
        return found
