"""Pictures of a search as SVG, in the look of the run report: a trial is a line or a dot, the bluer the better."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup
from matplotlib.ticker import LogLocator
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from equipoise.pipelines.report.drawing import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Plane, el
from equipoise.pipelines.report.figures import Figure, number, ticks
from equipoise.pipelines.tuning.found import Found, FoundTrial
from equipoise.pipelines.tuning.importance import Importance
from equipoise.tune_spaces import Parameter

OBJECTIVES = ("full", "missing", "score")
_APART = 122  # pixels between two parallel axes
_CROSS = "M-4,-4L4,4M-4,4L4,-4"
_RING, _BOX = "M0,-7L7,0L0,7L-7,0Z", "M-6,-6h12v12h-12Z"
_DOT = "M-3.6,0a3.6,3.6 0 1,0 7.2,0a3.6,3.6 0 1,0 -7.2,0Z"


def short_names(keys: Sequence[str]) -> dict[str, str]:
    """The last part of each dotted key, with the part of the configuration before it where two would be the same."""
    lasts = [key.rpartition(".")[2] for key in keys]
    return {
        key: last if lasts.count(last) == 1 else f"{key.partition('.')[0]} {last}" for key, last in zip(keys, lasts)
    }


def shown(value: Any) -> str:
    """A parameter's value for people."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def told(found: Found, trial: FoundTrial) -> str:
    """One trial in a line."""
    names = short_names([parameter.key for parameter in found.parameters])
    ended = {"done": "", "stopped": f", stopped at step {trial.step}", "failed": f", failed at step {trial.step}"}
    values = ", ".join(f"{name} {number(trial.values[name])}" for name in OBJECTIVES)
    params = ", ".join(f"{names[key]} {shown(value)}" for key, value in trial.params.items())
    return f"trial {trial.number}{ended.get(trial.status, '')}: {values}; {params}"


def css(found: Found, trial: FoundTrial) -> str:
    """The classes of a trial's line or dot."""
    special = " best" if trial is found.best else " default" if trial is found.default else ""
    return f"trial {trial.status}{special}"


def shade_range(found: Found) -> tuple[float, float]:
    """The scores at the ends of the colours: of the fully trained trials, so that one bad start does not pale the rest."""
    every = [t for t in found.trials if math.isfinite(t.values[found.select])]
    known = [t.values[found.select] for t in every if t.status == "done"] or [t.values[found.select] for t in every]
    return (min(known), max(known)) if known else (0.0, 1.0)


def _shade(found: Found, trial: FoundTrial) -> str:
    low, high = shade_range(found)
    value = trial.values[found.select]
    share = (value - low) / (high - low) if high > low and math.isfinite(value) else 1.0
    return f"--v: {100 * min(max(share, 0.0), 1.0):.0f}%"


def _in_order(found: Found) -> list[FoundTrial]:
    """The best on top of all, failed ones at the bottom."""
    rank = {"failed": 0, "stopped": 1, "done": 2}

    def height(trial: FoundTrial) -> tuple[bool, bool, int, float]:
        value = trial.values[found.select]
        return trial is found.best, trial is found.default, rank.get(trial.status, 0), value if value == value else -1e9

    return sorted(found.trials, key=height)


@dataclass(frozen=True)
class _Axis:
    """`place` of a value between 0, below, and 1; None: this trial has none."""

    name: str
    title: str
    place: Callable[[FoundTrial], float | None]
    ticks: Sequence[tuple[float, str]]


def _parameter_axis(parameter: Parameter, name: str, values: Sequence[Any]) -> _Axis:
    d, title = parameter.distribution, f"{parameter.key}: {parameter.text}"
    if isinstance(d, CategoricalDistribution):
        choices = [*d.choices, *dict.fromkeys(v for v in values if v not in d.choices)]
        spots = {str(c): (i + 0.5) / len(choices) for i, c in enumerate(choices)}
        return _Axis(
            name,
            title,
            lambda t: spots[str(t.params[parameter.key])] if parameter.key in t.params else None,
            [(spot, _cut(text)) for text, spot in spots.items()],
        )
    assert isinstance(d, FloatDistribution | IntDistribution)
    low, high = min([d.low, *values]), max([d.high, *values])  # a base's own value may lie outside

    def at(value: float) -> float:
        if d.log:
            return math.log(value / low) / math.log(high / low)
        return (value - low) / ((high - low) or 1)

    if d.log:
        inner = [float(t) for t in LogLocator(numticks=5).tick_values(low, high)]
    else:
        inner = ticks(low, high, 5, whole=isinstance(d, IntDistribution))
    marked = [low, *(t for t in inner if 0.08 < at(t) < 0.92), high]
    return _Axis(
        name,
        title + (", logarithmic axis" if d.log else ""),
        lambda t: at(t.params[parameter.key]) if parameter.key in t.params else None,
        [(at(t), f"{t:.3g}") for t in marked],
    )


