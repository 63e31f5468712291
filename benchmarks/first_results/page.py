"""The page. Every number and every verdict in it is worked out from the records; the sentences around them are fixed."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import scipy
import torch

from benchmarks.first_results import tables
from benchmarks.first_results import wording as w
from benchmarks.first_results.reasons import MECHANISM_HEADER, WORTH, copies_share, mechanism_row, why
from benchmarks.first_results.results import Results
from benchmarks.first_results.statistics import LEVEL, POWER, detectable
from benchmarks.first_results.studies import BATCH, METHODS
from benchmarks.first_results.training import code_hash
from equipoise.pipelines.machine import processor


def write_page(
    path: Path, results: Sequence[Results], absent: Mapping[str, str], calls: Mapping[str, float], jobs: int
) -> None:
    """Write the page to `path`; the figure is expected beside it, as .svg."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page(results, absent, calls, jobs, path.with_suffix(".svg").name))


def page(
    results: Sequence[Results],
    absent: Mapping[str, str],
    calls: Mapping[str, float],
    jobs: int,
    figure: str = "first-results.svg",
) -> str:
    """Markdown. `absent` {data set: why it is not there}, `calls` {call of the command: seconds}."""
    for found in results:
        found.check_equal_steps()
    parts = ["# First results", _opening(results)]
    if results:
        parts += ["## In short", _short(results), f"![Paired differences with their intervals]({figure})"]
    parts += ["## What was run", *_setting(results, absent)]
    if results:
        parts += ["## Results by data set", w.paragraph(HOW_TO_READ)]
        for found in results:
            parts += [f"### {found.name}", tables.accuracies(found), tables.differences(found)]
        parts += ["## Where valuation beats random copies, and where it does not"]
        parts += [_against_random(results), tables.random_table(results)]
        parts += ["## Where accuracy was lost, and why", *_reasons(results)]
        parts += ["## Limits", _limits(results)]
    parts += ["## How this page was made", *_made(results, calls, jobs)]
    return "\n\n".join(parts) + "\n"


def _opening(results: Sequence[Results]) -> str:
    if not results:
        return "None of the data sets is installed here, so there is nothing to say."
    return w.paragraph(
        f"""Does it help to value samples? {len(METHODS)} methods on {len(results)} small data sets at equal optimiser
        steps: what each reaches with all modalities and with each one missing, whether choosing rows by their
        contributions beats choosing them at random, and what it costs. Numbers and verdicts on this page are worked out
        from the records of the runs by the command that made them, `python -m benchmarks.first_results`."""
    )


def spoken(results: Iterable[Results], a: str, b: str, name: str) -> str:
    """Method a against method b: higher on x (+.010) and y (+.020); lower on z (−.030); not distinguishable on v."""
    by: dict[str, list[str]] = {"higher": [], "lower": [], "not distinguishable": [], "one seed": []}
    for found in results:
        d = found.difference(a, b, name)
        quiet = d.verdict == "not distinguishable"
        by[d.verdict].append(found.name if quiet else f"{found.name} ({w.number(d.mean, sign=True)})")
    titles = {"one seed": "without an interval (one seed)"}
    return "; ".join(f"{titles.get(verdict, verdict)} on {w.listed(names)}" for verdict, names in by.items() if names)


def _short(results: Sequence[Results]) -> str:
    def say(a: str, b: str, name: str) -> str:
        return spoken(results, a, b, name)

    verdicts = [d.verdict for *_, d in tables.against_random(results)]
    lines = [
        f"""**Does valuation beat chance?** Of {len(verdicts)} comparisons of `sample` and `modality` with copies of random
        rows, it is higher in {verdicts.count("higher")}, lower in {verdicts.count("lower")} and not distinguishable in
        {verdicts.count("not distinguishable")}.""",
        f"""**Does training on single modalities help where one is missing?** Avg, random copies against joint:
        {say("random_copies", "joint", "Avg")}.""",
        f"""**Does choosing the rows by valuation?** `sample` against random copies. Avg:
        {say("sample", "random_copies", "Avg")}. All modalities: {say("sample", "random_copies", "all")}.""",
        f"""**Does choosing the modality by valuation?** `modality` against random copies. Avg:
        {say("modality", "random_copies", "Avg")}. All modalities: {say("modality", "random_copies", "all")}.""",
        f"""**What needs no values?** Modality dropout against joint. Avg: {say("modality_dropout", "joint", "Avg")}. All
        modalities: {say("modality_dropout", "joint", "all")}. `sample` against modality dropout. Avg:
        {say("sample", "modality_dropout", "Avg")}.""",
        f"""**What does it cost where all modalities are there?** `sample` against joint: {say("sample", "joint", "all")}.
        Random copies against joint: {say("random_copies", "joint", "all")}.""",
    ]
    return "\n".join(w.paragraph(f"- {line}", "  ") for line in lines)


