"""The tables of a comparison, of one data set and of all."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping

from equipoise.pipelines.comparing import wording as w
from equipoise.pipelines.comparing.document import Table, code, plain
from equipoise.pipelines.comparing.frame import FIGURES, PHASES, REFERENCES, Comparison
from equipoise.pipelines.comparing.statistics import LEVEL, Difference

#: Put on a difference that holds after the correction.
MARK = "†"
#: Numbers of seeds that the detectable differences are given for.
SEEDS = (5, 10)
MEGABYTE = 1e6


def accuracies(found: Comparison, phase: str, data: str) -> Table:
    """Mean (deviation) of every figure of every method."""
    seeds = len(found.seeds(phase, data))
    rows = []
    for method in found.ran(phase, data):
        spreads = [found.spread(phase, data, method, figure) for figure in FIGURES]
        rows.append([_name(method, max(s.n for s in spreads), seeds), *map(w.spread, spreads)])
    caption = (
        f"{plain(data)} at {PHASES[phase]}: test {plain(found.metric(data))}, mean (standard deviation) over "
        f"{w.count(seeds, 'seed')}."
    )
    return Table(f"{phase}-{_label(data)}", caption, [_head(data, seeds), *FIGURES], rows)


def differences(found: Comparison, phase: str, data: str, reference: str) -> Table:
    """Every method minus the reference, with its interval, marked where it holds after the correction."""
    seeds = len(found.seeds(phase, data))
    families = [found.family(phase, figure, reference) for figure in FIGURES]
    rows = []
    for method in found.ran(phase, data):
        cells = [tests.get((data, method)) for tests in families]
        if all(cells):
            n = max(d.n for d in cells if d)
            rows.append([_name(method, n, seeds), *(marked(d) for d in cells if d)])
    interval = f"95{w.SPACE}% interval" if seeds > 1 else "one seed: no interval"
    caption = (
        f"{plain(data)} at {PHASES[phase]}: mean paired difference to {code(reference)} with its {interval} by itself; "
        f"{MARK} where it holds (p at most {w.number(LEVEL, 2)}) after Holm's correction over the family of its column."
    )
    head = f"{plain(data)}, minus {code(reference)}"
    return Table(f"{phase}-{_label(data)}-minus-{reference}", caption, [head, *FIGURES], rows)


def marked(d: Difference) -> str:
    """Mean [interval], marked where it holds."""
    return w.difference(d) + (f"{w.SPACE}{MARK}" if d.verdict in ("higher", "lower") else "")


def costs(found: Comparison, phase: str, data: str) -> Table:
    """What the tuning spent and a final training costs."""
    rows = []
    for method in found.ran(phase, data):
        row = found.chosen(phase, data, method)
        assert row is not None
        cost = {c: found.cost(phase, data, method, c) for c in ("steps", "passes", "seconds", "sweeps", "memory")}
        rows.append(
            [
                code(method),
                f"{len(found.tuning(data, method)) or '–'}",
                w.number(_float(row.get("spent")), 0),
                w.number(cost["steps"], 0),
                w.number(cost["passes"], 0),
                w.number(cost["sweeps"], 0 if float(cost["sweeps"]).is_integer() else 1),
                w.number(cost["seconds"], 1),
                w.number(found.seconds_ratio(phase, data, method), 1),
                w.number(cost["memory"] / MEGABYTE, 0),
            ]
        )
    header = [
        "method",
        "tuned over",
        "tuning steps",
        "steps",
        "backward passes",
        "sweeps",
        "seconds",
        "/ joint",
        "memory, MB",
    ]
    caption = (
        f"{plain(data)} at {PHASES[phase]}: configurations and optimiser steps of the tuning; of one final training, median "
        "over seeds, its steps, backward passes a step, sweeps of train, processor seconds (also over those of joint training "
        "on the same seeds) and peak memory above the start."
    )
    return Table(f"{phase}-{_label(data)}-cost", caption, [f"{plain(data)}, {header[0]}", *header[1:]], rows)


def settings(found: Comparison, data: str) -> Table:
    """What the tuning chose, and its score on validation."""
    rows = []
    for method in found.methods:
        tried = found.tuning(data, method)
        chosen = next((row for p in PHASES if (row := found.chosen(p, data, method)) is not None), None)
        if not len(tried) and chosen is None:
            continue
        done = tried[tried["status"] == "done"]
        scores = done["validation/score"].astype(float) if "validation/score" in done else done["seed"].iloc[:0]
        best = scores.max() if len(scores) else math.nan
        failed = len(tried) - len(done)
        cells = [f"{len(tried)}" + (f" ({failed} failed)" if failed else ""), w.number(float(best))]
        rows.append([code(method), *cells, overrides(chosen.get("overrides")) if chosen is not None else "not run yet"])
    caption = f"{plain(data)}: settings chosen on validation; all else is the base configuration of the data set."
    header = [f"{plain(data)}, method", "configurations", "best score", "settings"]
    return Table(f"{_label(data)}-settings", caption, header, rows)


def overrides(text: object) -> str:
    """JSON of what differs as `key=value` each; nested keys with dots."""
    try:
        given = json.loads(text) if isinstance(text, str) else {}
    except json.JSONDecodeError:
        return plain(text)
    flat = _flat(given) if isinstance(given, Mapping) else {}
    return ", ".join(code(f"{key}={value}") for key, value in flat.items()) or "–"


def _flat(given: Mapping[str, object], before: str = "") -> dict[str, str]:
    out: dict[str, str] = {}
    for key, value in given.items():
        if isinstance(value, Mapping):
            out |= _flat(value, f"{before}{key}.")
        else:
            out[before + key] = f"{value:.4g}" if isinstance(value, float) else str(value)
    return out


def smallest(found: Comparison, phase: str) -> Table:
    """The smallest differences that are found with 80 %: a row a data set and figure, for both references."""
    rows = []
    for data in found.data:
        for figure in FIGURES:
            cells = []
            for reference in REFERENCES:
                deviation = found.deviation(phase, data, figure, reference)
                cells.append(w.number(deviation, 4))
                for n in SEEDS:
                    cells += [w.number(found.detectable(phase, data, figure, reference, n, c)) for c in (False, True)]
            if any(cell != "–" for cell in cells):
                rows.append([plain(data), figure, *cells])
    header = ["data set", "figure"]
    for reference in REFERENCES:
        header += [f"minus {code(reference)}: deviation"]
        header += [f"{n} seeds{', corrected' * corrected}" for n in SEEDS for corrected in (False, True)]
    caption = (
        f"The smallest true difference, at {PHASES[phase]}, that the test finds with a probability of 80{w.SPACE}%, from the "
        "median over methods of the standard deviation of paired differences: of a test by itself, and at the first step of "
        "Holm's correction of its family."
    )
    return Table(f"{phase}-detectable", caption, header, rows)


def _head(data: str, seeds: int) -> str:
    return f"{plain(data)}, {w.count(seeds, 'seed')}"


def _name(method: str, n: int, seeds: int) -> str:
    """A method, with its number of seeds where that is not all of them."""
    return code(method) + (f" ({n} of {seeds})" if n != seeds else "")


def _label(data: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in data)


def _float(value: object) -> float:
    return math.nan if value is None else float(value)  # type: ignore[arg-type]
