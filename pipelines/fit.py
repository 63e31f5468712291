"""The main job: train under Ray, value every sample, feed that to the next epoch."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from equipoise.datasets.manifest import Manifest
from equipoise.models.errors import EquipoiseError
from equipoise.pipelines.card import write_card
from equipoise.pipelines.config import Config, load_config, pairs
from equipoise.pipelines.files import write_json
from equipoise.pipelines.interrupting import alone, interruptible
from equipoise.pipelines.placement import await_seats, no_seats, start_conductor, start_valuers
from equipoise.pipelines.preflight import check_folder, concerns, preflight
from equipoise.pipelines.progress import ProgressDisplay
from equipoise.pipelines.ray_local import look, start_ray
from equipoise.pipelines.run import Run, write_config
from equipoise.pipelines.seats import Seats, take_seats
from equipoise.pipelines.sentences import refused, sentence_of
from equipoise.pipelines.sweeps import ValuationLostError, run_sweep


def fit(config: str | Path | Mapping[str, Any], *arguments: str, verbose: bool = False, **overrides: Any) -> Run:
    """Train a run to the end of its budget; the same call on an unfinished run folder goes on where it stopped.

    Args:
        config: a YAML file or a mapping; see `equipoise.pipelines.config.Config`.
        arguments: overrides as "key=value"; `overrides`: the same as keywords (`balancer="ogm"`,
            `**{"balancer.options.alpha": 0.3}`).
        verbose: show Ray's own logs.

    Returns:
        The finished run.

    Raises:
        EquipoiseError: what a person can mend, in a sentence: configuration, data, resources.
    """
    made = load_config(config, {**pairs(arguments), **overrides})
    return fit_config(made, verbose=verbose)


def fit_config(config: Config, verbose: bool = False, callbacks: Sequence[Any] = ()) -> Run:
    """`fit` for a configuration that has been read; `callbacks` are of Ray Train (`ray.train.UserCallback`)."""
    config = config.model_copy(
        update={"data": str(Path(config.data).resolve()), "out": str(Path(config.out).resolve())}
    )
    manifest = preflight(config)
    run = Run(config.out, config)
    with alone(run.path):
        check_folder(config)  # once more: now nobody else is at work on it
        _claim(run, manifest)
        assert run.manifest  # refused here if the data set changed since the run began
        if not run.finished:
            _fit(run, manifest, verbose, callbacks)
    return run


def _fit(run: Run, manifest: Manifest, verbose: bool, callbacks: Sequence[Any]) -> None:
    config = run.config
    resources = look(verbose)
    seats = take_seats(config, resources)
    console = Console(stderr=True)
    for concern in concerns(config, manifest, resources, seats):
        console.print(Text.assemble(("look: ", "yellow"), f"{concern.what} {concern.do}"))
    start_ray(resources, seats.cpus, verbose)
    await_seats(seats, console)
    import ray

    write_json(run.path / "environment.json", _environment(config, manifest, seats))
    valuers = start_valuers(seats)
    conductor = start_conductor(seats) if config.valuation.lag else None
    try:
        with ProgressDisplay(run.path / "progress.json", console):
            _train(run, valuers, conductor, seats, callbacks, ours=not resources.cluster)
            if config.valuation.final:
                _value_best(run, valuers)
            write_card(run)
            write_json(run.path / "finished.json", run.checkpoints.best)
    finally:
        for actor in [*valuers, conductor]:
            if actor is not None and ray.is_initialized():
                ray.kill(actor)
    if config.report:
        from equipoise.pipelines.report import write_report

        write_report([run])


def _value_best(run: Run, valuers: Sequence[Any]) -> None:
    """The train sweep of the best checkpoint, in this process where a run that goes on without actors has lost them."""
    best = run.sweep("train", "best", run.best_checkpoint() / "model.pt")
    try:
        run_sweep(best, valuers, timeout=run.config.valuation.timeout)
    except ValuationLostError:
        if run.config.on_valuation_loss == "stop":
            raise
        run_sweep(best)


def _train(
    run: Run, valuers: Sequence[Any], conductor: Any, seats: Seats, callbacks: Sequence[Any], ours: bool
) -> None:
    import ray.train
    from ray.train.torch import TorchTrainer

    from equipoise.pipelines.train_loop import train_worker

    (run.path / "error.json").unlink(missing_ok=True)
    attempts = run.path / "ray"
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={
            "config": run.config.model_dump(mode="json"),
            "run": str(run.path),
            "valuers": list(valuers),
            "conductor": conductor,
            "threads": seats.worker.threads,
            "cores": seats.worker.cores,
            "data_cpus": seats.data_cpus,
        },
        scaling_config=ray.train.ScalingConfig(
            num_workers=run.config.workers,
            use_gpu=seats.device == "cuda",
            resources_per_worker=seats.worker.bundle,
        ),
        run_config=ray.train.RunConfig(
            # A new name an attempt: our own checkpoints say where to go on, not Ray's record of a run.
            name=f"attempt-{len(list(attempts.glob('attempt-*'))):03d}",
            storage_path=str(attempts),
            callbacks=list(callbacks),
            failure_config=ray.train.FailureConfig(  # type: ignore[call-arg]  # mypy sees the class of Ray Train V1
                max_failures=run.config.max_failures,
                # By default Ray tries for ever to start workers for which there is no room.
                controller_failure_limit=run.config.max_failures,
            ),
        ),
    )
    try:
        interruptible(run, trainer.fit, ours)
    except Exception as error:
        if (sentence := sentence_of(error)) is not None:
            raise sentence from error
        if (text := refused(run.path)) is not None:
            raise EquipoiseError(text) from error
        if (missing := no_seats(error, seats)) is not None:
            raise missing from error
        raise
    if (text := refused(run.path)) is not None:
        raise EquipoiseError(text)


def _claim(run: Run, manifest: Manifest) -> None:
    """Make the folder that of this run. The configuration comes first: a folder that holds one can be gone on with."""
    try:
        write_config(run.path / "config.yaml", run.config)
        if not (run.path / "manifest.json").exists():
            # What is fitted on train rows lies in the manifest, so the run holds all that decodes its data.
            manifest.save(run.path)
    except OSError as error:
        raise EquipoiseError(
            f"Cannot write the run folder {run.path}: {error.strerror}. Choose another out=..."
        ) from None


def _environment(config: Config, manifest: Manifest, seats: Seats) -> dict[str, Any]:
    packages = ("equipoise", "torch", "ray", "numpy", "pyarrow", "torchmetrics")
    return {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "threads": seats.worker.threads,
        "device": seats.device,
        "workers": config.workers,
        "actors": config.actors,
        "manifest_hash": manifest.hash,
        "packages": {name: importlib.metadata.version(name) for name in packages},
    }
