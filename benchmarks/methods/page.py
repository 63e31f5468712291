"""The page. Every number and every verdict in it is worked out from the records; the sentences around them are fixed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.first_results import tables as first_tables
from benchmarks.first_results import wording as w
from benchmarks.first_results.page import SELECTION, machine
from benchmarks.first_results.statistics import LEVEL
from benchmarks.first_results.studies import BATCH
from benchmarks.methods import tables
from benchmarks.methods.fingerprint import fingerprint
from benchmarks.methods.results import FIGURES, MethodResults
from benchmarks.methods.studies import JOINT, REFERENCES, SEVERITY
from equipoise.models.errors import EquipoiseError

#: The figures that the page sums up.
HEADLINES = ("full", "missing Avg", "noisy Avg")


def write_page(
    path: Path,
    results: Sequence[MethodResults],
    absent: Mapping[str, str],
    data: dict[str, str],
    calls: Mapping[str, float],
    jobs: int,
) -> None:
    """Write the page to `path`; the figure is expected beside it, as .svg."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page(results, absent, data, calls, jobs, path.with_suffix(".svg").name))


def page(
    results: Sequence[MethodResults],
    absent: Mapping[str, str],
    data: dict[str, str],
    calls: Mapping[str, float],
    jobs: int,
    figure: str = "method-results.svg",
) -> str:
    """Markdown. `absent` {data set: why it is not there}, `data` {data set: a folder of it}, `calls` {call: seconds}."""
    if not results:
        raise EquipoiseError(
            "None of the data sets is installed here, so there is no table: " + " ".join(absent.values())
        )
    for found in results:
        found.check_equal_steps()
    parts = ["# All methods in one table", _opening(results), "## In short", _short(results)]
    parts += [f"![Paired differences to joint training, with their intervals]({figure})"]
    parts += ["## What was run", tables.what_they_are(results), w.paragraph(METHODS)]
    parts += [first_tables.data_sets(results), *_left_out(results, absent)]
    parts += [w.paragraph(text) for text in (SETTINGS, SEEDS, SELECTION)]
    parts += [tables.noises(results, data), w.paragraph(HOW_TO_READ)]
    for found in results:
        parts += [f"## {found.name}", tables.accuracies(found)]
        parts += [tables.differences(found, reference) for reference in REFERENCES]
    parts += ["## Limits", _limits(results), "## How this page was made", *_made(results, calls, jobs)]
    return "\n\n".join(parts) + "\n"


def _opening(results: Sequence[MethodResults]) -> str:
    methods = len({method for found in results for method in found.methods})
    return w.paragraph(
        f"""{methods} methods on {w.listed([found.name for found in results])} at equal optimiser steps: test accuracy with all
        modalities, with each one missing and with each one noisy, and processor time. Every registered balancer is here without
        resampling, and joint training with every resampler. Numbers and sentences that hold numbers are worked out from
        the records of the runs by the command that made them, `python -m benchmarks.methods`. No method is said to be better
        here: intervals are those of one comparison each, with no correction for how many there are."""
    )


def _short(results: Sequence[MethodResults]) -> str:
    pairs = [(name, reference) for reference in REFERENCES for name in HEADLINES]
    lines = [f"{_counted(results, *pair)}{_throughout(results, *pair)}" for pair in pairs]
    lines += [_ranges(found) for found in results]
    lines += [line for found in results if (line := _alike(found))]
    return "\n".join(w.paragraph(f"- {line}", "  ") for line in lines)


def _counted(results: Sequence[MethodResults], name: str, reference: str) -> str:
    """How the intervals of all methods against the reference lie."""
    all_of_them = [
        found.difference(method, reference, name)
        for found in results
        for method in found.methods
        if method != reference
    ]
    above, below = ([d for d in all_of_them if tables.leaves_out_zero(d) and sign * d.mean > 0] for sign in (1, -1))
    chance = (1 - LEVEL) * len(all_of_them)
    return f"""**{name}, minus `{reference}`**: of {len(all_of_them)} intervals {len(above)} lie above zero, {len(below)} below
        and {len(all_of_them) - len(above) - len(below)} on both sides; about {chance:.0f} would leave out zero if nothing
        differed."""


def _throughout(results: Sequence[MethodResults], name: str, reference: str) -> str:
    """The methods whose intervals lie on the same side of zero on all data sets."""
    if len(results) < 2:
        return ""
    everywhere = [m for m in results[0].methods if m != reference and all(m in found.runs for found in results)]
    said = []
    for word, sign in (("above", 1), ("below", -1)):
        kept = [
            f"`{m}`"
            for m in everywhere
            if all(
                tables.leaves_out_zero(d) and sign * d.mean > 0
                for d in (found.difference(m, reference, name) for found in results)
            )
        ]
        said.append(f"{word} on all {len(results)} data sets: {w.listed(kept)}")
    whole = "; ".join(said)
    return f" {whole[:1].upper()}{whole[1:]}."


def _ranges(found: MethodResults) -> str:
    """Lowest and highest mean of all methods, beside the deviation of joint training over seeds."""
    parts = []
    for name in HEADLINES:
        means = {m: found.spread(m, name).mean for m in found.methods}
        low, high = min(means, key=means.__getitem__), max(means, key=means.__getitem__)
        joint = w.spread(found.spread(JOINT, name))
        parts.append(
            f"{name} from {w.number(means[low])} (`{low}`) to {w.number(means[high])} (`{high}`), joint {joint}"
        )
    return f"**{found.name}**: {'; '.join(parts)}."