def _objective_axis(found: Found, name: str) -> _Axis:
    known = [t.values[name] for t in found.trials if math.isfinite(t.values[name])] or [0.0, 1.0]
    marked = ticks(min(known), max(known))
    low, high = marked[0], marked[-1]

    def place(trial: FoundTrial) -> float | None:
        value = trial.values[name]
        return (value - low) / (high - low) if math.isfinite(value) else None

    return _Axis(name, f"{name} on validation", place, [((t - low) / (high - low), number(t)) for t in marked])


def parallel(found: Found) -> Markup:
    """Parallel coordinates: an axis a parameter, then the objectives; a trial is a line through its values."""
    keys = [p.key for p in found.parameters if any(p.key in t.params for t in found.trials)]
    names = short_names(keys)
    axes = [
        _parameter_axis(p, names[p.key], [t.params[p.key] for t in found.trials if p.key in t.params])
        for p in found.parameters
        if p.key in keys
    ]
    aims = ["full"] if found.one_modality else [*(o for o in OBJECTIVES if o != found.select), found.select]
    axes += [_objective_axis(found, name) for name in aims]
    left, top, bottom, absent = 30, 44, 300, 330
    width, height = left + _APART * (len(axes) - 1) + 78, 348
    some_absent = any(axis.place(t) is None for axis in axes[: len(keys)] for t in found.trials)

    parts: list[Any] = []
    for trial in _in_order(found):
        points = []
        for i, axis in enumerate(axes):
            place = axis.place(trial)
            if place is None and i >= len(keys):
                break  # nothing was measured
            y = absent if place is None else bottom - (bottom - top) * place
            points.append((left + _APART * i, round(y, 1)))
        inner = el("title", told(found, trial))
        path = "M" + "L".join(f"{x},{y}" for x, y in points) if points else "M0,0"
        lines = el("path", css="line", d=path) + el("path", css="near", d=path)
        if trial.status == "failed" and points:
            lines += el("path", css="cross", d=_CROSS, transform=f"translate({points[-1][0]} {points[-1][1]})")
        parts.append(el("g", inner + lines, css=css(found, trial), style=_shade(found, trial), data_trial=trial.number))
    for i, axis in enumerate(axes):
        x = left + _APART * i
        parts.append(el("line", css="axis", x1=x, x2=x, y1=top, y2=bottom))
        parts.append(
            el("text", el("title", axis.title) + Markup("{}").format(_cut(axis.name)), css="name mid", x=x, y=18)
        )
        for place, label in axis.ticks:
            y = bottom - (bottom - top) * place
            parts.append(el("line", css="axis", x1=x - 3, x2=x + 3, y1=y, y2=y))
            parts.append(el("text", label, css="tick halo", x=x + 6, y=y + 4))
    if some_absent:
        parts.append(el("text", "not drawn", css="tick halo", x=left + 6, y=absent + 4))
    named = {"role": "img", "aria_label": "Parallel coordinates of the trials", "data_figure": "parallel"}
    box = {"viewBox": f"0 0 {width} {height}", "style": f"min-width: {width}px"}
    return el("svg", Markup("").join(parts), css="chart parallel", **box, **named)


