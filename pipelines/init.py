"""Starter files for a person's own data: data.yaml for `prepare`, fit.yaml for `fit`."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from equipoise.datasets.guessing import Guess, guess
from equipoise.datasets.manifest import MAX_MODALITIES
from equipoise.datasets.task_spec import TaskSpec, task_spec
from equipoise.models.errors import EquipoiseError
from equipoise.pipelines.tables import table


def init(source: str | Path, out: str | Path = ".", console: Console | None = None, target: str | None = None) -> None:
    """Look at a table, print what its columns are taken for and why, and write `out`/data.yaml and `out`/fit.yaml.

    Raises:
        EquipoiseError: no table, nothing to predict, or a file that is there already: nothing is overwritten.
    """
    console = console or Console()
    source, out = Path(source), Path(out)
    files = {"data.yaml": "", "fit.yaml": ""}
    for name in files:
        if (out / name).exists():
            raise EquipoiseError(f"{out / name} is there already: name another folder with --out, or move it away.")
    found = guess(source, target)
    looked = f"the first {found.looked:,}" if found.more else f"all {found.looked:,}"
    console.print(table(f"{source}: {looked} rows looked at", ["columns", "taken as", "why"], found.why))
    for note in _notes(found):
        console.print(note, style="yellow", highlight=False, markup=False)
    files = {"data.yaml": _data(found, source, out, looked), "fit.yaml": _fit(found, out)}
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            with (out / name).open("x", encoding="utf-8") as file:
                file.write(text)
    except OSError as error:
        raise EquipoiseError(f"Cannot write in {out} ({error.strerror}): name another folder with --out.") from error
    console.print(
        f"Written: {out / 'data.yaml'} and {out / 'fit.yaml'}. Read them, correct what was guessed wrong, then:\n"
        f"  equipoise prepare {_quoted(out / 'data.yaml')} --out {_quoted(out / 'data')}\n"
        f"  equipoise fit {_quoted(out / 'fit.yaml')}\n"
        f"  equipoise predict {_quoted(out / 'run')} NEW.csv --out predictions.csv",
        soft_wrap=True,
        highlight=False,
        markup=False,
    )


def _notes(found: Guess) -> list[str]:
    count = len(found.modalities)
    notes = []
    if count == 1:
        notes.append("One modality only: it trains, but there is nothing to balance. Were columns joined that are two?")
    if count > MAX_MODALITIES:
        notes.append(f"{count} modalities, and {MAX_MODALITIES} is the most: join or drop some in data.yaml.")
    elif count > 8:
        notes.append(f"{count} modalities have {2**count - 1} subsets to value: join or drop some in data.yaml.")
    return notes


def _data(found: Guess, source: Path, out: Path, looked: str) -> str:
    # From the folder of data.yaml, so that both can be moved together.
    path = os.path.relpath(source.resolve(), out.resolve())
    lines = [
        f"# What `equipoise prepare` reads. Guessed by `equipoise init` from {looked} rows: check every line.",
        _line("source", path, "csv, Parquet file or folder, from the folder of this file"),
        "",
        "# Columns that are no modality.",
        _line("sample_key", found.sample_key, "each row's own id; null: the rows are numbered"),
        _line("target", found.target, f"what is predicted: {found.predicts}"),
        *_task(found),
        _line("split", found.split, "a column with train, validation, test; null: by the fractions below"),
        _line("group", found.group, "rows with the same value stay in one split; null: each row for itself"),
        "",
        "# name: {column or columns, kind (array, sequence, image, text, audio), shape, max_length, transform}",
        "# An empty cell is a modality that is absent. columns may be patterns, such as [px_*].",
        "modalities:",
    ]
    for name, given in found.modalities.items():
        lines += [f"  # {found.shown[name]}", f"  {_flow(name)}: {_flow(given)}"]
    lines += [
        "",
        _line("fractions", [0.7, 0.15, 0.15], "of train, validation, test"),
        _line("on_bad", "stop", "rows that cannot be used: stop and list them, or skip (the manifest lists them)"),
        _line("seed", 0, "of the order, and of the split"),
    ]
    return "\n".join(lines) + "\n"


def _task(found: Guess) -> list[str]:
    """The lines of a task that is no classification into the classes found."""
    if found.task is None:
        return []
    if found.task["kind"] == "regression":
        what = "within the tolerance a prediction counts as right; here it is a tenth of the range, rounded: choose your own"
        return [_line("task", found.task, what)]
    labels = _line("task_labels", found.task_labels, "all names that there are; a row with another one cannot be used")
    return [_line("task", found.task, "any number of labels may be true of a row"), labels]


def _fit(found: Guess, out: Path) -> str:
    batch_size = 64 if found.looked >= 1000 else 32 if found.looked >= 200 else 8
    spec = task_spec(found.task, found.task_labels)
    task = TaskSpec(labels=("a", "b")).build() if spec is None else spec.build()
    better = f"validation {task.headline}" + (" (lower is better)" if task.lower_is_better else "")
    resampler = {"name": "sample", "options": {"warmup": 1}}
    lines = [
        "# What `equipoise fit` reads. Any key may be changed on the command line: equipoise fit fit.yaml max_epochs=5",
        _line("data", str(out / "data"), "from the folder where you type the command"),
        _line("out", str(out / "run"), "the run folder"),
        "",
        _line("balancer", "joint", "`equipoise list balancers`"),
        _line(
            "resampler", resampler, "rows whose modalities contribute little are seen more often; none: plain training"
        ),
        "",
        _line("batch_size", batch_size, ""),
        _line("max_epochs", 20, ""),
        _line("early_stopping", {"patience": 5}, f"epochs without a better {better}"),
        _line("optimizer", {"lr": 0.001}, ""),
        _line("workers", 1, "training processes"),
        _line("actors", 1, "valuing processes"),
        _line("seed", 0, ""),
    ]
    return "\n".join(lines) + "\n"


def _line(key: str, value: Any, comment: str) -> str:
    text = f"{key}: {_flow(value)}"
    comment = " ".join(comment.split())
    return f"{text:<34}  # {comment}" if comment else text


def _flow(value: Any) -> str:
    """A value as YAML in one line."""
    return yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10**6, allow_unicode=True).split("\n")[
        0
    ]


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))
