"""Figures as SVG. Colours are CSS classes (c0, c1, ..., ink), so that one drawing serves light, dark and paper."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

from markupsafe import Markup, escape

from equipoise.pipelines.report.figures import Figure, Series, number, ticks

WIDTH, HEIGHT, SQUARE = 480, 264, 400
LEFT, RIGHT, TOP, BOTTOM = 64, 14, 12, 42
BESIDE = 22  # the width that the name of the y axis takes, with a gap to the ticks' labels
CHARACTER = 7.0  # width of a character of a tick's label
TURN = 40  # degrees, of labels that do not fit beside each other
ROW = 78
COLOURS = 8
DENSE = 60  # beyond so many points a line has no marks
# Who cannot tell colours apart can tell these.
_MARKS = (
    "M-3.6,0a3.6,3.6 0 1,0 7.2,0a3.6,3.6 0 1,0 -7.2,0Z",
    "M-3.3,-3.3h6.6v6.6h-6.6Z",
    "M0,-4.4L4.2,3.4H-4.2Z",
    "M0,-4.8L4.8,0L0,4.8L-4.8,0Z",
    "M-4.2,-3.4H4.2L0,4.4Z",
    "M-1.5,-4.5h3v3h3v3h-3v3h-3v-3h-3v-3h3Z",
)
_DASHES = ("none", "7 3", "2 3", "9 3 2 3", "4 2", "1 2", "10 4", "6 2 1 2")


def el(tag: str, inner: Any = "", **attributes: Any) -> Markup:
    """An element; attributes and text are escaped. `css` is the class, `x_y` the attribute x-y."""
    shown = ((("class" if k == "css" else k.replace("_", "-")), v) for k, v in attributes.items())
    pairs = Markup("").join(Markup(' {}="{}"').format(k, round(v, 2) if isinstance(v, float) else v) for k, v in shown)
    return Markup("<{}{}>{}</{}>").format(Markup(tag), pairs, inner, Markup(tag))


def css(colour: int | str) -> str:
    return colour if isinstance(colour, str) else f"c{colour % COLOURS}"


def draw(figure: Figure, together: Sequence[Figure] = ()) -> Markup:
    """The SVG of a figure, on axes that fit all figures of `together`."""
    together = [f for f in together if f.key == figure.key] or [figure]
    return {"lines": _lines, "stack": _bars, "group": _bars, "rows": _rows, "bubbles": _bubbles, "heat": _heat}[
        figure.kind
    ](figure, together)


def legend(figure: Figure) -> list[tuple[str, Markup]]:
    """(name, picture) of each series and level line; none for charts whose rows or axes carry the names."""
    if figure.kind in ("rows", "bubbles", "heat"):
        return []
    out = [(s.name, _key(figure, s)) for s in figure.series]
    drawn = {s.colour for s in figure.series}
    for mark in figure.marks:
        # A modality without a line is named by its ring; for the others one ring says what rings are.
        name = mark.name if mark.colour not in drawn else mark.name.partition(":")[0]
        colour = mark.colour if mark.colour not in drawn else "ink"
        ring = el("path", css=f"ring {css(colour)}", d="M0,-5L5,0L0,5L-5,0Z", transform="translate(12 6)")
        level = el("g", el("line", x1=0, x2=24, y1=6, y2=6), css="level")
        if name not in (entry[0] for entry in out):
            out.append((name, el("svg", level if mark.x is None else ring, viewBox="0 0 24 12", css="key")))
    return out


def _key(figure: Figure, series: Series) -> Markup:
    if figure.kind == "lines":
        mark = "" if len(figure.x) > DENSE else _dot(series, 12, 6)
        inner = (
            el("line", css=f"line {css(series.colour)}", stroke_dasharray=_dash(series), x1=0, x2=24, y1=6, y2=6) + mark
        )
    else:
        inner = el("rect", css=f"bar {css(series.colour)}", x=4, y=0, width=14, height=12)
    return el("svg", inner, viewBox="0 0 24 12", css="key")


def _dash(series: Series) -> str:
    return "none" if isinstance(series.colour, str) else _DASHES[series.colour % len(_DASHES)]


def _dot(series: Series, x: float, y: float, title: str = "") -> Markup:
    shape = _MARKS[0 if isinstance(series.colour, str) else series.colour % len(_MARKS)]
    inner = el("title", title) if title else ""
    return el("path", inner, css=f"dot {css(series.colour)}", transform=f"translate({x} {y})", d=shape)


class Plane:
    """Pixels of data coordinates, with room on the left for the labels of the y axis's ticks."""

    def __init__(
        self, x: tuple[float, float], y: tuple[float, float], height: int, y_ticks: Iterable[float] = ()
    ) -> None:
        self.x, self.y, self.height, self.bottom = x, y, height, height - BOTTOM
        self.y_ticks = list(y_ticks)
        widest = max((len(number(y)) for y in self.y_ticks), default=0)
        self.left = max(LEFT, math.ceil(BESIDE + widest * CHARACTER + 6))
        self.right = WIDTH - RIGHT

    def px(self, x: float) -> float:
        return round(self.left + (self.right - self.left) * (x - self.x[0]) / ((self.x[1] - self.x[0]) or 1), 2)

    def py(self, y: float) -> float:
        return round(self.bottom - (self.bottom - TOP) * (y - self.y[0]) / ((self.y[1] - self.y[0]) or 1), 2)

    def picture(self, figure: Figure, x_ticks: Iterable[tuple[float, str]], *inner: Any) -> Markup:
        """The svg: grid, tick labels, names of the axes, and what is drawn on them."""
        parts: list[Any] = []
        for y in self.y_ticks:
            parts += [
                el("line", css="grid", x1=self.left, x2=self.right, y1=self.py(y), y2=self.py(y)),
                el("text", number(y), css="tick end", x=self.left - 6, y=self.py(y) + 4),
            ]
        for px, label in x_ticks:
            parts.append(el("text", label, css="tick mid", x=px, y=self.bottom + 16))
        parts.append(el("text", figure.x_label, css="label mid", x=(self.left + self.right) / 2, y=self.height - 6))
        turned = f"translate(13 {(TOP + self.bottom) / 2}) rotate(-90)"
        parts.append(el("text", figure.y_label, css="label mid", transform=turned))
        svg = Markup("").join([*parts, *inner])
        named = {"role": "img", "aria_label": figure.title, "data_figure": figure.key}
        return el("svg", svg, css="chart", viewBox=f"0 0 {WIDTH} {self.height}", **named)