def _alike(found: MethodResults) -> str:
    """The methods that no test row under any condition tells apart, on any seed."""
    groups: dict[str, list[str]] = {}
    for method, seeds in found.runs.items():
        groups.setdefault(str(sorted((seed, record["impaired"]) for seed, record in seeds.items())), []).append(method)
    same = [w.listed([f"`{m}`" for m in group]) for group in groups.values() if len(group) > 1]
    return (
        f"**{found.name}**, the same accuracies on every seed and in every condition: {'; '.join(same)}."
        if same
        else ""
    )


METHODS = f"""[Methods](methods/README.md) has a card of each balancer.
A name with `+` is joint training on rows that a resampler plans. *Family*: what a method changes. *Fusion*: the one
that it gets where none is asked for; those with another than `concat` are another model, so a difference to `{JOINT}` is also
one of model. *Seconds / joint*: geometric mean over the data sets."""
SETTINGS = f"""Every method made the same number of optimiser steps with batches of {BATCH}; copies and repeats take the places of
whole rows. AdamW; the learning rate goes down to zero by half a cosine after a warm-up of a twentieth. The settings in the table
are those with the highest validation accuracy of joint training at seed 0, out of the number of tries in the last column. All
methods of a data set have them and none was tuned further: every option has its default, but resamplers begin after the first
epoch (`warmup` = 1). A method that wants other settings than joint training is at a disadvantage. AdamW divides a constant
factor of the gradient out again, so that methods which scale gradients do less here than under SGD."""
SEEDS = """A seed draws the split of the data (but on `watch` seed k holds out the subjects of fold k), the first weights, the
order of the rows, every random choice and the noise. Methods are compared on the same seeds: same splits, same noise and, where
the model is the same, same first weights."""
HOW_TO_READ = f"""Test accuracy: mean over the seeds and, in brackets, standard deviation. *Full*: all modalities, no
noise. *Missing*: each modality in turn missing in every row (what stands for it is zeros; with the fusion `average`,
it is left out). *Noisy*: each in turn with noise of severity {SEVERITY} of 5 ([impairment](impairment.md)) in every row;
training saw none. **Avg** is the mean over modalities, **Gap** the largest difference between two, as in BalGrad's
tables. *Seconds*: processor time of one training with its sweeps, one thread. In the differences, Student's paired t
over seeds; {tables.MARK} marks intervals that leave out zero, each by itself. A smaller Gap is no gain where Avg
falls with it."""


def _left_out(results: Sequence[MethodResults], absent: Mapping[str, str]) -> list[str]:
    out = [f"`{name}` is not on this page: {reason.rstrip('.')}." for name, reason in absent.items()]
    refused: dict[tuple[str, str], list[str]] = {}
    for found in results:
        for method, reason in found.refused.items():
            refused.setdefault((method, reason), []).append(found.name)
    out += [f"`{m}` was not run on {w.listed(names)}: {reason.rstrip('.')}." for (m, reason), names in refused.items()]
    return [w.paragraph(text) for text in out]


def _limits(results: Sequence[MethodResults]) -> str:
    intervals = sum(
        (len(found.methods) - 1) * len(FIGURES) * len([r for r in REFERENCES if r in found.runs]) for found in results
    )
    lines = [
        f"The tables of differences hold {intervals} intervals; where nothing differs at all, one in twenty leaves out zero. "
        "Which method is better than which is a question for tests that are corrected for their number and for budgets "
        "of tuning that are equal; this page has neither.",
        "Small data, small models (late fusion, encoders of a few layers), a CPU. Nothing here says what large pretrained "
        "encoders do.",
        "Splits of one data set share rows, and folds share subjects to train on: seeds are not quite independent, and the "
        "intervals are somewhat too narrow.",
        "The settings were chosen on validation rows of seed 0, some of which are test rows of other seeds where seeds draw "
        "the split.",
        "The best epoch is chosen by accuracy with all modalities and without noise, and need not be the best for others.",
        "Equal steps are not equal time: methods with several backward passes take longer for each step.",
    ]
    return "\n".join(w.paragraph(f"- {line}", "  ") for line in lines)


def _made(results: Sequence[MethodResults], calls: Mapping[str, float], jobs: int) -> list[str]:
    records = [record for found in results for record in found.records]
    trained = sum(record["seconds"]["cpu"] for record in records) / 60
    several = "one call" if len(calls) == 1 else f"{len(calls)} calls"
    commands = [
        "python -m benchmarks.methods",
        "python -m benchmarks.methods --only digits,watch --out runs/page.md",
    ]
    texts = [
        """A run that is there is not made again; stopped, the command goes on where it was. A record names the hash of the code
        that its method runs, not of other methods: where one is added or changed, its runs alone are made. The records are in
        `runs/methods`, one JSON file a run with its configuration, seed and the hashes of its data and code; the data in
        `data/methods`. Emoji are looked for in `node_modules` and in the folders of `NODE_PATH`.""",
        f"""{datetime.now(UTC):%Y-%m-%d}: {len(records)} runs in {several} of the command, {sum(calls.values()) / 60:.0f}
        minutes, {jobs} at a time in the last one, one torch thread each, of which {trained:.0f} minutes of processor time in the
        trainings. {machine()}. Code of joint training `{fingerprint(JOINT)[:12]}`.""",
    ]
    return ["\n".join(["```sh", *commands, "```"]), *(w.paragraph(text) for text in texts)]
