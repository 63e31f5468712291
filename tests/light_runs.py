"""Run folders made without Ray: trained in this process, then laid out as `fit` lays them out."""

from pathlib import Path

from equipoise.pipelines.checkpoint import Position
from equipoise.pipelines.config import load_config
from equipoise.pipelines.fingerprint import model_hash
from equipoise.pipelines.light import train_light
from equipoise.pipelines.run import Run, write_config


def light_run(out: Path, data: Path, **config) -> Run:
    made = load_config({"seed": 3, **config, "data": str(data), "out": str(out)})
    light = train_light(made)
    run = Run(out, made)
    write_config(out / "config.yaml", made)
    run.manifest.save(out)
    weights, at = light.model.state_dict(), Position(light.best["epoch"] + 1, 0)
    run.checkpoints.commit(run.checkpoints.draft(at, weights), at, {})
    best = {k: light.best[k] for k in ("epoch", "metric", "value", "loss")}
    run.checkpoints.set_best({**best, "checkpoint": str(at), "model_hash": model_hash(weights)})
    return Run.open(out)
