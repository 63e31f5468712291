"""Best against default on seeds that the search has not used, and the one look at test."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from equipoise.models.errors import EquipoiseError
from equipoise.pipelines.config import Config
from equipoise.pipelines.files import read_json, write_json
from equipoise.pipelines.sentences import sentence_of

LEVEL = 0.95
_SAME = 1e-9  # differences that are closer are the same, but for rounding


def light_test(config: Config) -> dict[str, float]:
    """Train in this process, and the objectives of the best epoch's model on test."""
    import torch

    from equipoise.datasets.manifest import Manifest
    from equipoise.pipelines.light import train_light
    from equipoise.pipelines.objectives import objectives

    torch.set_num_threads(config.threads or 1)
    manifest = Manifest.load(Path(config.data))
    matrix = train_light(config, splits=("test",)).matrix["test"]
    return objectives(matrix, manifest.build_task(), manifest.names)


def confirm(
    out: Path,
    trial: int,
    runs: Mapping[str, Config],
    seeds: list[int],
    cpus: float,
    gpus: float,
    at_once: int,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Train every configuration of `runs` ("default", "best") with every seed, `at_once` at a time, and compare on test.

    What is there already (confirm/NAME-SEED.json of the same configuration) is not run again. Returns what confirm.json holds:
    the number of the `trial` that is the best, the seeds, {name: [objectives by seed]}, and {objective: mean difference
    best - default with its interval}.

    Raises:
        EquipoiseError: a run failed.
    """
    import ray

    task = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=2)(light_test)
    jobs = [(name, seed, made.model_copy(update={"seed": seed})) for seed in seeds for name, made in runs.items()]
    found: dict[tuple[str, int], dict[str, float]] = {}
    waiting = []
    for name, seed, made in jobs:
        kept = read_json(out / "confirm" / f"{name}-{seed}.json")
        if kept is not None and kept["config"] == made.model_dump(mode="json"):
            found[name, seed] = kept["test"]
        else:
            waiting.append((name, seed, made))
    under_way: dict[Any, tuple[str, int, Config]] = {}
    while waiting or under_way:
        while waiting and len(under_way) < at_once:
            job = waiting.pop(0)
            under_way[task.remote(job[2])] = job
        [ref], _ = ray.wait(list(under_way))
        name, seed, made = under_way.pop(ref)
        try:
            found[name, seed] = ray.get(ref)
        except Exception as error:
            for other in under_way:
                ray.cancel(other)  # not by force: where it ends at that moment, Ray ends this process
            why = sentence_of(error) or f"{type(error).__name__}: {str(error).strip()}".splitlines()[-1]
            raise EquipoiseError(
                f"The trials are done, but on test the run of {name} with seed {seed} failed: {why} confirm.seeds=0 leaves test "
                "alone."
            ) from error
        write_json(
            out / "confirm" / f"{name}-{seed}.json", {"config": made.model_dump(mode="json"), "test": found[name, seed]}
        )
        say(f"confirmed {len(found)} of {len(jobs)}: {name}, seed {seed}")
    tests = {name: [found[name, seed] for seed in seeds] for name in runs}
    said = {
        "trial": trial,
        "split": "test",
        "seeds": seeds,
        "level": LEVEL,
        "test": tests,
        "difference": differences(tests),
    }
    write_json(out / "confirm.json", said)
    return said


def differences(tests: Mapping[str, list[dict[str, float]]]) -> dict[str, dict[str, float]]:
    """{objective: {"mean", "low", "high", "p"}} of best - default, paired by seed: Student's t interval and test. NaN where
    there is none: with one seed, or with a difference other than 0 that is the same every time.
    """
    found = {}
    for objective in ("full", "missing", "score"):
        deltas = np.array([b[objective] - d[objective] for b, d in zip(tests["best"], tests["default"], strict=True)])
        low = high = p = float("nan")
        if len(deltas) > 1 and np.ptp(deltas) > _SAME:
            test = stats.ttest_1samp(deltas, 0)
            low, high = test.confidence_interval(LEVEL)
            p = float(test.pvalue)
        elif len(deltas) > 1 and np.abs(deltas).max() <= _SAME:  # two times the same model
            low, high, p = 0.0, 0.0, 1.0
        found[objective] = {"mean": float(deltas.mean()), "low": float(low), "high": float(high), "p": p}
    return json.loads(json.dumps(found))