SEEDS = """A seed draws the split of the data (test included; but on `watch` seed k holds out the subjects of fold k, and on
`easy-vqa` test pictures are the package's own and the questions are drawn), the first weights, the order of the rows and
every random choice. Methods are compared on the same seeds: same splits, same first weights."""
SETTINGS = f"""Every method made the same number of optimiser steps with batches of {BATCH}; copies and repeats take the
places of whole rows. AdamW; the learning rate goes down to zero by half a cosine after a warm-up of a twentieth. The
settings in the table are those with the highest validation accuracy of joint training at seed 0, out of the number of
tries in the last column. All methods of a data set have them, and none was tuned further: balancers and resamplers have
their defaults, but resamplers begin after the first epoch (`warmup` = 1). If anything, they favour joint training."""
SELECTION = """Of each run the best epoch by validation accuracy with all modalities (of equals, that with the lower loss)
was evaluated on test, once."""
HOW_TO_READ = """Test accuracy: mean over the seeds and, in brackets, standard deviation. *Without m*: modality m is missing
in every row (its features are zeros). **Avg** and **Gap** are those of BalGrad's tables, mean and absolute difference of the
two impaired accuracies; with three modalities, the mean of the three accuracies with one missing, and the largest minus the
smallest. *Subsets*, there, is the mean over all seven subsets, as GMD has it. *Contribution*: mean Shapley contribution over
the test rows; they add up to the number of modalities times the accuracy. *Seconds*: processor time of one training with its
sweeps. **higher** and **lower** mark intervals without zero."""


def _setting(results: Sequence[Results], absent: Mapping[str, str]) -> list[str]:
    out = [tables.data_sets(results)] if results else []
    out += [w.paragraph(f"`{name}` is not on this page: {reason.rstrip('.')}.") for name, reason in absent.items()]
    return [*out, tables.methods(), *(w.paragraph(text) for text in (SEEDS, SETTINGS, SELECTION))]


def _against_random(results: Sequence[Results]) -> str:
    verdicts = [d.verdict for *_, d in tables.against_random(results)]
    tested = [verdict for verdict in verdicts if verdict != "one seed"]
    seeds = sorted({found.seeds for found in results if found.seeds > 1})
    sizes = [f"{detectable(n):.1f} standard deviations of the paired differences with {n} seeds" for n in seeds]
    shares = {
        method: w.percent(float(np.mean([copies_share(found, method) for found in results])))
        for method in ("modality", "random_copies")
    }
    untested = f" {len(verdicts) - len(tested)} have one seed and no verdict." if len(tested) < len(verdicts) else ""
    return w.paragraph(
        f"""Of {len(tested)} comparisons with random copies valuation is higher in {tested.count("higher")}, lower in
        {tested.count("lower")} and not distinguishable in {tested.count("not distinguishable")}.{untested} *Higher* and
        *lower* say that the {w.percent(LEVEL)} interval of the paired difference (Student's t over seeds, scipy's
        `ttest_rel`) leaves out zero. Where nothing differs, about {(1 - LEVEL) * len(tested):.1f} of these {len(tested)} would
        be called so by chance; † marks those that hold when all are looked at together (Holm's method). *Detectable* is the
        true difference that would be found with a probability of {w.percent(POWER)}, given the spread seen:
        {w.listed(sizes)}. Smaller effects may well be there. `random_copies` is the control of `sample`: as many copies as
        the same rule makes of its own values, which need not be as many as a run of `sample` makes (the next section has
        both). `modality` makes far fewer, {shares["modality"]} of the rows trained on against {shares["random_copies"]} (mean
        of the data sets), so its difference is one of number as well as of choice."""
    )