def _common(together: Sequence[Figure]) -> list[float]:
    lows, highs = zip(*(f.extent() for f in together))
    return ticks(min(lows), max(highs))


def _lines(figure: Figure, together: Sequence[Figure]) -> Markup:
    shown = [float(x) for f in together for x in (*f.x, *(m.x for m in f.marks if m.x is not None))] or [0.0]
    first, last = min(shown), max(max(shown), min(shown) + 1)
    y_ticks = _common(together)
    plane = Plane((first, last), (y_ticks[0], y_ticks[-1]), HEIGHT, y_ticks)
    parts = []
    if figure.best is not None:
        at = plane.px(figure.best)
        line = el("line", x1=at, x2=at, y1=TOP, y2=plane.bottom)
        parts.append(el("g", el("title", f"best epoch: {number(figure.best)}") + line, css="best"))
    for mark in figure.marks:
        if mark.x is None:
            line = el("line", x1=plane.left, x2=plane.right, y1=plane.py(mark.y), y2=plane.py(mark.y))
            parts.append(el("g", el("title", mark.name) + line, css="level"))
    for series in figure.series:
        points = [
            (plane.px(x), plane.py(y), x, y) if y is not None and math.isfinite(y) else None
            for x, y in zip(figure.x, series.y)
        ]
        for run in _runs(points):
            path = " ".join(f"{p[0]},{p[1]}" for p in run)
            parts.append(el("polyline", css=f"line {css(series.colour)}", stroke_dasharray=_dash(series), points=path))
        for point in points:
            if point is None:
                continue
            px, py, x, y = point
            said = f"{series.name}: {number(y)} ({figure.x_label} {number(x)})"
            if len(figure.x) > DENSE:
                parts.append(el("circle", el("title", said), css="hit", cx=px, cy=py, r=5))
            else:
                parts.append(_dot(series, px, py, said))
    for mark in figure.marks:
        if mark.x is not None:
            place = f"translate({plane.px(mark.x)} {plane.py(mark.y)})"
            said = el("title", f"{mark.name}: {number(mark.y)}")
            parts.append(el("path", said, css=f"ring {css(mark.colour)}", transform=place, d="M0,-7L7,0L0,7L-7,0Z"))
    x_ticks = [(plane.px(t), number(t)) for t in ticks(first, last, 7, whole=True) if first <= t <= last]
    return plane.picture(figure, x_ticks, *parts)


