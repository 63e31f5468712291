"""What a record holds beside that of the first results: test accuracy with each modality missing, and with each noisy."""

from __future__ import annotations

from typing import Any

from benchmarks.first_results import training
from benchmarks.first_results.training import Job
from benchmarks.methods.studies import SEVERITY
from equipoise.datasets.reading import Reader
from equipoise.pipelines.config import Config
from equipoise.pipelines.impaired import impaired
from equipoise.pipelines.light import LightRun


def run(job: Job, session: str) -> dict[str, Any]:
    """Train, and write the record whole or not at all."""
    return training.run(job, session, under_impairment)


def under_impairment(light: LightRun, config: Config) -> dict[str, Any]:
    """{"impaired": {condition: {modality: test accuracy}}}, as `equipoise evaluate --impair` finds it."""
    reader = Reader(config.data)
    task = reader.manifest.build_task()
    found = impaired(light.model, task, reader, "test", seed=config.seed, ratios=(1.0,), severities=(SEVERITY,))
    found = found[found["metric"] == "accuracy"]
    cells = {
        condition: dict(zip(some["modality"], some["value"].astype(float)))
        for condition, some in found.groupby("condition")
    }
    return {"severity": SEVERITY, "impaired": {c: cells[c] for c in ("full", "missing", "noisy")}}
