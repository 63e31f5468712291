"""Charts as data: what is drawn is what the page embeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from matplotlib.ticker import MaxNLocator

Number = float | int | None


@dataclass(frozen=True)
class Series:
    """One line, or one colour of bars: y at each x of the figure (None: nothing there). Colour: a number, or "ink"."""

    name: str
    y: Sequence[Number]
    colour: int | Literal["ink"] = 0


@dataclass(frozen=True)
class Mark:
    """A point that belongs to no series; without an x, a level line across the figure."""

    name: str
    y: float
    x: float | None = None
    colour: int | Literal["ink"] = "ink"


@dataclass(frozen=True)
class Figure:
    """A chart. Figures of one `key`, one a run, share their axes.

    `lines`: series over the numbers `x`. `stack`, `group`: bars over the categories `x`. `rows`: a histogram a series, one
    below the other; `marks` are the means, in the series' order. `bubbles`: `cells` of (x, y, count). `heat`: a number in
    [-1, 1] for each series and each name of `x`.
    `best` is an x with a line of its own, `flagged` {category: what is to be said of it}.
    """

    key: str
    title: str
    kind: Literal["lines", "stack", "group", "rows", "bubbles", "heat"]
    x_label: str
    y_label: str
    x: Sequence[Any] = ()
    series: Sequence[Series] = ()
    marks: Sequence[Mark] = ()
    cells: Sequence[tuple[float, float, int]] = ()
    note: str = ""
    best: float | None = None
    flagged: dict[str, str] = field(default_factory=dict)
    zero: bool = True

    def numbers(self) -> dict[str, Any]:
        """Everything that is drawn, for JSON."""
        out: dict[str, Any] = {"title": self.title, "x": list(self.x)}
        out["series"] = {s.name: list(s.y) for s in self.series}
        out["marks"] = [{"name": m.name, "x": m.x, "y": m.y} for m in self.marks]
        return {**out, "cells": [list(cell) for cell in self.cells], "flagged": self.flagged, "note": self.note}

    def extent(self) -> tuple[float, float]:
        """Lowest and highest y; of a stack, of its sums as far as the axis shows them."""
        if self.kind == "stack":
            found = _clipped([sum(s.y[i] or 0 for s in self.series) for i in range(len(self.x))])
        else:
            found = [y for s in self.series for y in s.y if y is not None] + [m.y for m in self.marks]
        found = [y for y in found if math.isfinite(y)] or [0.0, 1.0]
        low, high = min(found), max(found)
        low = min(low, 0.0) if self.zero else low
        return low, high if high > low else low + max(1.0, abs(low) / 10)  # ticks that their labels tell apart


def _clipped(sums: Sequence[float]) -> list[float]:
    """One bar far above all others is cut (and says so), or nothing else could be seen."""
    if len(sums) < 4:
        return list(sums)
    second, first = sorted(sums)[-2:]
    limit = 1.6 * second if first > 3 * second > 0 else first
    return [min(s, limit) for s in sums]


def ticks(low: float, high: float, count: int = 5, whole: bool = False) -> list[float]:
    """Round numbers from `low` or below to `high` or above."""
    return [float(t) for t in MaxNLocator(count, steps=[1, 2, 2.5, 5, 10], integer=whole).tick_values(low, high)]


def number(value: Number) -> str:
    """A number as people read it: four digits that count, thousands parted."""
    if value is None or not math.isfinite(value):
        return "-"
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:,.0f}" if abs(value) >= 10000 else f"{value:.4g}"
