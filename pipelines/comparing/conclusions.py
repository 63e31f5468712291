"""What the corrected tests allow to say, in sentences, and what is not there."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from equipoise.pipelines.comparing import wording as w
from equipoise.pipelines.comparing.document import code, plain
from equipoise.pipelines.comparing.frame import PHASES, REFERENCES, Comparison
from equipoise.pipelines.comparing.statistics import LEVEL

#: The figures that conclusions are drawn from: a smaller Gap is no gain where Avg falls with it.
HEADLINES = ("full", "missing Avg", "noisy Avg")


def in_short(found: Comparison) -> list[str]:
    """A sentence a family, then what could have been found, then what is missing."""
    said = [
        f"At {PHASES[phase]}, **{figure}**, minus {code(reference)}: {_family(found, phase, figure, reference)}"
        for phase in found.phases
        for reference in REFERENCES
        for figure in HEADLINES
    ]
    said += [line for phase in found.phases[:1] for figure in HEADLINES if (line := _power(found, phase, figure))]
    open_runs = sum(
        len(seeds) for phase in found.expected for some in found.absent(phase).values() for seeds in some.values()
    )
    lacking = [PHASES[phase] for phase in found.expected if phase not in found.phases]
    if open_runs or lacking:
        parts = [
            f"{w.count(open_runs, 'final run')} are not made yet" if open_runs != 1 else "1 final run is not made yet"
        ]
        parts = parts if open_runs else []
        parts += [f"there is no finished run at {' and none at '.join(lacking)}"] if lacking else []
        said.append(
            f"**Not finished**: {' and '.join(parts)} (see What is missing). With every run that comes the families grow, "
            "and what holds now may not hold then."
        )
    return said


def _family(found: Comparison, phase: str, figure: str, reference: str) -> str:
    tests = found.family(phase, figure, reference)
    if not tests:
        return f"nothing to compare: {code(reference)} has no finished run beside another method's."
    counted = found.tests(phase, figure, reference)
    if not counted:
        return "one seed only, so there is no test."
    data = [d for d in found.data if any(d == name for name, _ in tests)]
    parts = []
    for word in ("higher", "lower"):
        where: dict[str, list[str]] = {}
        for (name, method), d in tests.items():
            if d.verdict == word:
                where.setdefault(method, []).append(name)
        if where:
            parts.append(f"{word} {_grouped(where, data)}")
    size = f"of {w.count(counted, 'test')} together"
    if not parts:
        return f"no method is distinguishable from {code(reference)} on any data set ({size[3:]})."
    rest = sum(d.verdict == "not distinguishable" for d in tests.values())
    return f"{'; '.join(parts)}; not distinguishable in {rest} {size}."


def _grouped(where: Mapping[str, Sequence[str]], data: Sequence[str]) -> str:
    """Methods by the data sets of which it holds, the most first."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for method, names in where.items():
        groups.setdefault(tuple(names), []).append(code(method))
    parts = []
    for names, methods in sorted(groups.items(), key=lambda item: (-len(item[0]), item[0])):
        everywhere = len(names) == len(data) > 1
        place = f"all {len(data)} data sets" if everywhere else w.listed([plain(n) for n in names])
        parts.append(f"on {place} {w.listed(methods)}")
    return ", ".join(parts)


def _power(found: Comparison, phase: str, figure: str) -> str:
    """What the test of a figure against the last reference would have found."""
    reference = REFERENCES[-1]
    parts = []
    for data in found.data:
        n = len(found.seeds(phase, data))
        value = found.detectable(phase, data, figure, reference, n, True)
        if not math.isnan(value):
            # A share cannot differ by more than 1: with two or three seeds a corrected test may see nothing at all.
            seen = "none at all" if value > 1 and not found.lower_is_better(data) else w.number(value)
            parts.append(f"{seen} on {plain(data)} ({n} seeds)")
    if not parts:
        return ""
    return (
        f"**What could be found** in {figure} against {code(reference)}, corrected, with a probability of 80{w.SPACE}%: a true "
        f"difference of {w.listed(parts)}. Smaller ones may be there and were not to be seen."
    )


def missing(found: Comparison, left_out: Mapping[str, str]) -> list[str]:
    """Every run that is left out, refused, failed or not made yet, by name."""
    said = [f"Left out: {plain(name)}. {_stop(plain(why))}" for name, why in left_out.items()]
    refused: dict[tuple[str, str], list[str]] = {}
    for (data, method), sentence in found.refused.items():
        refused.setdefault((method, sentence), []).append(plain(data))
    for (method, sentence), names in refused.items():
        said.append(f"Refused: {code(method)} on {w.listed(names)}. {_stop(plain(sentence))}")
    for data, method, phase, seeds, sentence in found.failures:
        times = "" if len(seeds) == 1 else f" ({len(seeds)} runs)"
        what = f"in tuning{times}" if phase == "tune" else f"at {PHASES.get(phase, phase)}, {_seeds(seeds)}"
        said.append(f"Failed: {code(method)} on {plain(data)}, {what}. {_stop(plain(sentence))}")
    for name, methods in found.not_begun().items():
        said.append(f"Not there in any form: {w.listed([code(m) for m in methods])} on {plain(name)}.")
    for phase in found.expected:
        equal = PHASES[phase]
        if phase not in found.phases:
            said.append(f"Not made yet: any final run at {equal}.")
            continue
        for data, open_runs in found.absent(phase).items():
            groups: dict[tuple[int, ...], list[str]] = {}
            for method, numbers in open_runs.items():
                groups.setdefault(tuple(numbers), []).append(code(method))
            for open_seeds, names in groups.items():
                which = _seeds(open_seeds)
                said.append(f"Not made yet: {w.listed(names)} on {plain(data)} at {equal}, {which}.")
        unseen = [d for d in found.data if not found.seeds(phase, d) and d not in found.absent(phase)]
        if unseen := [plain(d) for d in unseen if not all((d, m) in found.refused for m in found.methods)]:
            said.append(f"Not made yet: any final run on {w.listed(unseen)} at {equal}.")
        for reference in REFERENCES:
            without = [plain(d) for d in found.data if found.ran(phase, d) and reference not in found.ran(phase, d)]
            if without:
                said.append(
                    f"Without {code(reference)} at {equal} nothing is compared with it on {w.listed(without)}, and the families "
                    "are smaller by that."
                )
    return said


def _seeds(seeds: Sequence[int]) -> str:
    return f"seed{'s' * (len(seeds) > 1)} {w.listed([str(s) for s in seeds])}"


def _stop(sentence: str) -> str:
    return sentence if sentence.endswith((".", "!", "?")) else f"{sentence}."


def verdicts(found: Comparison, phase: str) -> list[str]:
    """How many tests each family has, and what the first step of the correction asks of the smallest p."""
    return [
        f"{figure}, minus {code(reference)}: {w.count(n, 'test')}, the first holds at p ≤ {LEVEL / n:.2g}."
        for reference in REFERENCES
        for figure in HEADLINES
        if (n := found.tests(phase, figure, reference))
    ]