def curves(found: Found) -> Markup:
    """Learning curves: what trials are chosen by, over optimiser steps; stopped ones end in a ring, failed ones in a cross."""
    known = [row[found.select] for t in found.trials for _, row in t.curve if math.isfinite(row[found.select])]
    figure = Figure("curves", "Learning curves", "lines", "optimiser steps", f"{found.select} on validation")
    marked = ticks(min(known), max(known)) if known else [0.0, 1.0]
    last = max([found.max_steps, *(step for t in found.trials for step, _ in t.curve)])
    plane = Plane((0, last), (marked[0], marked[-1]), HEIGHT, marked)
    parts = []
    for trial in _in_order(found):
        points = [(plane.px(s), plane.py(r[found.select])) for s, r in trial.curve if math.isfinite(r[found.select])]
        if not points:
            continue
        path = "M" + "L".join(f"{x},{y}" for x, y in points)
        ended = {"stopped": _DOT, "failed": _CROSS}.get(trial.status)
        inner = el("title", told(found, trial)) + el("path", css="line", d=path) + el("path", css="near", d=path)
        if ended is not None:
            place = f"translate({points[-1][0]} {points[-1][1]})"
            inner += el("path", css="cross" if trial.status == "failed" else "dot", d=ended, transform=place)
        parts.append(el("g", inner, css=css(found, trial), style=_shade(found, trial), data_trial=trial.number))
    x_ticks = [(plane.px(t), number(t)) for t in ticks(0, last, 6, whole=True) if t <= last]
    return plane.picture(figure, x_ticks, *parts)


def front(found: Found) -> list[FoundTrial]:
    """The fully trained trials that no other one beats in one objective without losing in the other, by `full`."""
    done = [t for t in found.of("done") if all(math.isfinite(t.values[o]) for o in OBJECTIVES)]

    def beaten(trial: FoundTrial) -> bool:
        pair = trial.values["full"], trial.values["missing"]
        others = [(t.values["full"], t.values["missing"]) for t in done]
        return any(o[0] >= pair[0] and o[1] >= pair[1] and o != pair for o in others)

    return sorted((t for t in done if not beaten(t)), key=lambda t: (t.values["full"], t.number))


def pareto(found: Found) -> tuple[Markup, int] | None:
    """`full` against `missing`, with the front, and how many stopped trials lie outside of it: the axes fit the fully trained
    ones. None where there is no second objective or no trial.
    """
    every = [t for t in _in_order(found) if math.isfinite(t.values["full"]) and math.isfinite(t.values["missing"])]
    if found.one_modality or not every:
        return None
    figure = Figure("pareto", "Full against missing", "lines", "full", "missing")
    fitted = [t for t in every if t.status == "done"] or every
    x_ticks, y_ticks = (
        ticks(min(t.values[o] for t in fitted), max(t.values[o] for t in fitted)) for o in ("full", "missing")
    )
    inside = {"full": (x_ticks[0], x_ticks[-1]), "missing": (y_ticks[0], y_ticks[-1])}
    known = [t for t in every if all(low <= t.values[o] <= high for o, (low, high) in inside.items())]
    plane = Plane((x_ticks[0], x_ticks[-1]), (y_ticks[0], y_ticks[-1]), 320, y_ticks)
    places = {t.number: (plane.px(t.values["full"]), plane.py(t.values["missing"])) for t in known}
    parts: list[Any] = []
    best = front(found)
    if best:
        (x, y), *others = [places[t.number] for t in best]
        path = f"M{plane.left},{y}H{x}" + "".join(f"V{b}H{a}" for a, b in others) + f"V{plane.bottom}"
        parts.append(el("path", el("title", "Pareto front"), css="front", d=path))
    for trial in known:
        place = f"translate({places[trial.number][0]} {places[trial.number][1]})"
        inner = el("title", told(found, trial)) + el("path", css="dot", d=_DOT, transform=place)
        if trial is found.best or trial is found.default:
            inner += el("path", css="mark", d=_RING if trial is found.best else _BOX, transform=place)
        parts.append(el("g", inner, css=css(found, trial), style=_shade(found, trial), data_trial=trial.number))
    picture = plane.picture(figure, [(plane.px(t), number(t)) for t in x_ticks], *parts)
    return picture, len(every) - len(known)


def bars(key: str, title: str, what: Importance) -> Markup:
    """A bar a parameter, and an upright where shuffled scores reach."""
    names, left, tall = short_names(list(what.shares)), 118, 28
    height, widest = TOP + tall * len(what.shares) + 8, WIDTH - left - 52
    parts: list[Any] = []
    for i, (name, share) in enumerate(what.shares.items()):
        y, chance = TOP + tall * i, what.chance[name]
        said = f"{name}: {share:.0%} of the variance; shuffled scores give up to {chance:.0%}"
        row = el("title", said) + el("rect", css="bar c0", x=left, y=y + 4, width=max(widest * share, 1.0), height=16)
        row += el("line", css="chance", x1=left + widest * chance, x2=left + widest * chance, y1=y, y2=y + 24)
        row += el("text", _cut(names[name]), css="tick end", x=left - 6, y=y + 16)
        row += el("text", f"{share:.0%}", css="tick", x=left + widest * max(share, chance) + 7, y=y + 16)
        parts.append(el("g", row, data_parameter=name))
    named = {"role": "img", "aria_label": title, "data_figure": key}
    return el("svg", Markup("").join(parts), css="chart", viewBox=f"0 0 {WIDTH} {height}", **named)


