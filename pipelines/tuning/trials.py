"""What a trial runs: one process with the whole training in it, or a whole run of `fit`. Both report a row an epoch."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from equipoise.models.errors import EquipoiseError
from equipoise.pipelines.config import Config, load_config
from equipoise.pipelines.files import read_json
from equipoise.pipelines.objectives import objectives
from equipoise.pipelines.run import Run
from equipoise.pipelines.sentences import sentence_of
from equipoise.pipelines.sweeps import read_result

_AIMS = ("step", "full", "missing", "score")


def light_trial(config: Config) -> None:
    """Train in this process, with the threads that the configuration names, and report every epoch."""
    import torch
    from ray import tune

    from equipoise.pipelines.light import train_light

    torch.set_num_threads(config.threads or 1)
    train_light(config, splits=(), on_epoch=lambda row: tune.report(reported(row)))


def train_trial(config: Config, known: Collection[int] = ()) -> None:
    """A run of `fit` in a folder of the trial; one that was begun there goes on. Rank 0's epochs reach Tune through Ray Train.

    `known`: epochs of it that the trial's record has. Others that the run has ended are reported first: death may come
    between an epoch's checkpoint and its record. A run that had come to its end reports at least its last epoch, again.
    """
    from ray import tune

    from equipoise.pipelines.fit import fit_config

    run = Run(config.out, config)
    ended = ended_epochs(run)
    for epoch in ended:
        if epoch not in known or (run.finished and epoch == ended[-1]):
            tune.report(reported(row_of(run, epoch, 0.0)))
    if not run.finished:
        fit_config(config, callbacks=[_epochs(config)])


def ended_epochs(run: Run) -> list[int]:
    """The epochs of a run, begun or not, that were trained and validated."""
    if not (run.path / "metrics.parquet").is_file():
        return []
    trained = set(run.metrics["epoch"])
    return [epoch for epoch in run.epochs("validation") if isinstance(epoch, int) and epoch in trained]


def _epochs(config: Config) -> Any:
    """A callback of Ray Train that reports a row an epoch to Tune; made inside of a trial."""
    from ray.tune.integration.ray_train import TuneReportCallback

    class Epochs(TuneReportCallback):
        def __init__(self) -> None:
            super().__init__()
            self._began = time.monotonic()

        def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
            row = row_of(Run(config.out, config), int(metrics[0]["epoch"]), time.monotonic() - self._began)
            super().after_report(run_context, [reported(row)], None)

    return Epochs()


def row_of(run: Run, epoch: int, seconds: float) -> dict[str, Any]:
    """The row of an epoch of a run, as a light trial reports it, from what the run left in its folder."""
    task, names = run.manifest.build_task(), run.manifest.names
    matrix = read_result(run.values_folder("validation", epoch)).matrix
    cell = matrix[2 ** len(names) - 1]
    steps = dict(zip(run.metrics["epoch"], run.metrics["step"]))
    return {
        "epoch": epoch,
        "step": int(steps[epoch]),
        "metric": task.headline,
        "value": cell[task.headline],
        "loss": cell["loss"],
        **objectives(matrix, task, names),
        "seconds": seconds,
    }


def reported(row: Mapping[str, Any]) -> dict[str, Any]:
    """What Tune is told of an epoch.

    Raises:
        EquipoiseError: an objective is not a number; nothing could be learnt from it.
    """
    for name in ("full", "missing"):
        if not math.isfinite(row[name]):
            raise EquipoiseError(
                f"The objective {name!r} is {row[name]} after epoch {row['epoch']}: the training diverged."
            )
    return {**{name: row[name] for name in _AIMS}, "row": dict(row)}


def trainable(kind: str, out: str) -> Callable[[dict[str, Any]], None]:
    """The function of trials of a kind for Tune, in a search in the folder `out`.

    An error of the training itself is reported, not raised: Tune would try it again, which only helps where a process died.
    """

    def trial(suggested: dict[str, Any]) -> None:
        from ray import tune

        try:
            if suggested["refused"]:
                raise EquipoiseError(suggested["refused"])
            made = Config.model_validate(json.loads(suggested["config"]))
            made = run_of(made, Path(out), suggested["number"])
            if kind == "light":
                light_trial(made)
            else:
                record = read_json(Path(out) / "trials" / f"{suggested['number']:04d}" / "record.json")
                train_trial(made, [row["epoch"] for row in record["curve"]])
        except Exception as error:
            said = sentence_of(error)
            text = (
                str(said) if said else f"{type(error).__name__}: {str(error).strip() or 'no message'}".splitlines()[0]
            )
            tune.report({**dict.fromkeys(_AIMS, 0), "error": text})

    return trial


def run_of(made: Config, out: Path, number: int) -> Config:
    """What a trial trains with, in its own folder, without what only a run to keep needs."""
    quick = {
        "out": str(out / "trials" / f"{number:04d}" / "run"),
        "tracker": "none",
        "report": False,
        "valuation": made.valuation.model_copy(update={"final": False}),
    }
    return made.model_copy(update=quick)


def complete(kind: str, settings: Mapping[str, Any], params: Mapping[str, Any]) -> Config:
    """The run that some parameters make, as a trial trains it and `fit` repeats it, bit for bit: `settings` has "base", and the
    "threads" and "device" of trials of the kind.
    """
    made = load_config(settings["base"], dict(params))
    own: dict[str, Any] = {"threads": settings["threads"]}
    if kind == "light":
        own |= {"workers": 1, "device": settings["device"]}
    return made.model_copy(update=own)