def _runs(points: Sequence[Any]) -> list[list[Any]]:
    """Stretches of points without a hole."""
    out: list[list[Any]] = [[]]
    for point in points:
        if point is None:
            out.append([])
        else:
            out[-1].append(point)
    return [run for run in out if len(run) > 1]


def _bars(figure: Figure, together: Sequence[Figure]) -> Markup:
    y_ticks = _common(together)
    top = y_ticks[-1]
    plane = Plane((0, max(len(figure.x), 1)), (y_ticks[0], top), HEIGHT, y_ticks)
    width = 0.78 if figure.kind == "stack" else 0.8 / max(len(figure.series), 1)
    parts = []
    for i, x in enumerate(figure.x):
        total = 0.0
        for j, series in enumerate(figure.series):
            y = series.y[i]
            if not y or not math.isfinite(y):
                continue
            base, left = (total, i + 0.11) if figure.kind == "stack" else (0.0, i + 0.1 + j * width)
            total += y
            lower, upper = sorted((plane.py(min(base, top)), plane.py(min(base + y, top))), reverse=True)
            said = el("title", f"{series.name}: {number(y)} ({figure.x_label} {x})")
            box = {
                "x": plane.px(left),
                "y": upper,
                "width": plane.px(left + width) - plane.px(left),
                "height": lower - upper,
            }
            parts.append(el("rect", said, css=f"bar {css(series.colour)}", **box))
        if figure.kind == "stack" and total > top * 1.001:
            parts.append(el("text", f"↑ {number(total)}", css="cut", x=plane.px(i + 0.94), y=TOP + 11))
        if str(x) in figure.flagged:
            said = el("title", figure.flagged[str(x)])
            parts.append(el("text", Markup("▲") + said, css="flag mid", x=plane.px(i + 0.5), y=plane.bottom + 29))
    widest = max((len(str(x)) for x in figure.x), default=1)
    room = (plane.right - plane.left) / max(widest * CHARACTER + 8, 25)  # so many labels stand side by side
    every = math.ceil(max(len(figure.x), 1) / room)
    x_ticks = [(plane.px(i + 0.5), str(x)) for i, x in enumerate(figure.x) if i % every == 0]
    return plane.picture(figure, x_ticks, *parts)


def _rows(figure: Figure, together: Sequence[Figure]) -> Markup:
    """A histogram a series on one x axis; heights are shares of the series' own samples."""
    step = figure.x[1] - figure.x[0] if len(figure.x) > 1 else 1.0
    xs = [x for f in together for x in f.x] or [0.0]
    peak = max((max(s.y) / max(sum(s.y), 1) for f in together for s in f.series if s.y), default=1.0) or 1.0  # type: ignore[type-var, arg-type, operator]
    height = TOP + ROW * max(len(figure.series), 1) + BOTTOM
    plane = Plane((min(xs) - step / 2, max(xs) + step / 2), (0, 1), height)
    inside = [t for t in ticks(min(xs), max(xs), 8) if plane.x[0] <= t <= plane.x[1]]
    parts = [el("line", css="grid", x1=plane.px(t), x2=plane.px(t), y1=TOP, y2=plane.bottom) for t in inside]
    for r, series in enumerate(figure.series):
        counts = [y or 0 for y in series.y]
        total, bottom, scale = max(sum(counts), 1), TOP + ROW * (r + 1) - 6, (ROW - 24) / peak
        parts += [
            el("line", css="axis", x1=plane.left, x2=plane.right, y1=bottom, y2=bottom),
            el("text", "0", css="tick end", x=plane.left - 6, y=bottom + 4),
            el("text", f"{peak:.0%}", css="tick end", x=plane.left - 6, y=bottom - scale * peak + 4),
        ]
        for x, y in zip(figure.x, counts):
            if y:
                left, right = plane.px(x - step * 0.42), plane.px(x + step * 0.42)
                tall = max(scale * y / total, 1.0)
                said = el("title", f"{series.name} {number(x)}: {y:,} samples ({y / total:.1%})")
                box = {"x": left, "y": bottom - tall, "width": right - left, "height": tall}
                parts.append(el("rect", said, css=f"bar {css(series.colour)}", **box))
        if r < len(figure.marks):
            mean = figure.marks[r]
            line = el("line", x1=plane.px(mean.y), x2=plane.px(mean.y), y1=bottom - ROW + 24, y2=bottom)
            parts.append(el("g", el("title", f"{mean.name}: {number(mean.y)}") + line, css="best"))
        parts.append(el("text", series.name, css="name", x=plane.left + 2, y=TOP + ROW * r + 12))
    return plane.picture(figure, [(plane.px(t), number(t)) for t in inside], *parts)


