"""Why accuracy was lost: what each explanation that was thought of would show, measured, and what follows by a stated rule."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from benchmarks.first_results import wording as w
from benchmarks.first_results.results import Results
from benchmarks.first_results.statistics import Difference, Spread, alone, paired, right

#: A mean difference this large is looked into even where the interval holds 0.
WORTH = 0.01
#: A modality alone that is no better than the constant answer by this much is said to tell nothing about the label.
NOTHING = 0.02


def over_seeds(results: Results, method: str, figure: Callable[[Any], float]) -> Spread:
    return Spread.of([figure(record) for record in results.of(method).values()])


def whole_share(record: Any) -> float:
    """Of the rows trained on, the share that was whole."""
    return float(record["whole"] / (record["whole"] + sum(record["copies"].values())))


def copies_share(results: Results, method: str) -> float:
    """Of the rows trained on, the share that was copies, mean over the seeds."""
    return 1 - over_seeds(results, method, whole_share).mean


def copied_share(record: Any, modality: str) -> float:
    """Of the rows trained on, the share that was copies of this modality."""
    return float(record["copies"][modality] / (record["whole"] + sum(record["copies"].values())))


def swing(record: Any) -> float:
    """Mean change of the validation accuracy from epoch to epoch, either way, in the first half of the steps (later the
    falling learning rate stills everything)."""
    early = [row["value"] for row in record["curve"] if row["step"] <= record["steps"] / 2]
    return float(np.abs(np.diff(early)).mean()) if len(early) > 1 else 0.0


def only_together(record: Any) -> float:
    """Share of the test rows that are right with all modalities and wrong with each alone."""
    score = right(record)
    single = score[:, [(1 << m) - 1 for m in range(len(record["modalities"]))]]
    return float((score[:, -1] & ~single.any(axis=1)).mean())


def uninformative(results: Results) -> dict[str, float]:
    """{modality: by how much it alone beats the constant answer, in the method where it does best} where that is next to
    nothing."""
    gained = {}
    for m in results.modalities:
        gains = [
            np.mean([alone(record)[m] - record["constant"]["accuracy"] for record in runs.values()])
            for runs in results.runs.values()
        ]
        gained[m] = float(max(gains))
    return {m: gain for m, gain in gained.items() if gain < NOTHING}


def loss_alone(results: Results, method: str, modality: str) -> Spread:
    """Test cross-entropy with one modality alone."""
    column = str(1 << results.modalities.index(modality))
    return over_seeds(results, method, lambda record: record["test"][column]["loss"])


def class_range(results: Results, modality: str) -> tuple[tuple[str, float], tuple[str, float]]:
    """(class, copies a train row) that `sample` copied least and most, over all seeds."""
    records = list(results.of("sample").values())
    copies = np.sum([r["copies_by_class"][modality] for r in records], axis=0)
    rows = np.sum([r["rows_by_class"] for r in records], axis=0)
    each = copies / np.maximum(rows, 1)
    low, high = int(np.argmin(each)), int(np.argmax(each))
    names = results.first["classes"]
    return (names[low], float(each[low])), (names[high], float(each[high]))


def losses(results: Results) -> list[tuple[str, str, str, Difference]]:
    """(a, b, figure, difference) of what was lost: a resampler against joint with all modalities, and `sample` against
    random copies. Lower, or lower by `WORTH` on average."""
    pairs = [(a, "joint", "all") for a in ("random_copies", "sample", "modality")]
    pairs += [("sample", "random_copies", name) for name in ("all", "Avg")]
    found = [(a, b, name, results.difference(a, b, name)) for a, b, name in pairs]
    return [item for item in found if item[3].verdict == "lower" or item[3].mean <= -WORTH]


def mechanism_row(results: Results) -> list[str]:
    """A row of the table of what was measured, whether or not anything was lost."""
    swings = {method: over_seeds(results, method, swing) for method in ("random_copies", "sample")}
    together = {method: over_seeds(results, method, only_together) for method in ("joint", "sample")}
    return [
        results.name,
        " / ".join(w.percent(copies_share(results, method)) for method in ("random_copies", "sample", "modality")),
        w.difference(results.difference("fewer_rows", "joint", "all")),
        w.difference(results.difference("sample", "fewer_rows", "all")),
        f"{w.number(swings['random_copies'].mean)} / {w.number(swings['sample'].mean)}",
        w.difference(results.difference("smoothed", "sample", "all")),
        w.difference(results.difference("smoothed", "sample", "Avg")),
        f"{w.percent(together['joint'].mean)} / {w.percent(together['sample'].mean)}",
    ]


MECHANISM_HEADER = [
    "data set",
    "copies of all rows trained on, random / `sample` / `modality`",
    "`fewer_rows` − joint, all",
    "`sample` − `fewer_rows`, all",
    "swing, random / `sample`",
    "`smoothed` − `sample`, all",
    "`smoothed` − `sample`, Avg",
    "right only together, joint / `sample`",
]


def why(results: Results) -> list[str]:
    """Paragraphs about a data set on which something was lost; none where nothing was."""
    lost = losses(results)
    if not lost:
        return []
    said = [
        f"{'accuracy with all modalities' if name == 'all' else name} of `{a}` minus `{b}`: {w.difference(d)}, {d.verdict}"
        for a, b, name, d in lost
    ]
    out = [f"Lower, beyond the interval or by {w.number(WORTH)} or more on average: {'; '.join(said)}."]
    if any(b == "joint" for _, b, _, _ in lost):
        out.append(_whole_rows(results))
    out.append(_frequencies(results))
    behind = [name for a, b, name, _ in lost if (a, b) == ("sample", "random_copies")]
    if behind:
        out.append(_alone(results))
        out.append(_chasing(results, behind))
        if "slow_sample" in results.runs:
            out.append(_slow(results))
    out.append(_classes(results))
    return out


def _whole_rows(results: Results) -> str:
    share = over_seeds(results, "sample", whole_share)
    short, rest = results.difference("fewer_rows", "joint", "all"), results.difference("sample", "fewer_rows", "all")
    first = {
        "lower": "so fewer passes over the whole rows cost accuracy by themselves",
        "higher": "so fewer passes over the whole rows did not cost anything, on the contrary",
    }.get(short.verdict, "so a cost of fewer passes over the whole rows is not seen")
    second = {
        "lower": "the copies cost accuracy with all modalities beyond that",
        "higher": "the copies give some of it back",
    }.get(rest.verdict, "no effect of the copies beyond that can be told from zero")
    best = over_seeds(results, "joint", lambda record: record["best"]["step"])
    return f"""**Fewer whole rows?** {w.percent(share.mean)} of the rows that `sample` trained on were whole, the rest copies.
        Joint training with only that many whole rows (`fewer_rows`) minus joint: {w.difference(short)}, {short.verdict},
        {first}. `sample` minus `fewer_rows`, at equal whole rows: {w.difference(rest)}, {rest.verdict}: {second}. The best
        epoch of joint ended at step {best.mean:.0f} of {results.study.steps} on average."""


def _frequencies(results: Results) -> str:
    nothing = uninformative(results)
    if not nothing:
        runs = results.of("sample").values()
        worst = {m: min(alone(r)[m] - r["constant"]["accuracy"] for r in runs) for m in results.modalities}
        least = min(worst, key=lambda m: worst[m])
        return f"""**Copies that teach only how frequent the labels are?** No: each modality alone tells something. In the worst
            seed of `sample` the accuracy of {least} alone is {w.number(worst[least], sign=True)} from that of the constant
            answer."""
    flat = over_seeds(results, "sample", lambda record: record["constant"]["loss"]).mean
    parts = []
    for m, gain in nothing.items():
        share = Spread.of([copied_share(record, m) for record in results.of("sample").values()])
        found = {method: loss_alone(results, method, m) for method in ("random_copies", "sample", "joint")}
        lowest = min(loss.mean for loss in found.values())
        reading = (
            "it does tell which answers are likelier, but not enough to change the likeliest"
            if lowest < (1 - NOTHING) * flat
            else "no more than the frequencies was learnt from it"
        )
        parts.append(
            f"""{m} alone is at best {w.number(gain, sign=True)} from the accuracy of the constant answer, whatever the method,
            and its copies are {w.percent(share.mean)} of all rows that `sample` trained on. With {m} alone the test
            cross-entropy is {w.spread(found["random_copies"])} after random copies, {w.spread(found["sample"])} after
            `sample` and {w.spread(found["joint"])} after joint, and that of the frequencies is {w.number(flat)}: {reading}"""
        )
    return f"**Copies that teach only how frequent the labels are?** As far as accuracy goes, yes: {'; '.join(parts)}."


def _alone(results: Results) -> str:
    parts = []
    for m in results.modalities:
        against = {other: results.difference("sample", other, f"alone {m}") for other in ("random_copies", "joint")}
        parts.append(
            f"""{m} alone {w.spread(results.spread("sample", f"alone {m}"))} under `sample`, which minus random copies is
            {w.difference(against["random_copies"])} ({against["random_copies"].verdict}) and minus joint
            {w.difference(against["joint"])} ({against["joint"].verdict})"""
        )
    flat = over_seeds(results, "sample", lambda record: record["constant"]["accuracy"])
    return f"**Which modality?** Accuracy of {'; of '.join(parts)}. The constant answer has {w.number(flat.mean)}."


def _chasing(results: Results, behind: Sequence[str]) -> str:
    """`behind`: the figures in which `sample` is behind random copies."""
    a, b = results.of("sample"), results.of("random_copies")
    swings = paired([swing(a[s]) for s in sorted(a)], [swing(b[s]) for s in sorted(a)])
    mine, others = over_seeds(results, "sample", swing), over_seeds(results, "random_copies", swing)
    copies = {m: w.percent(copies_share(results, m)) for m in ("sample", "random_copies")}
    eased = {name: results.difference("smoothed", "sample", name) for name in ("all", "Avg")}
    verdict = (
        "so a part of the loss comes of plans that follow the last sweep alone"
        if "higher" in {eased[name].verdict for name in behind}
        else "so it is not shown that plans which follow the last sweep alone are what costs"
    )
    return f"""**Plans that chase the last mistakes?** `sample` copies what the last sweep found wrong and leaves out what it
        found right. From epoch to epoch the validation accuracy moves by {w.spread(mine)} under `sample` and by
        {w.spread(others)} under random copies (difference {w.difference(swings)}, {swings.verdict}; first half of the steps),
        and copies are {copies["sample"]} of the rows against {copies["random_copies"]}. With contributions averaged over
        sweeps (`smoothed`) `sample` changes by {w.difference(eased["all"])} with all modalities ({eased["all"].verdict}) and by
        {w.difference(eased["Avg"])} in Avg ({eased["Avg"].verdict}), {verdict}."""


def _slow(results: Results) -> str:
    fast, slow = (
        {name: results.difference(f"{pre}sample", f"{pre}random_copies", name) for name in ("all", "Avg")}
        for pre in ("", "slow_")
    )
    return f"""**A matter of the learning rate?** At the lowest rate of the tries, .001, `sample` minus random copies is
        {w.difference(slow["all"])} with all modalities ({slow["all"].verdict}) and {w.difference(slow["Avg"])} in Avg
        ({slow["Avg"].verdict}); at the rate of the study {w.difference(fast["all"])} ({fast["all"].verdict}) and
        {w.difference(fast["Avg"])} ({fast["Avg"].verdict})."""


def _classes(results: Results) -> str:
    parts = []
    for m in results.modalities:
        (low, least), (high, most) = class_range(results, m)
        parts.append(f"of {m} from {least:.1f} ({low}) to {most:.1f} ({high})")
    return f"**Which classes?** Copies of a row over the whole training of `sample`, by class: {w.listed(parts)}."
