"""Which trainings a comparison is made of: a pure function of its configuration, its data and what is known so far."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from equipoise.datasets.manifest import FILE, Manifest
from equipoise.datasets.prepare import prepare
from equipoise.models.errors import EquipoiseError
from equipoise.pipelines.comparing.config import CompareConfig, DataSet, Method
from equipoise.pipelines.comparing.training import Job, Phase, identity
from equipoise.pipelines.config import Config, load_config
from equipoise.pipelines.files import read_json, write_json
from equipoise.pipelines.preflight import check_methods
from equipoise.tune_spaces import space_for

#: A method that is this little slower than joint needs no run of its own at equal processor time.
SAME_TIME = 1.05
#: Of noise: what a record was made with that does not say another.
SEVERITY = 3
Record = dict[str, Any]


@dataclass
class Plan:
    """The trainings under `out`.

    `absent` {data set: why it is not here}; `refused` {(data set, method): why it is not defined for it}.
    """

    config: CompareConfig
    absent: dict[str, str] = field(default_factory=dict)
    refused: dict[tuple[str, str], str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # Absolute: tasks on a cluster that was there before do not run in this directory.
        self.out = Path(self.config.out).absolute()
        self._hashes: dict[Path, str] = {}
        self._jobs: dict[tuple[Any, ...], Job] = {}
        self._chosen: dict[tuple[str, str], int] = {}

    @property
    def data(self) -> list[str]:
        """The data sets that are here."""
        return [name for name in self.config.data if name not in self.absent]

    def prepare(self) -> None:
        """Prepare what is not there yet, and find out which methods are defined for what.

        Raises:
            EquipoiseError: a data set that cannot be prepared, for another reason than that it is not installed; an
                option that a method does not have; `joint` not defined.
        """
        for name, data in self.config.data.items():
            try:
                for seed in self.config.seeds_of(name):
                    folder = self.folder(name, seed)
                    if data.source is not None and not (folder / FILE).exists():
                        prepare(data.source, folder, **_prepare_options(data, seed))
                    self._hashes[folder] = Manifest.load(folder).hash
            except EquipoiseError as error:
                if "not installed here" not in str(error):
                    raise
                self.absent[name] = str(error)
        for name in self.data:
            for method in self.config.methods_of(name):
                try:
                    self._check(name, method)
                except EquipoiseError as error:
                    if method.label == "joint":
                        raise
                    self.refused[name, method.label] = str(error)

    def _check(self, name: str, method: Method) -> None:
        space = space_for(method.balancer, method.resampler, self.config.space)
        seed = self.config.seeds_of(name)[0]
        manifest = Manifest.load(self.folder(name, seed))
        for overrides in space.design(self.tries(method), self.config.tuning.seed):
            check_methods(self._config(name, method, seed, overrides), manifest)

    def folder(self, name: str, seed: int) -> Path:
        """Where the data of a seed lie: other options, another folder."""
        data = self.config.data[name]
        if data.path is not None:
            return Path(data.path).absolute()
        said = json.dumps([data.source, _prepare_options(data, seed)], sort_keys=True)
        return self.out / "data" / f"{name}-{seed}-{sha256(said.encode()).hexdigest()[:8]}"

    def tries(self, method: Method) -> int:
        """How many configurations a method may choose from."""
        return self.config.tuning.several if method.several else self.config.tuning.configurations

    def methods(self, name: str) -> list[Method]:
        """Those that are defined for a data set."""
        return [m for m in self.config.methods_of(name) if (name, m.label) not in self.refused]

    # The three phases.

    def tuning(self) -> list[Job]:
        """Every method's configurations, with the first seed."""
        jobs = []
        for name in self.data:
            seed = self.config.seeds_of(name)[0]
            for method in self.methods(name):
                for number, overrides in enumerate(self.design(method)):
                    jobs.append(self._job(name, method, "tune", number, seed, overrides))
        return jobs

    def design(self, method: Method) -> list[dict[str, Any]]:
        """The configurations of a method, as overrides: the base as it is, then the draws of its space."""
        space = space_for(method.balancer, method.resampler, self.config.space)
        return [{}, *space.design(self.tries(method), self.config.tuning.seed)[1:]]

    def chosen(self, name: str, method: Method) -> int | None:
        """The configuration with the best validation; of equals the first. None while some are not made, or where all failed."""
        if (known := self._chosen.get((name, method.label))) is not None:
            return known
        records = [job.record() for job in self.tuning_of(name, method)]
        if any(record is None for record in records):
            return None
        done = [record for record in records if record is not None and record["status"] == "done"]
        if not done:
            return None
        best = max(done, key=lambda record: (record[f"validation/{self.config.select}"], -record["number"]))
        self._chosen[name, method.label] = int(best["number"])
        return int(best["number"])

    def tuning_of(self, name: str, method: Method) -> list[Job]:
        seed = self.config.seeds_of(name)[0]
        return [self._job(name, method, "tune", n, seed, overrides) for n, overrides in enumerate(self.design(method))]

    def at_equal_steps(self) -> list[Job]:
        """The chosen configurations with every seed, seed by seed: what is there when time is over covers all methods."""
        jobs = []
        for seed in range(self.config.seeds):
            for name in self.data:
                if seed not in self.config.seeds_of(name):
                    continue
                for method in self.methods(name):
                    if (number := self.chosen(name, method)) is not None:
                        overrides = self.design(method)[number]
                        jobs.append(self._job(name, method, "steps", number, seed, overrides))
        return jobs

    def at_equal_time(self) -> list[Job]:
        """Once more with as many steps as the processor time of `joint` allows; only methods that are slower."""
        if not self.config.equal_time:
            return []
        jobs = []
        for seed in range(self.config.seeds):
            for name in self.data:
                if seed not in self.config.seeds_of(name):
                    continue
                for method in self.methods(name):
                    ratio = self.slower(name, method)
                    number = self.chosen(name, method)
                    if ratio is None or ratio <= SAME_TIME or number is None:
                        continue
                    overrides = self.design(method)[number]
                    config = self._config(name, method, seed, overrides)
                    assert config.max_steps is not None
                    steps = max(1, round(config.max_steps / ratio))
                    jobs.append(self._job(name, method, "time", number, seed, overrides, steps))
        return jobs

    def slower(self, name: str, method: Method) -> float | None:
        """Processor seconds of a method over those of `joint`, median over seeds of the runs at equal steps that both finished;
        None while some are not made, or where no seed has both. Once known it stays: a comparison that goes on keeps its steps.
        """
        file = self.out / "slower" / name / f"{method.label}.json"
        basis = [self._final(name, m) for m in (method, Method("joint"))]
        if any(job is None for jobs in basis for job in jobs):
            return None
        identities = json.loads(json.dumps([job.identity for jobs in basis for job in jobs if job is not None]))
        known = read_json(file)
        if known and known["of"] == identities:
            return float(known["ratio"])
        records = [[job.record() for job in jobs if job is not None] for jobs in basis]
        made = [[record for record in some if record is not None] for some in records]
        if made != records:
            return None
        ratios = [a["seconds"] / b["seconds"] for a, b in zip(*made) if a["status"] == b["status"] == "done"]
        if not ratios:
            return None
        ratio = statistics.median(ratios)
        write_json(file, {"of": identities, "ratio": ratio})
        return ratio

    def _final(self, name: str, method: Method) -> list[Job | None]:
        number = self.chosen(name, method)
        if number is None:
            return [None]
        overrides = self.design(method)[number]
        return [self._job(name, method, "steps", number, seed, overrides) for seed in self.config.seeds_of(name)]

    # One training.

    def _job(
        self,
        name: str,
        method: Method,
        phase: Phase,
        number: int,
        seed: int,
        overrides: Mapping[str, Any],
        steps: int | None = None,
    ) -> Job:
        key = (name, method, phase, number, seed, steps)
        if key in self._jobs:
            return self._jobs[key]
        config = self._config(name, method, seed, overrides)
        if steps is not None:
            config = config.model_copy(update={"max_steps": steps})
        path = self.out / "runs" / name / method.label / f"{phase}-{number}-{seed}.json"
        manifest_hash = self._hashes[self.folder(name, seed)]
        said = identity(config, manifest_hash)
        severity = self.config.severity
        if phase != "tune" and severity != SEVERITY:
            said["severity"] = severity
        job = Job(name, method.label, phase, number, seed, config, said, overrides, path, severity)
        self._jobs[key] = job
        return job

    def _config(self, name: str, method: Method, seed: int, overrides: Mapping[str, Any]) -> Config:
        fixed = {
            "data": str(self.folder(name, seed)),
            "out": str(self.out),
            "seed": seed,
            "balancer": method.balancer,
            "resampler": method.resampler,
        }
        base = {**self.config.base, **self.config.data[name].base}
        if base.get("max_steps") is None:
            raise EquipoiseError(
                f"The data set {name!r} has no max_steps: a comparison is made at equal optimiser steps, so give it in `base`."
            )
        return load_config(fixed, {**base, **overrides})


def _prepare_options(data: DataSet, seed: int) -> dict[str, Any]:
    return {**data.options, ("fold" if data.seed_as == "fold" else "seed"): seed}