def _bubbles(figure: Figure, together: Sequence[Figure]) -> Markup:
    """A circle a cell, its area by the share of the samples, the largest hardly larger than a cell."""
    sides = [v for f in together for cell in f.cells for v in cell[:2]] or [0.0, 1.0]
    pad = 0.14 * ((max(sides) - min(sides)) or 1.0)
    low, high = min(sides) - pad, max(sides) + pad
    inside = [t for t in ticks(low, high, 6) if low <= t <= high]
    plane = Plane((low, high), (low, high), SQUARE, inside)
    parts = [el("line", css="grid", x1=plane.px(t), x2=plane.px(t), y1=TOP, y2=plane.bottom) for t in inside]
    ends = {"x1": plane.px(low), "y1": plane.py(low), "x2": plane.px(high), "y2": plane.py(high)}
    parts.append(el("g", el("title", "equal contributions") + el("line", **ends), css="level"))
    total = sum(c[2] for c in figure.cells) or 1
    places = sorted({c[0] for f in together for c in f.cells} | {c[1] for f in together for c in f.cells})
    gap = min((b - a for a, b in pairwise(places) if b - a > 1e-9), default=1.0)
    largest = min(26.0, max(0.6 * (plane.px(gap) - plane.px(0)), 7.0))
    peak = max((c[2] / sum(d[2] for d in f.cells) for f in together for c in f.cells), default=1.0)
    for x, y, count in sorted(figure.cells, key=lambda c: -c[2]):
        radius, at = max(largest * math.sqrt(count / total / peak), 2.5), {"x": plane.px(x), "y": plane.py(y)}
        said = f"{figure.x_label} {number(x)}, {figure.y_label} {number(y)}: {count:,} samples ({count / total:.1%})"
        circle = el("circle", cx=at["x"], cy=at["y"], r=radius)
        text = el("text", f"{count / total:.0%}", css="mid", x=at["x"], y=at["y"] + 4) if radius > 13 else ""
        parts.append(el("g", el("title", said) + circle + escape(text), css="bubble"))
    return plane.picture(figure, [(plane.px(t), number(t)) for t in inside], *parts)


def _heat(figure: Figure, together: Sequence[Figure]) -> Markup:
    """A square a pair, the stronger its colour the farther from 0; the numbers stand in them where they fit."""
    n = max(len(figure.x), 1)
    left, side = 110, min((WIDTH - 110 - RIGHT) / n, 52.0)
    below = [_short(str(name)) for name in figure.x]
    widest = max((len(name) for name in below), default=1) * CHARACTER
    turned = widest + 4 > side
    height = round(TOP + side * n + (20 + widest * math.sin(math.radians(TURN)) if turned else 22))
    parts: list[Any] = []
    for i, series in enumerate(figure.series):
        y = TOP + side * i
        parts.append(el("text", _short(series.name), css="tick end", x=left - 6, y=y + side / 2 + 4))
        for j, (name, value) in enumerate(zip(figure.x, series.y, strict=True)):
            box: dict[str, Any] = {"x": left + side * j, "y": y, "width": side, "height": side}
            said = el("title", f"{series.name}, {name}: {number(value)}")
            if value is None:
                parts.append(el("rect", said, css="heat", fill_opacity=0.0, **box))
                continue
            sign = "low" if value < 0 else "high"
            parts.append(el("rect", said, css=f"heat {sign}", fill_opacity=min(abs(float(value)), 1.0), **box))
            if side > 30:
                strong = " strong" if abs(value) > 0.8 else ""
                at = {"x": left + side * (j + 0.5), "y": y + side / 2 + 4}
                parts.append(el("text", f"{value:.2f}", css=f"heatnumber mid{strong}", **at))
    for j, name in enumerate(below):
        place = f"translate({left + side * (j + 0.5):.1f} {TOP + side * n + 14})"
        place += f" rotate(-{TURN})" if turned else ""
        parts.append(el("text", name, css="tick end" if turned else "tick mid", transform=place))
    named = {"role": "img", "aria_label": figure.title, "data_figure": figure.key}
    return el("svg", Markup("").join(parts), css="chart", viewBox=f"0 0 {WIDTH} {height}", **named)


def _short(name: str, length: int = 16) -> str:
    return name if len(name) <= length else name[: length - 1] + "…"