CHECKED = """What was measured on every data set, whether or not anything was lost. *Swing*: how far the validation accuracy
moves from epoch to epoch, in the first half of the steps. *Right only together*: share of the test rows that are right with
all modalities and wrong with each alone. Further runs, which are checks and not methods: `fewer_rows` is joint training with
only as many steps as are filled by the whole rows that `sample` trained on; `smoothed` is `sample` with contributions
averaged over sweeps (`smoothing` = .5); and joint, random copies and `sample` once more at the lowest learning rate of the
tries. They were thought of after the first figures were seen: they explain, and prove nothing."""


def _reasons(results: Sequence[Results]) -> list[str]:
    out = [w.paragraph(CHECKED), w.table(MECHANISM_HEADER, [mechanism_row(found) for found in results])]
    quiet = []
    for found in results:
        paragraphs = why(found)
        if paragraphs:
            out += [f"### Why on {found.name}", *(w.paragraph(paragraph) for paragraph in paragraphs)]
        else:
            quiet.append(found.name)
    if quiet:
        out.append(
            w.paragraph(
                f"""On {w.listed(quiet)} nothing was lost: no resampler is lower than joint with all modalities and `sample` is
                not lower than random copies, neither beyond the interval nor by {w.number(WORTH)} or more on average."""
            )
        )
    return out


def _limits(results: Sequence[Results]) -> str:
    intervals = len(results) * len(tables.PAIRS) * len(tables.FIGURES)
    lines = [
        "Small data, small models (late fusion, encoders of a few layers), a CPU. Nothing here says what large pretrained "
        "encoders do.",
        f"The tables of differences hold {intervals} intervals; where nothing differs at all, one in twenty leaves out zero.",
        "Splits of one data set share rows, and folds share subjects to train on: seeds are not quite independent, and the "
        "intervals are somewhat too narrow.",
        "Settings were chosen for joint training. A method that wants another learning rate is at a disadvantage; the checks "
        "at the lowest rate, where there are some, show how much that can matter.",
        "The settings were chosen on validation rows of seed 0, some of which are test rows of other seeds where seeds draw "
        "the split.",
        "The best epoch is chosen by accuracy with all modalities, and need not be the best for a missing one.",
    ]
    return "\n".join(w.paragraph(f"- {line}", "  ") for line in lines)


def _made(results: Sequence[Results], calls: Mapping[str, float], jobs: int) -> list[str]:
    records = [record for found in results for record in found.records]
    trained = sum(record["seconds"]["cpu"] for record in records) / 60
    several = "one call" if len(calls) == 1 else f"{len(calls)} calls"
    commands = [
        "python -m benchmarks.first_results",
        "python -m benchmarks.first_results --only digits,watch --out runs/page.md",
    ]
    texts = [
        """A run that is there is not made again; stopped, the command goes on where it was. The records are in
        `runs/first-results`, one JSON file a run with its configuration and the hashes of its data and code; the data in
        `data/first-results`. Where a data set's package is missing, the page says so and how to install it; emoji are looked
        for in `node_modules` and in the folders of `NODE_PATH`.""",
        f"""{datetime.now(UTC):%Y-%m-%d}: {len(records)} runs in {several} of the command, {sum(calls.values()) / 60:.0f}
        minutes with {jobs} processes at a time, one torch thread each, of which {trained:.0f} minutes of processor time in the
        trainings. {machine()}. Training code `{code_hash()[:12]}`.""",
    ]
    return ["\n".join(["```sh", *commands, "```"]), *(w.paragraph(text) for text in texts)]


def machine() -> str:
    """Cores, processor and versions."""
    versions = f"torch {torch.__version__}, numpy {np.__version__}, scipy {scipy.__version__}"
    return f"{os.cpu_count()} cores ({processor()}), Python {platform.python_version()}, {versions}"
