"""The figures of a run."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Sequence

import numpy as np
import pandas as pd

from equipoise.pipelines.report.facts import MANY, Facts, optional
from equipoise.pipelines.report.figures import Figure, Mark, Series

BINS = 120  # points of a line over steps
_PLAIN = re.compile(r"(step|epoch|step_in_epoch|loss|lr|(loss|seconds|gradient|monitor)/.*)$")
_CONFLICT = re.compile(r"(^|[/_])(conflict|angle|cosine)", re.IGNORECASE)
_PHASES = {
    "first_batch": "first batch",
    "wait": "data wait",
    "step": "step",
    "reduce": "reduce",
    "rest": "rest of training",
    "validation": "validation",
    "sweep": "sweep of train",
    "plan": "plan",
}


def contributions(f: Facts) -> list[Figure]:
    """Mean contribution of each modality by epoch, with that of the best checkpoint's sweep."""
    series = [
        Series(m, values, i)
        for i, m in enumerate(f.modalities)
        if (values := f.column(f"contribution/{m}")) is not None
    ]
    whole = "perfect" if f.task.graded else "right"
    marks = [Mark(f"1 = an equal share of a {whole} prediction", 1.0)]
    if f.valued is not None and f.valued.epoch == "best" and f.best is not None:
        means = _means(f.valued.contributions)
        marks += [
            Mark(f"best checkpoint: {m}", mean, f.best["epoch"], i)
            for i, (m, mean) in enumerate(zip(f.modalities, means))
            if mean is not None
        ]
    if not series and len(marks) == 1:
        return []
    return [_epochs(f, "contributions", "Mean contribution on train", "contribution", series, marks)]


def distribution(f: Facts) -> tuple[list[Figure], list[Figure]]:
    """Histograms, and one scatter a pair of modalities, of the stored sweep; none above six modalities."""
    if f.valued is None or len(f.modalities) > MANY:
        return [], []
    table = f.valued.contributions
    width = cell_width(grid(f), table if f.valued.values.graded else None)
    cells = np.floor(table / width + 0.5)
    known = cells[~np.isnan(cells)].astype(int)
    span = range(int(known.min()), int(known.max()) + 1) if len(known) else range(0)
    marks = [Mark(f"mean of {m}", mean) for m, mean in zip(f.modalities, _means(table)) if mean is not None]
    series = [Series(m, [int((cells[:, i] == k).sum()) for k in span], i) for i, m in enumerate(f.modalities)]
    x = [round(k * width, 6) for k in span]
    histogram = Figure(
        "histogram", "How contributions are distributed", "rows", "contribution", "share of samples", x, series, marks
    )
    pairs = []
    for a, b in itertools.combinations(range(len(f.modalities)), 2):
        both = cells[~np.isnan(cells[:, [a, b]]).any(axis=1)][:, [a, b]]
        found, counts = np.unique(both, axis=0, return_counts=True)
        dots = [(round(p * width, 6), round(q * width, 6), int(n)) for (p, q), n in zip(found.tolist(), counts)]
        first, second = f.modalities[a], f.modalities[b]
        key = f"scatter/{first}/{second}"
        pairs.append(Figure(key, f"{first} against {second}", "bubbles", first, second, cells=dots))
    return [histogram], pairs


def grid(f: Facts) -> float | None:
    """What all contributions are multiples of, up to three modalities: 1 / M!, by the number of labels where a benefit is
    the share of them that is right; None where there is no such number, or it is small.
    """
    steps = math.factorial(len(f.modalities))
    if f.manifest.task.kind == "multilabel" and f.task.graded:
        steps *= len(f.manifest.task.labels)
    elif f.task.graded:
        return None
    return 1 / steps if len(f.modalities) <= 3 else None


def cell_width(step: float | None, graded: np.ndarray | None = None) -> float:
    """Width of a histogram's bars. 0/1 benefits: the `grid`, else a quarter. `graded` contributions [n, M]: a multiple of the
    grid, else a round number, by which nine tenths of them fill about ten bars.
    """
    if graded is None:
        return step or 0.25
    known = graded[~np.isnan(graded)]
    span = float(np.quantile(known, 0.95) - np.quantile(known, 0.05)) if len(known) else 0.0
    if step is not None:
        return step * max(1, round(span / 10 / step))
    return next((width for width in (0.25, 0.1, 0.05, 0.025) if span >= 10 * width), 0.01)


