"""The page. Every number and every verdict in it is worked out from the records; the sentences around them are fixed."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from benchmarks.first_results import wording as w
from benchmarks.first_results.statistics import Difference, Spread, detectable, holm, paired
from benchmarks.sharing.runs import ROWS, Results

TITLES = {
    "early": "early fusion, zero-fill",
    "dropout": "modality dropout",
    "ds_dropout": "DS + dropout",
    "ds_mean": "DS + mean loss",
    "ds_gmd": "DS + GMD",
}
#: (row a, row b, what a - b is)
PAIRS = (
    ("ds_mean", "early", "DS + mean − early"),
    ("ds_mean", "dropout", "DS + mean − dropout"),
    ("ds_dropout", "dropout", "DS + dropout − dropout"),
    ("ds_mean", "ds_dropout", "DS + mean − DS + dropout"),
    ("ds_gmd", "ds_mean", "DS + GMD − DS + mean"),
)
HOW = """Rows are what a test row still has. Accuracy, or Dice (mean over regions and cases), on test: mean (standard
deviation) over seeds. "mean over all" is over the sets above it, each counted once. Differences are paired by seed, with
Student's 95 % intervals; a star marks those that also hold among all sets of the column together (Holm)."""


def write_page(path: Path, results: Sequence[Results]) -> None:
    """Write the page."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page(results))


def page(results: Sequence[Results]) -> str:
    """Markdown."""
    for found in results:
        made = {record["steps"] for records in found.runs.values() for record in records}
        assert made == {found.study.steps}, f"{found.study.name}: steps {made}"
    parts = ["# What Dynamic Sharing and GMD add", _opening(results), "## In short", short(results)]
    parts += ["## What was run", _setting(results), settings(results), "## Results", w.paragraph(HOW)]
    for found in results:
        parts += [f"### {found.study.name}", w.paragraph(f"{found.study.about}."), means(found), differences(found)]
    parts += ["## Conflicts along training", _conflicts(results), "## Limits", _limits(results)]
    parts += ["## How this page was made", _made(results)]
    return "\n\n".join(parts) + "\n"


def groups(found: Results) -> list[tuple[str, list[int]]]:
    """What a table has rows for: every set of modalities, then their mean, then that of the single ones."""
    subsets = found.subsets()
    alone = [c for c, _ in subsets if c.bit_count() == 1]
    return [
        *((name, [c]) for c, name in subsets),
        ("mean over all", [c for c, _ in subsets]),
        ("mean over single ones", alone),
    ]


def difference(found: Results, a: str, b: str, coalitions: list[int]) -> Difference:
    return paired(found.values(a, coalitions), found.values(b, coalitions))


def held(found: Results, a: str, b: str) -> dict[int, Difference]:
    """The sets of modalities in which a and b differ, all sets looked at together (Holm)."""
    each = {c: difference(found, a, b, [c]) for c, _ in found.subsets()}
    return {c: d for (c, d), holds in zip(each.items(), holm([d.p for d in each.values()])) if holds}


def means(found: Results) -> str:
    rows = [
        [name, *(w.spread(Spread.of(found.values(row, coalitions))) for row in ROWS)]
        for name, coalitions in groups(found)
    ]
    return w.table([found.metric, *(TITLES[row] for row in ROWS)], rows)


def differences(found: Results) -> str:
    starred = {(a, b): held(found, a, b) for a, b, _ in PAIRS}
    rows = []
    for name, coalitions in groups(found):
        cells = []
        for a, b, _ in PAIRS:
            star = "\\*" if len(coalitions) == 1 and coalitions[0] in starred[a, b] else ""
            cells.append(w.difference(difference(found, a, b, coalitions)) + star)
        rows.append([name, *cells])
    return w.table(["difference", *(title for *_, title in PAIRS)], rows)


def said(found: Results, a: str, b: str) -> str:
    """What a adds to b on a data set, in words: over all sets, with everything there, alone, and set by set."""
    subsets = [c for c, _ in found.subsets()]
    over = difference(found, a, b, subsets)
    full = difference(found, a, b, subsets[:1])
    alone = difference(found, a, b, [c for c in subsets if c.bit_count() == 1])
    each = held(found, a, b)
    up, down = sum(d.mean > 0 for d in each.values()), sum(d.mean < 0 for d in each.values())
    return (
        f"on {found.study.name} {over.verdict} over all sets ({w.difference(over)}), {full.verdict} with everything there "
        f"({w.difference(full)}), {alone.verdict} with one modality alone ({w.difference(alone)}); of {len(subsets)} sets, "
        f"looked at together, {up} higher and {down} lower"
    )


QUESTIONS = (
    ("Dynamic Sharing with the mean loss against early fusion with zero-fill", "ds_mean", "early"),
    ("The same against modality dropout, which also trains on incomplete rows", "ds_mean", "dropout"),
    ("The model alone, both trained by dropout (Dynamic Sharing against early fusion)", "ds_dropout", "dropout"),
    ("The loss alone, on Dynamic Sharing (every set in every step against one set a row)", "ds_mean", "ds_dropout"),
    ("GMD's conflict removal, all else equal", "ds_gmd", "ds_mean"),
)


def short(results: Sequence[Results]) -> str:
    lines = [
        w.paragraph(f"- **{question}**: {'; '.join(said(found, a, b) for found in results)}.", "  ")
        for question, a, b in QUESTIONS
    ]
    for what, (a, b) in {
        "Dynamic Sharing (the model, both trained by dropout)": ("ds_dropout", "dropout"),
        "GMD's conflict removal": ("ds_gmd", "ds_mean"),
    }.items():
        lines.append(w.paragraph(f"- So {what} {verdict(results, a, b)}", "  "))
    rates = [
        f"{100 * np.mean([record['conflicts'] for record in found.runs['ds_mean']]):.1f}{w.SPACE}% on {found.study.name}"
        for found in results
    ]
    lines.append(
        w.paragraph(
            f"- How much there was to remove: of all pairs of sets, in the steps that were looked at with the mean loss, "
            f"{w.listed(rates)} had "
            "gradients that oppose each other.",
            "  ",
        )
    )
    return "\n".join(lines)


def verdict(results: Sequence[Results], a: str, b: str) -> str:
    """One clause over all data sets, from the intervals of the mean over all sets."""
    by: dict[str, list[str]] = {}
    for found in results:
        d = difference(found, a, b, [c for c, _ in found.subsets()])
        by.setdefault(d.verdict, []).append(found.study.name)
    words = {"higher": "added something on", "lower": "cost something on", "not distinguishable": "made no difference that "
             "these seeds can show on"}  # fmt: skip
    return " and ".join(f"{words[v]} {w.listed(names)}" for v, names in by.items()) + "."


def _opening(results: Sequence[Results]) -> str:
    seeds = len(results[0].runs["early"])
    return w.paragraph(
        f"""Two ideas of Wang et al. (AAAI 2024) apart: Dynamic Sharing, the model ([Models](models.md#dynamic-sharing)), and
        [GMD](methods/gmd.md), the training. Trained on complete rows, tested with every set of modalities, {seeds} seeds, equal
        optimiser steps. Numbers and verdicts on this page are worked out from the records of the runs by the command that
        made them, `python -m benchmarks.sharing`."""
    )


def _setting(results: Sequence[Results]) -> str:
    return "\n".join(
        w.paragraph(f"- {line}", "  ")
        for line in (
            """Early fusion: all modalities side by side in one network, zeros where one is absent (volumes: `model.kind=early`,
            channels of one U-Net; mfeat: `model.join=concat`), trained on complete rows by the one loss. Its network is that of
            Dynamic Sharing but for the first layer and for one set of affines instead of one a modality.""",
            """Modality dropout: the same model; each step every row keeps a random non-empty set of its modalities, all sets
            equally likely (`balancer=modality_dropout`, `distribution=uniform`).""",
            """DS + dropout: Dynamic Sharing trained so. Not one of the four rows of the question, but what separates the model
            from its losses.""",
            """DS + mean loss: Dynamic Sharing, the mean of the losses of all sets in every step (`balancer=gmd`,
            `project=false`). DS + GMD: the same without what conflicts (`balancer=gmd`).""",
            """The rate of each row by itself: the better one of two on the first seed's validation (mean over all sets); DS + GMD
            has that of DS + mean loss, so that the removal of conflicts is all that differs. The epoch: the best on validation
            with all modalities. Test was looked at once. A seed is also another draw of the data (volumes) or of the split
            (mfeat). AdamW, weight decay 0.01, warm-up of 5 %, then half a cosine.""",
        )
    )


def settings(results: Sequence[Results]) -> str:
    """A row a data set and row of the study: size, rate, seconds."""
    lines = []
    for found in results:
        for row in ROWS:
            records = found.runs[row]
            rate = records[0]["identity"]["config"]["optimizer"]["lr"]
            seconds = float(np.mean([r["seconds"] for r in records]))
            best = float(np.mean([r["best"] for r in records]))
            rows = records[0]["rows"]
            split = f"{rows['train']}, {rows['validation']}, {rows['test']}"
            size = f"{records[0]['parameters']:,}"
            steps = f"{found.study.steps} of {found.study.batch}"
            lines.append(
                [found.study.name, TITLES[row], split, steps, size, f"{rate:g}", f"{best:.0f}", f"{seconds:.0f}"]
            )
    header = [
        "data set",
        "row",
        "train, validation, test",
        "steps",
        "parameters",
        "rate",
        "best at step",
        "CPU s a run",
    ]
    return w.table(header, lines)


def _conflicts(results: Sequence[Results]) -> str:
    lines = []
    for found in results:
        for row in ("ds_mean", "ds_gmd"):
            quarters = np.mean([record["conflicts"] for record in found.runs[row]], axis=0)
            after = [record["conflicts_after"] for record in found.runs[row]]
            left = w.percent(float(np.mean(after))) if None not in after else "–"
            lines.append([found.study.name, TITLES[row], *(f"{100 * q:.1f}{w.SPACE}%" for q in quarters), left])
    told = w.paragraph(
        """The share of pairs of sets whose gradients oppose each other (`gradient/conflicts`, [the indicator](indicator.md)), in
        each quarter of training, mean over seeds; and after GMD removed conflicts. What GMD can change is bounded by it."""
    )
    return f"{told}\n\n" + w.table(["data set", "row", "first quarter", "second", "third", "last", "after"], lines)


def _limits(results: Sequence[Results]) -> str:
    seeds = len(results[0].runs["early"])
    late = [
        found.study.name
        for found in results
        if np.mean([r["best"] for records in found.runs.values() for r in records]) > 0.85 * found.study.steps
    ]
    unfinished = (
        f"On {w.listed(late)} the best epoch was one of the last: with more steps the rows may stand otherwise to each other."
        if late
        else ""
    )
    return w.paragraph(
        f"""Small data, small models, short trainings: what is said here is said of these. {unfinished}
        Equal steps are not equal work: a step with the loss of every set costs several times as much (the seconds above).
        Made-up volumes have ellipsoids in noise, where brightness tells most; nothing follows for scans of patients, and the
        paper's tables are not reproduced. All rows were complete in training; where training rows lack modalities, zero-fill
        sees other inputs and may do better. In Dynamic Sharing a set's logits are the mean of its members' logits, so what only
        two modalities together show cannot be learnt; where it falls behind one network of all inputs on the larger sets, that
        is the first suspect, and was not tested here. With {seeds} seeds, a true difference is seen four times of five where it
        is {detectable(seeds):.1f} standard deviations of the paired differences; smaller ones may be there."""
    )


def _made(results: Sequence[Results]) -> str:
    total = sum(record["seconds"] for found in results for records in found.runs.values() for record in records) + sum(
        record["seconds"]
        for found in results
        for row, tries in found.tries.items()
        for record in tries.values()
        if record["identity"] != found.runs[row][0]["identity"]
    )
    return w.paragraph(
        f"""`python -m benchmarks.sharing` ran what was missing and wrote this page: {total / 60:.0f} minutes of CPU time on one
        thread, {platform.machine()}; torch {torch.__version__}, Python {platform.python_version()}. It goes on where it was
        stopped; the records are under `runs/sharing`."""
    )