def differences(said: Mapping[str, Any], select: str) -> Markup:
    """Best - default on test: mean and interval an objective, around 0."""
    found = said["difference"]
    rows = [*(o for o in OBJECTIVES if o != select and o in found), select]
    known = [v for name in rows for v in (found[name][k] for k in ("mean", "low", "high")) if math.isfinite(v)]
    marked = ticks(min([0.0, *known]), max([0.0, *known]), 6) if any(known) else [-0.01, 0.0, 0.01]
    tall = 40
    figure = Figure("confirm", "Best against default on test", "lines", "best - default on test", "")
    plane = Plane((marked[0], marked[-1]), (0, 1), TOP + tall * len(rows) + BOTTOM)
    parts: list[Any] = [el("line", css="grid", x1=plane.px(t), x2=plane.px(t), y1=TOP, y2=plane.bottom) for t in marked]
    parts.append(el("g", el("line", x1=plane.px(0), x2=plane.px(0), y1=TOP, y2=plane.bottom), css="zero"))
    for i, name in enumerate(rows):
        d, y = found[name], TOP + tall * (i + 0.5)
        inner = el("title", f"{name}: {d['mean']:+.4f} ({d['low']:+.4f} to {d['high']:+.4f})")
        if math.isfinite(d["low"]) and math.isfinite(d["high"]):
            inner += el("line", x1=plane.px(d["low"]), x2=plane.px(d["high"]), y1=y, y2=y)
            inner += Markup("").join(
                el("line", x1=plane.px(d[k]), x2=plane.px(d[k]), y1=y - 6, y2=y + 6) for k in ("low", "high")
            )
        inner += el("path", css="dot c0", d=_DOT, transform=f"translate({plane.px(d['mean'])} {y})")
        parts.append(el("g", inner, css="interval", data_objective=name))
        parts.append(el("text", name, css="tick end", x=LEFT - 6, y=y + 4))
    return plane.picture(figure, [(plane.px(t), number(t)) for t in marked], *parts)


def steps(found: Found) -> Markup:
    """One bar of all steps that the trials would take to their ends: spent, by how a trial ended, and not spent."""
    whole = found.max_steps * len(found.trials)
    spent = {status: sum(t.steps for t in found.of(status)) for status in ("done", "stopped", "failed")}
    names = {"done": "fully trained trials", "stopped": "stopped trials", "failed": "failed trials"}
    total = max(whole, sum(spent.values()), 1)
    parts: list[Any] = [el("rect", css="unspent", x=1, y=4, width=WIDTH - RIGHT, height=28)]
    x = 1.0
    for status, count in spent.items():
        wide = (WIDTH - RIGHT) * count / total
        if count:
            said = el("title", f"{names[status]}: {count:,} steps ({count / total:.0%})")
            parts.append(el("rect", said, css=f"spent {status}", x=x, y=4, width=wide, height=28))
        x += wide
    named = {"role": "img", "aria_label": "Steps spent of those without stopping", "data_figure": "steps"}
    return el("svg", Markup("").join(parts), css="chart", viewBox=f"0 0 {WIDTH} 38", **named)


def key(kind: str) -> Markup:
    """The picture of a legend's entry: best, default, stopped, failed, a fully trained trial, or what chance gives."""
    line = el("path", css="line", d="M0,6H24")
    ends = {"stopped": el("path", css="dot", d=_DOT, transform="translate(20 6)")}
    ends["failed"] = el("path", css="cross", d=_CROSS, transform="translate(20 6)")
    status = kind if kind in ("stopped", "failed") else "done"
    inner = el("g", line + ends.get(kind, Markup("")), css=f"trial {status} {kind}", style="--v: 60%")
    if kind == "chance":
        inner = el("line", css="chance", x1=12, x2=12, y1=-2, y2=14)
    return el("svg", inner, viewBox="0 0 24 12", css="key")


def _cut(text: str, length: int = 15) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"
