"""The run card: what a model is, what it was trained on, and what it does with each modality missing, as Markdown."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from equipoise.pipelines.config import Config, flat
from equipoise.pipelines.files import atomic, read_json
from equipoise.pipelines.run import Run
from equipoise.pipelines.sweeps import matrix_rows
from equipoise.pipelines.tables import measured

if TYPE_CHECKING:
    from huggingface_hub import ModelCardData

_ABSENCE = {
    "feature": "its feature is zeros",
    "input": "its encoder gets the value that stands for absence",
    "mean": "its encoder gets the mean of the train rows",
    "token": "a learned feature stands in for it",
    "drop": "it is left out",
}


def write_card(run: Run) -> Path:
    """Write `card.md` into the run folder: a Hugging Face model card of the best checkpoint, with the metadata at its head.

    It tells what files of the run say and sweeps nothing: test stands in it only where test was evaluated.

    Raises:
        EquipoiseError: the run has no validated checkpoint yet.
    """
    run.best_checkpoint()
    path = run.path / "card.md"
    with atomic(path) as part:
        part.write_text(f"---\n{_head(run).to_yaml()}\n---\n\n{_body(run)}", encoding="utf-8")
    return path


def _matrices(run: Run) -> dict[str, list[dict[str, Any]]]:
    """{split: rows of its matrix by the best checkpoint}, of the full set, each modality missing, and each alone."""
    best, names = run.checkpoints.best or {}, run.manifest.names
    swept: dict[str, str | int] = {"validation": best["epoch"]}
    if "best" in run.epochs("test"):
        swept["test"] = "best"
    sizes = {1, len(names) - 1, len(names)}
    return {
        split: [row for row in matrix_rows(run.result(split, epoch), names) if row["modalities"] in sizes]
        for split, epoch in swept.items()
    }


def _metrics(row: dict[str, Any]) -> list[str]:
    return [name for name in row if name not in ("coalition", "modalities", "rows", "loss")]


def _head(run: Run) -> ModelCardData:
    """tags, datasets, and a result for each metric, subset of modalities and split."""
    from huggingface_hub import EvalResult, ModelCardData

    manifest, config, full = run.manifest, run.config, len(run.manifest.names)
    results = [
        EvalResult(
            task_type=manifest.task.kind,
            dataset_type=manifest.name,
            dataset_name=manifest.name,
            dataset_split=split,
            dataset_revision=manifest.hash,
            metric_type=metric,
            metric_name=metric if row["modalities"] == full else f"{metric}, {row['coalition']} only",
            metric_value=row[metric],
        )
        for split, rows in _matrices(run).items()
        for row in rows
        for metric in _metrics(row)
        if math.isfinite(row[metric])
    ]
    return ModelCardData(
        model_name=run.path.name,
        library_name="equipoise",
        tags=["multimodal", *dict.fromkeys((config.balancer.name, config.resampler.name))],
        datasets=[manifest.name],
        eval_results=results,
    )


def _body(run: Run) -> str:
    manifest, config, best = run.manifest, run.config, run.checkpoints.best or {}
    steps = run.metrics["step"]
    names = ", ".join(manifest.names)
    suffix = "parquet" if manifest.task.kind == "segmentation" else "csv"
    parts = [
        f"# {run.path.name}",
        f"A {config.model.described} model for {manifest.task.described} from {len(manifest.names)} "
        f"modalities ({names}), trained by Equipoise with the balancer `{config.balancer.name}` and the resampler "
        f"`{config.resampler.name}`. Any of the modalities may be missing: then {_ABSENCE[run.best_model().absence]}.",
        "## Data",
        f"`{manifest.name}`, hash `{manifest.hash}`, prepared with seed {manifest.seed}"
        + (f"; {len(manifest.skipped)} bad rows were left out." if manifest.skipped else "."),
        *([f"Terms: {manifest.terms}"] if manifest.terms else []),
        _table(["split", "rows"], [[name, split.rows] for name, split in manifest.splits.items()]),
        _table(
            ["modality", "kind", "shape"],
            [[m.name, m.kind, " x ".join(map(str, m.shape)) or "-"] for m in manifest.modalities],
        ),
        f"{manifest.task.outputs}: {_shortened(manifest.task.labels)}. The benefit of a prediction is {manifest.task.worth}.",
        "## Settings",
        f"{_counted(int(steps.iloc[-1]), 'optimiser step')} of {config.batch_size} rows in {_counted(len(steps), 'epoch')}; "
        f"this is the model after epoch {best['epoch']} (from 0), the best on validation. What differs from the defaults; "
        "`config.yaml` has all:",
        _table(["key", "value"], [[f"`{key}`", f"`{value}`"] for key, value in _chosen(config).items()]),
        "## Results",
        *(part for split, rows in _matrices(run).items() for part in _results(run, split, rows)),
        "## Contributions",
        *_contributions(run),
        "## Limits",
        "\n".join(f"- {line}" for line in _limits(run)),
        "## How to load it",
        "From Python, in the folder that holds this card, with the prepared data where `config.yaml` says:",
        _block(
            "python",
            "from equipoise import Run",
            "",
            'run = Run.open(".")',
            "model = run.best_model()",
            'print(run.matrix("validation"))',
        ),
        "New rows, modalities may be missing, and evaluation:",
        _block("sh", f"equipoise predict . new.csv --out predictions.{suffix}", "equipoise evaluate . --split test"),
        "## Versions",
        *_versions(run),
    ]
    return "\n\n".join(parts) + "\n"


def _results(run: Run, split: str, rows: Sequence[dict[str, Any]]) -> list[str]:
    metrics = [*_metrics(rows[0]), "loss"]
    cells = [[row["coalition"], int(row["rows"]), *(row.get(name, math.nan) for name in metrics)] for row in rows]
    task = run.manifest.build_task()
    note = f" Of {task.headline}, lower is better." if task.lower_is_better else ""
    return [
        f"{split.capitalize()}, by the modalities that are present.{note}",
        _table(["present", "rows", *metrics], cells),
    ]


def _contributions(run: Run) -> list[str]:
    """Mean contributions by the best checkpoint, of the splits that were swept."""
    best = run.checkpoints.best or {}
    swept: dict[str, str | int] = {"train": "best", "validation": best["epoch"], "test": "best"}
    swept = {split: epoch for split, epoch in swept.items() if epoch in run.epochs(split)}
    found = {split: run.result(split, epoch).contributions for split, epoch in swept.items()}
    rows = [[name, *(values[name] for values in found.values())] for name in run.manifest.names]
    return [
        "The mean over samples of a modality's Shapley value. In a sample, those of its modalities add up to their number "
        + (
            "times the benefit of the prediction from all of them; so 1 is an equal share of a perfect prediction."
            if run.manifest.build_task().graded
            else "where the prediction from all of them is right, else to 0; so 1 is an equal share of a right prediction."
        ),
        _table(["modality", *found], rows),
    ]


def _limits(run: Run) -> list[str]:
    said = [
        "The best epoch was chosen on validation, so its results there are a little too good. "
        + (
            "Test was not looked at in training."
            if "best" in run.epochs("test")
            else "Test was not evaluated yet: `equipoise evaluate . --split test`."
        ),
        f"One run with one seed ({run.config.seed}): differences from another run mean little without more seeds.",
        "Contributions say what this model uses, on this data. They are no causes, and no measure of what a modality holds.",
        "Rows that lack modalities in a way that training did not have may be treated worse than the tables say.",
    ]
    if "reused_plan" in run.metrics and (reused := run.metrics["reused_plan"].sum()):
        said.append(
            f"In {int(reused)} epochs the valuation actors were lost and an older resampling plan served again."
        )
    return said


def _versions(run: Run) -> list[str]:
    environment = read_json(run.path / "environment.json") or {}
    if not environment:
        return ["Not recorded: the run has no `environment.json`."]
    packages = {"python": environment["python"], **environment["packages"]}
    seats = f"{_counted(environment['workers'], 'worker')}, {_counted(environment['actors'], 'valuation actor')}"
    return [f"{', '.join(map(' '.join, packages.items()))}; {seats}, on {environment['device']}."]


def _chosen(config: Config) -> dict[str, Any]:
    """The keys that differ from their defaults."""
    values = flat(config.model_dump(mode="json"))
    plain = flat(Config(data="", out="", max_steps=1).model_dump(mode="json"))
    plain["max_steps"] = None
    return {k: v for k, v in values.items() if k not in ("data", "out") and v != plain.get(k)}


def _shortened(labels: Sequence[str], most: int = 20) -> str:
    shown = ", ".join(_cell(label) for label in labels[:most])
    return shown if len(labels) <= most else f"{shown} and {len(labels) - most} more"


def _block(language: str, *lines: str) -> str:
    return "\n".join([f"```{language}", *lines, "```"])


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)


def _cell(value: Any) -> str:
    return measured(value, 4) if isinstance(value, float) else str(value).replace("|", "\\|").replace("\n", " ")