def summary(f: Facts) -> list[list[str | float | int]]:
    """A row a modality: n, mean, 5 %, 25 %, 50 %, 75 %, 95 %, share below 0, share of 1 or more."""
    rows: list[list[str | float | int]] = []
    for i, m in enumerate(f.modalities if f.valued is not None else ()):
        assert f.valued is not None
        x = f.valued.contributions[:, i]
        x = x[~np.isnan(x)]
        if len(x):
            numbers = [x.mean(), *np.quantile(x, [0.05, 0.25, 0.5, 0.75, 0.95]), (x < 0).mean(), (x >= 1 - 1e-9).mean()]
            rows.append([m, len(x), *map(float, numbers)])
    return rows


def resampling(f: Facts) -> list[Figure]:
    """What each epoch was made of, and how often samples are copied in the newest plan."""
    if f.column("entries") is None:
        return []
    rows, colour = f.manifest.splits["train"].rows, len(f.modalities)
    copies = {m: f.column(f"copies/{m}") or [0.0] * len(f.epochs) for m in f.modalities}
    repeats = f.column("repeats") or [0.0] * len(f.epochs)
    series = [Series("originals", [float(rows)] * len(f.epochs), "ink")]
    series += [Series(f"copies of {m}", copies[m], i) for i, m in enumerate(f.modalities) if any(copies[m])]
    series += [Series("repeats", repeats, colour)] if any(repeats) else []
    flagged, reused = {}, f.column("reused_plan") or [0.0] * len(f.epochs)
    for i, (epoch, entries) in enumerate(zip(f.epochs, f.column("entries") or [])):
        planned = sum(int(s.y[i] or 0) for s in series)
        if reused[i]:
            flagged[str(epoch)] = (
                f"epoch {epoch} was trained on an earlier plan once more: the valuation actors were lost"
            )
        elif entries is not None and entries < planned:
            flagged[str(epoch)] = (
                f"epoch {epoch} ended after {int(entries):,} of {planned:,} entries: the budget was spent"
            )
    figures = [
        Figure(
            "entries",
            "Entries of an epoch",
            "stack",
            "epoch",
            "entries",
            f.epochs,
            series,
            note=" ".join(f"▲ {text[0].upper()}{text[1:]}." for text in flagged.values()),
            flagged=flagged,
        )
    ]
    if (newest := f.last_plan()) is not None:
        epoch, plan = newest
        table = {m: plan.copies[:, i] for i, m in enumerate(f.modalities)}
        table |= {"repeats": plan.repeats} if plan.repeats.any() else {}
        most = max((int(column.max(initial=0)) for column in table.values()), default=0)
        bars = [
            Series(name, np.bincount(column, minlength=most + 1).tolist(), i)
            for i, (name, column) in enumerate(table.items())
        ]
        title = f"Copies a sample gets (plan of epoch {epoch})"
        figures.append(Figure("copies", title, "group", "copies", "samples", list(range(most + 1)), bars))
    return figures


def losses(f: Facts) -> list[Figure]:
    """Training loss by objective over steps; validation loss and headline metric, full and each modality alone."""
    figures = []
    named = [c for c in map(str, f.steps) if c.startswith("loss/")]
    if len(f.steps):
        columns = {c.removeprefix("loss/"): c for c in named} if named else {"loss": "loss"}
        if len(named) > 1:
            columns = {"total": "loss", **columns}
        figures.append(_over_steps(f, "loss", "Training loss by objective", "loss", columns))
    for metric, label in (("loss", "loss"), (f.headline, f.headline)):
        series = []
        if (full := f.column(f"validation/{metric}")) is not None:
            series.append(Series("all modalities", full, "ink"))
        for i, m in enumerate(f.modalities):
            if (alone := f.column(f"validation/{m}/{metric}")) is not None:
                series.append(Series(f"{m} alone", alone, i))
        if series:
            title = f"Validation {label}"
            figures.append(_epochs(f, f"validation/{metric}", title, label, series))
    return figures


