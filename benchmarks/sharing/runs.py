"""What is run, and its records: what is missing is run, what is there is not run again."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.first_results.training import code_hash
from equipoise.datasets.manifest import FILE, Manifest
from equipoise.datasets.prepare import prepare
from equipoise.models import build_model
from equipoise.pipelines.config import Config, load_config
from equipoise.pipelines.files import read_json, write_json
from equipoise.pipelines.light import train_light
from equipoise.valuation.coalitions import coalition_name

Record = Mapping[str, Any]
UNIFORM = {"name": "modality_dropout", "options": {"distribution": "uniform"}}
#: {row: what differs}. `model` is completed by the study, which also names the early fusion.
ROWS: dict[str, dict[str, Any]] = {
    "early": {"model": {"kind": "early"}},
    "dropout": {"model": {"kind": "early"}, "balancer": UNIFORM},
    "ds_dropout": {"model": {"kind": "sharing"}, "balancer": UNIFORM},
    "ds_mean": {"model": {"kind": "sharing"}, "balancer": {"name": "gmd", "options": {"project": False}}},
    "ds_gmd": {"model": {"kind": "sharing"}, "balancer": "gmd"},
}
#: {row: the one whose rate it has}: so that the removal of conflicts is all that differs.
SAME_RATE = {"ds_gmd": "ds_mean"}


@dataclass(frozen=True)
class Study:
    """A data set and its budget; `rates` are what validation chooses from, for each row by itself but those in SAME_RATE."""

    name: str
    about: str
    steps: int
    batch: int
    early: Mapping[str, Any]
    size: Mapping[str, Any]
    options: Mapping[str, Any] = field(default_factory=dict)
    rates: tuple[float, ...] = (3e-3, 1e-2)

    def config(self, row: str, seed: int, rate: float, data: Path) -> Config:
        """Of one training."""
        differs = ROWS[row]
        kind = self.early if differs["model"]["kind"] == "early" else {}
        base = {"data": str(data), "out": "unused", "seed": seed, "batch_size": self.batch, "max_steps": self.steps}
        how = {"optimizer": {"lr": rate}, "schedule": {"kind": "cosine", "warmup": 0.05}}
        return load_config({**base, **how, **differs, "model": {**differs["model"], **kind, **self.size}})


STUDIES = {
    study.name: study
    for study in (
        Study(
            "volumes",
            "made-up scans of 8 x 8 x 8 in four sequences, three nested regions to segment; 400 volumes",
            steps=350,
            batch=8,
            early={},
            size={"width": 0.25, "levels": 2},
            options={"volumes": 400, "size": 8},
        ),
        Study(
            "mfeat",
            "handwritten digits, described by Fourier coefficients, Zernike moments and six morphological numbers",
            steps=400,
            batch=64,
            early={"join": "concat"},
            size={"dim": 64, "depth": 2},
            options={"views": "fou,zer,mor"},
        ),
    )
}


@dataclass(frozen=True)
class Results:
    """The records of a study: `tries` {row: {rate: record of the first seed}}, `runs` {row: [a record a seed]}."""

    study: Study
    tries: dict[str, dict[float, Record]]
    runs: dict[str, list[Record]]

    @property
    def modalities(self) -> list[str]:
        return list(self.runs["early"][0]["modalities"])

    @property
    def metric(self) -> str:
        return str(self.runs["early"][0]["metric"])

    def subsets(self) -> list[tuple[int, str]]:
        """(coalition id, its name), all modalities first, then by size."""
        names = self.modalities
        ids = sorted(range(1, 2 ** len(names)), key=lambda c: (-c.bit_count(), c))
        return [(c, coalition_name(c, names)) for c in ids]

    def values(self, row: str, coalitions: list[int]) -> list[float]:
        """Of each seed: the mean test metric over these sets of modalities."""
        return [float(np.mean([record["test"][str(c)] for c in coalitions])) for record in self.runs[row]]


def ensure(study: Study, data: Path, runs: Path, seeds: int, say: Callable[[str], None] = print) -> Results:
    """The records of a study, made where they are not there: the rates on the first seed's validation, then all seeds."""
    tries: dict[str, dict[float, Record]] = {
        row: {rate: _record(study, row, 0, rate, data, runs, say) for rate in study.rates}
        for row in ROWS
        if row not in SAME_RATE
    }
    chosen = {row: max(found, key=lambda rate: mean_validation(found[rate])) for row, found in tries.items()}
    chosen |= {row: chosen[other] for row, other in SAME_RATE.items()}
    made = {row: [_record(study, row, seed, chosen[row], data, runs, say) for seed in range(seeds)] for row in ROWS}
    return Results(study, tries, made)


def mean_validation(record: Record) -> float:
    """Over all sets of modalities."""
    return float(np.mean(list(record["validation"].values())))


def _record(
    study: Study, row: str, seed: int, rate: float, data: Path, runs: Path, say: Callable[[str], None]
) -> Record:
    folder = data / f"{study.name}-{sha256(json.dumps(dict(study.options)).encode()).hexdigest()[:6]}-{seed}"
    if not (folder / FILE).exists():
        prepare(study.name, folder, seed=seed, **study.options)
    config, manifest = study.config(row, seed, rate, folder), Manifest.load(folder)
    identity = {
        "config": config.model_dump(mode="json", exclude={"data", "out"}),
        "data": manifest.hash,
        "code": code_hash(),
        "torch": torch.__version__,
    }
    path = runs / study.name / f"{row}-{rate:g}-{seed}.json"
    found = read_json(path)
    if found is None or found["identity"] != json.loads(json.dumps(identity)):
        found = {"identity": identity, **train(config, manifest)}
        write_json(path, found)
        say(f"{study.name} {row} seed {seed} rate {rate:g}: {found['seconds']:.0f} s")
    return dict(found)


def train(config: Config, manifest: Manifest) -> dict[str, Any]:
    """One training, and what its record keeps: the metric of every set of modalities, and what the gradients did."""
    began, task = time.process_time(), manifest.build_task()
    light = train_light(config)
    seconds = time.process_time() - began
    conflicts = [row["gradient/conflicts"] for row in light.steps if "gradient/conflicts" in row]
    after = [row["gradient/after/conflicts"] for row in light.steps if "gradient/after/conflicts" in row]
    model = build_model(config.model, manifest.modalities, task.num_outputs, dense=task.dense)
    return {
        "modalities": list(manifest.names),
        "metric": task.headline,
        "rows": {name: split.rows for name, split in manifest.splits.items()},
        "steps": light.epochs[-1]["step"],
        "best": light.best["step"],
        "parameters": sum(p.numel() for p in model.parameters()),
        "seconds": seconds,
        "conflicts": _quarters(conflicts) if conflicts else None,
        "conflicts_after": float(np.mean(after)) if after else None,
        **{
            split: {str(c): cell[task.headline] for c, cell in light.matrix[split].items()}
            for split in ("validation", "test")
        },
    }


def _quarters(looks: list[float]) -> list[float]:
    """The mean of each quarter of the looks at the gradients; of fewer than four, the last one stands in."""
    return [float(np.mean(part)) if len(part) else looks[-1] for part in np.array_split(looks, 4)]
