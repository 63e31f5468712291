"""One training of a comparison and its record: what a process of its own does."""

from __future__ import annotations

import ctypes
import json
import math
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from equipoise.models.errors import EquipoiseError
from equipoise.pipelines.config import Config
from equipoise.pipelines.files import read_json, write_json

#: tune: one of the configurations to choose from, on validation only. steps, time: the chosen one, with equal optimiser
#: steps and with equal processor time.
Phase = Literal["tune", "steps", "time"]
#: Keys of a configuration that a light training does not read.
UNUSED = (
    "data",
    "out",
    "workers",
    "actors",
    "threads",
    "checkpoint",
    "tracker",
    "report",
    "on_valuation_loss",
    "max_failures",
)
#: Balancers that this process has trained with.
_WARM: set[str] = set()


@dataclass(frozen=True)
class Job:
    """A training to make, and where its record lies. `identity` is what the record must be the record of; `overrides`
    {dotted key: value} is what tuning varies; `severity` of the noise on test rows.
    """

    data: str
    method: str
    phase: Phase
    number: int
    seed: int
    config: Config
    identity: Mapping[str, Any]
    overrides: Mapping[str, Any]
    path: Path
    severity: int

    def record(self) -> dict[str, Any] | None:
        """What was written for exactly this training, None where there is nothing or something else."""
        try:
            found = read_json(self.path)
        except ValueError:
            return None
        return found if found and found["identity"] == json.loads(json.dumps(self.identity)) else None

    @property
    def name(self) -> str:
        return f"{self.data} {self.method} {self.phase} {self.number} seed {self.seed}"


def identity(config: Config, manifest_hash: str) -> dict[str, Any]:
    """What the result of a training depends on: its configuration, its data, and the versions of the software."""
    import torch

    from equipoise import __version__

    whole = config.model_dump(mode="json")
    return {
        "config": {key: value for key, value in whole.items() if key not in UNUSED},
        "data": manifest_hash,
        "equipoise": __version__,
        "torch": torch.__version__,
    }


def run(job: Job) -> dict[str, Any]:
    """Train in this process, with one thread, and write the record whole or not at all. A training that fails leaves a
    record that says why.
    """
    import torch

    torch.set_num_threads(1)
    try:
        record = {**_about(job), "status": "done", "error": None, **_trained(job)}
    except Exception as error:
        said = str(error).strip().splitlines()
        sentence = said[0] if said else ""
        if not isinstance(error, EquipoiseError):
            sentence = f"{type(error).__name__}: {sentence}"
        return failed(job, sentence)
    write_json(job.path, record)
    return record


def failed(job: Job, sentence: str) -> dict[str, Any]:
    """Write the record of a training that did not end, and return it."""
    record = {**_about(job), "status": "failed", "error": sentence}
    write_json(job.path, record)
    return record


def _about(job: Job) -> dict[str, Any]:
    return {
        "identity": job.identity,
        "data": job.data,
        "method": job.method,
        "balancer": job.config.balancer.name,
        "resampler": job.config.resampler.name,
        "phase": job.phase,
        "number": job.number,
        "seed": job.seed,
        "overrides": dict(job.overrides),
    }


def _trained(job: Job) -> dict[str, Any]:
    from equipoise import balancers, valuation
    from equipoise.datasets.reading import Reader
    from equipoise.pipelines.light import train_light
    from equipoise.pipelines.objectives import objectives

    config, final = job.config, job.phase != "tune"
    reader = Reader(config.data)
    names, task = reader.manifest.names, reader.manifest.build_task()
    _warm(config)
    memory, wall, cpu = Memory(), time.perf_counter(), time.process_time()
    # A search must not see test.
    light = train_light(config, ("validation", "test") if final else ("validation",))
    seconds = {"seconds": time.process_time() - cpu, "wall": time.perf_counter() - wall}
    aims = objectives(light.matrix["validation"], task, names)
    if not all(map(math.isfinite, aims.values())):
        raise EquipoiseError("Validation has a metric that is not a number: the training diverged.")
    resampler = valuation.get(config.resampler.name, **config.resampler.options)
    out: dict[str, Any] = {
        "modalities": list(names),
        "steps": light.epochs[-1]["step"],
        "best_step": light.best["step"],
        "metric": task.headline,
        **{f"validation/{name}": value for name, value in aims.items()},
        **seconds,
        "memory": memory.peak(),
        "passes": balancers.get(config.balancer.name, **config.balancer.options).backward_passes(len(names)),
        "sweeps": sum(resampler.wants_values(epoch) for epoch in range(len(light.epochs) - 1)),
    }
    if final:
        out |= _tested(light, reader, task, job)
    return out


def _tested(light: Any, reader: Any, task: Any, job: Job) -> dict[str, Any]:
    from equipoise.pipelines.impaired import impaired

    found = impaired(light.model, task, reader, "test", seed=job.config.seed, ratios=(1.0,), severities=(job.severity,))
    found = found[found["metric"] == task.headline]
    out: dict[str, Any] = {}
    for condition, modality, value in zip(found["condition"], found["modality"], found["value"]):
        out[f"test/{condition}/{modality}" if modality else f"test/{condition}"] = float(value)
    values = light.values["test"]
    score = values.score[:, -1]
    right = np.packbits(score.astype(bool)).tobytes().hex() if score.dtype == bool else None
    return {**out, "test_rows": len(score), "right": right}


def _warm(config: Config) -> None:
    """What the first training of a balancer in a process loads and allocates is not part of that training's cost."""
    from equipoise.pipelines.light import train_light

    if config.balancer.name not in _WARM:
        train_light(config.model_copy(update={"max_steps": 1}), splits=())
        _WARM.add(config.balancer.name)


class Memory:
    """The most memory that this process has held since, in bytes above what it held at the start: of the resident set, on
    Linux, where the mark of the highest can be set back; elsewhere NaN.
    """

    def __init__(self) -> None:
        with suppress(AttributeError, OSError):
            # What an earlier training freed is still in the allocator, and would hide what this one needs.
            ctypes.CDLL(None).malloc_trim(0)
        try:
            Path("/proc/self/clear_refs").write_text("5")
            self._began = self._status("VmRSS")
        except OSError:
            self._began = math.nan

    def peak(self) -> float:
        return math.nan if math.isnan(self._began) else max(0.0, self._status("VmHWM") - self._began)

    @staticmethod
    def _status(key: str) -> float:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(f"{key}:"):
                return float(line.split()[1]) * 1024
        return math.nan