def seconds(f: Facts) -> list[Figure]:
    """Where each epoch's time went."""
    spent = phases(f)
    if not spent:
        return []
    series = [Series(name, values, len(f.modalities) + i) for i, (name, values) in enumerate(spent.items())]
    total = sum(map(sum, spent.values())) or 1.0
    shares = ", ".join(f"{name} {sum(values) / total:.0%}" for name, values in spent.items())
    note = f"{total:.1f} s in all: {shares}."
    return [Figure("seconds", "Time by phase", "stack", "epoch", "seconds", f.epochs, series, note=note)]


def phases(f: Facts) -> dict[str, list[float]]:
    """Seconds of each epoch by phase, parts that do not overlap; phases that took no time are left out."""
    raw = {
        str(c).removeprefix("seconds/"): np.nan_to_num(f.metrics[c].to_numpy(float))
        for c in f.metrics
        if str(c).startswith("seconds/")
    }
    if "reduce" not in raw and "seconds/reduce" in f.steps:
        by_epoch = f.steps.groupby("epoch")["seconds/reduce"].sum()
        raw["reduce"] = by_epoch.reindex(f.epochs).fillna(0.0).to_numpy()
    nothing = np.zeros(len(f.epochs))
    train, waited, step = (raw.pop(name, nothing) for name in ("train", "wait", "compute"))
    first, reduce = np.minimum(raw.get("first_batch", nothing), waited), raw.get("reduce", nothing)
    parts = {"first_batch": first, "wait": waited - first, "step": np.maximum(step - reduce, 0), "reduce": reduce}
    parts["rest"] = np.maximum(train - waited - step, 0)
    parts |= {name: values for name, values in raw.items() if name not in parts}
    order = [*_PHASES, *sorted(set(parts) - set(_PHASES))]
    return {_PHASES.get(p, p): [round(float(v), 6) for v in parts[p]] for p in order if p in parts and parts[p].any()}


def reported(f: Facts) -> tuple[list[Figure], list[Figure]]:
    """What the balancer reports: (conflicts between objectives, everything else), columns of one name together."""
    groups: dict[str, dict[str, str]] = {}
    for column in map(str, f.steps):
        if _PLAIN.match(column) or not pd.api.types.is_numeric_dtype(f.steps[column]):
            continue
        group, name = column.split("/", 1) if "/" in column else (column, column)
        for m in f.modalities:
            if column.endswith(f"_{m}"):
                group, name = column[: -len(m) - 1], m
        groups.setdefault(group, {})[name] = column
    figures = [
        (group, _over_steps(f, group, group.replace("_", " "), group, columns)) for group, columns in groups.items()
    ]
    conflicts = [figure for group, figure in figures if _CONFLICT.search(group)]
    return conflicts, [figure for group, figure in figures if not _CONFLICT.search(group)]


def _epochs(f: Facts, key: str, title: str, label: str, series: Sequence[Series], marks: Sequence[Mark] = ()) -> Figure:
    best = f.best["epoch"] if f.best else None
    return Figure(key, title, "lines", "epoch", label, f.epochs, series, marks, best=best)


def _over_steps(f: Facts, key: str, title: str, label: str, columns: dict[str, str]) -> Figure:
    """Lines over steps, each point the mean of as many steps as leave at most BINS points."""
    size = math.ceil(len(f.steps) / BINS)
    bins = f.steps.groupby(np.arange(len(f.steps)) // size)
    x = [float(v) for v in bins["step"].mean()]
    series = []
    for i, (name, column) in enumerate(columns.items()):
        known = name in f.modalities
        colour = f.modalities.index(name) if known else "ink" if i == 0 else len(f.modalities) + i - 1
        series.append(Series(name, optional(bins[column].mean()), colour))  # type: ignore[arg-type]
    note = f"Each point is the mean of {size} steps." if size > 1 else ""
    return Figure(key, title, "lines", "step", label, x, series, note=note, zero=key == "loss")


def _means(table: np.ndarray) -> list[float | None]:
    known = [column[~np.isnan(column)] for column in table.T]
    return [float(column.mean()) if len(column) else None for column in known]
