"""Two drawings: ranks over data sets with their critical difference, and every difference with its interval."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.figure
import matplotlib.lines
import pandas as pd
import scikit_posthocs
from scipy import stats

from equipoise.pipelines.comparing import wording as w
from equipoise.pipelines.comparing.document import code, plain
from equipoise.pipelines.comparing.frame import PHASES, REFERENCES, Comparison
from equipoise.pipelines.comparing.statistics import LEVEL

#: Figures that are ranked and drawn, dark enough on white and apart for most kinds of colour vision.
COLOURS = {"full": "#1f5fa8", "missing Avg": "#c2570c", "noisy Avg": "#5b7f2b"}
RANKED = ("full", "missing Avg")
_STYLE: Any = {"svg.fonttype": "none", "svg.hashsalt": "equipoise", "font.size": 8, "font.family": "sans-serif"}


@dataclass(frozen=True)
class Ranking:
    """Mean ranks (1 is best) of methods that ran on each of `data`, by the mean of a figure over seeds; `left_out` are the
    other methods, `elsewhere` the other data sets.

    `friedman` is the p-value of Friedman's test that all methods have the same expected rank; `apart` the pairs that Nemenyi's
    test of all pairs tells apart, (better, worse), and `critical` the difference of mean ranks that it takes. NaN and nothing
    below two data sets or three methods.
    """

    figure: str
    data: Sequence[str]
    ranks: pd.Series
    left_out: Sequence[str]
    elsewhere: Sequence[str] = ()
    friedman: float = math.nan
    critical: float = math.nan
    nemenyi: pd.DataFrame | None = None

    @property
    def apart(self) -> list[tuple[str, str]]:
        if self.nemenyi is None or not self.friedman <= LEVEL:
            return []
        order = list(self.ranks.sort_values(kind="stable").index)
        return [(a, b) for i, a in enumerate(order) for b in order[i + 1 :] if self.nemenyi.loc[a, b] <= LEVEL]


def ranking(found: Comparison, phase: str, figure: str) -> Ranking:
    """Ranks of one figure."""
    data, methods = _together(found, phase)
    means = pd.DataFrame(
        {m: [found.spread(phase, d, m, figure).mean * (-1) ** found.lower_is_better(d) for d in data] for m in methods},
        index=data,
        dtype=float,
    ).dropna(axis=1)
    methods = list(means.columns)
    left_out = [m for m in found.methods if m not in methods]
    elsewhere = [d for d in found.data if found.ran(phase, d) and d not in data]
    ranks = means.round(9).rank(axis=1, ascending=False).mean() if len(data) else pd.Series(dtype=float)
    k, n = len(methods), len(data)
    if k < 3 or n < 2:
        return Ranking(figure, data, ranks, left_out, elsewhere)
    friedman = float(stats.friedmanchisquare(*(means[m].round(9) for m in methods)).pvalue)
    critical = float(stats.studentized_range.isf(LEVEL, k, math.inf)) * math.sqrt(k * (k + 1) / (12 * n))
    table = scikit_posthocs.posthoc_nemenyi_friedman(-means.round(9))
    return Ranking(figure, data, ranks, left_out, elsewhere, friedman, critical, table)


def _together(found: Comparison, phase: str) -> tuple[list[str], list[str]]:
    """Data sets, and the methods that ran on all of them, so that the most ranks can be given: a data set with few methods
    is rather left out than all that did not run there.
    """
    ran = {d: set(found.ran(phase, d)) for d in found.data if found.ran(phase, d)}
    best: tuple[list[str], set[str]] = ([], set())
    order = sorted(ran, key=lambda d: -len(ran[d]))
    for n in range(1, len(order) + 1):
        common = set.intersection(*(ran[d] for d in order[:n]))
        if n * len(common) >= len(best[0]) * len(best[1]):
            best = order[:n], common
    return [d for d in found.data if d in best[0]], [m for m in found.methods if m in best[1]]


def said(found: Ranking) -> str:
    """What the ranks allow to say, and how little with few data sets."""
    if math.isnan(found.critical):
        return (
            f"**Ranks of {found.figure}**: none. They need three methods that ran on each of at least two data sets; there are "
            f"{w.count(len(found.ranks), 'such method')} and {w.count(len(found.data), 'data set')}."
        )
    k, n = len(found.ranks), len(found.data)
    whole = f"Friedman's test over {k} methods and {n} data sets: p = {w.probability(found.friedman)}".replace(
        "= <", "<"
    )
    far = (
        f"Nemenyi's test tells two methods apart from a difference of mean ranks of {found.critical:.1f}, of the {k - 1} that "
        "there can be"
    )
    if found.critical >= k - 1:
        far += ": with so few data sets it can tell none apart, whatever they do"
    elif n < 10:
        far += ", so that with so few data sets only the two ends of the table can come apart"
    if not found.friedman <= LEVEL:
        pairs = "The ranks are not distinguishable from chance, and no two methods are compared"
    elif found.apart:
        pairs = "Apart are " + w.listed([f"{code(a)} before {code(b)}" for a, b in found.apart[:12]])
        pairs += f" and {len(found.apart) - 12} more pairs" if len(found.apart) > 12 else ""
    else:
        pairs = "The ranks differ by more than chance, but no two methods are told apart"
    out = (
        f" Not ranked, as not there on every data set: {w.listed([code(m) for m in found.left_out])}."
        if found.left_out
        else ""
    )
    if found.elsewhere:
        out += f" Not counted, as fewer methods ran there: {w.listed([plain(d) for d in found.elsewhere])}."
    return f"**Ranks of {found.figure}** over {w.listed([plain(d) for d in found.data])}. {whole}. {far}. {pairs}.{out}"


def draw_ranks(path: Path, rankings: Sequence[Ranking]) -> None:
    """An SVG on white, a critical-difference diagram a figure; methods that no bar parts are not told apart."""
    most = max((len(r.ranks) for r in rankings), default=0)
    with matplotlib.rc_context(_STYLE):
        figure = matplotlib.figure.Figure(figsize=(8.5, len(rankings) * (1.5 + 0.11 * most)), layout="constrained")
        grid = figure.subplots(max(len(rankings), 1), 1, squeeze=False).ravel()
        for axes, found in zip(grid, rankings):
            title = f"mean rank of {found.figure} over {w.count(len(found.data), 'data set')}"
            title += "" if math.isnan(found.critical) else f"; critical difference {found.critical:.1f}"
            axes.set_title(title, fontsize=9, pad=14)
            if found.nemenyi is None:
                axes.axis("off")
                axes.text(0.5, 0.5, "too few methods or data sets to rank", ha="center", transform=axes.transAxes)
                continue
            drawn = scikit_posthocs.critical_difference_diagram(
                found.ranks,
                # Without Friedman's leave no two are told apart: one bar over all of them.
                found.nemenyi if found.friedman <= LEVEL else found.nemenyi * 0 + 1,
                ax=axes,
                label_fmt_left="{label} ({rank:.1f})",
                label_fmt_right="({rank:.1f}) {label}",
                elbow_props={"color": "#8a939c", "linewidth": 0.8},
                marker_props={"color": COLOURS[found.figure], "s": 10},
                crossbar_props={"color": "#1b1f24", "linewidth": 2},
            )
            for label in drawn["labels"]:
                label.set_color("#1b1f24")
            for line in itertools.chain.from_iterable(drawn["crossbars"]):  # drawn through a set's members in any order
                line.set_data([min(line.get_xdata()), max(line.get_xdata())], [line.get_ydata()[0]] * 2)
        _save(figure, path)


def draw_differences(path: Path, found: Comparison, phase: str) -> None:
    """An SVG on white: every method minus each reference with its interval, filled where it holds after the correction."""
    data = [d for d in found.data if found.ran(phase, d)]
    order = [m for m in found.methods if any(m in found.ran(phase, d) for d in data)]
    with matplotlib.rc_context(_STYLE):
        height = len(REFERENCES) * (0.7 + 0.2 * max(len(order), 1)) + 0.5
        figure = matplotlib.figure.Figure(figsize=(2.0 + 2.3 * max(len(data), 1), height), layout="constrained")
        grid = figure.subplots(len(REFERENCES), max(len(data), 1), sharey="row", sharex="col", squeeze=False)
        for row, reference in zip(grid, REFERENCES):
            for axes, name in zip(row, data or [""]):
                for shift, (measure, colour) in zip((-0.22, 0, 0.22), COLOURS.items()):
                    tests = found.family(phase, measure, reference)
                    for place, method in enumerate(order):
                        d = tests.get((name, method))
                        if d is None or math.isnan(d.mean):
                            continue
                        holds = d.verdict in ("higher", "lower")
                        if d.n > 1:
                            axes.plot([d.low, d.high], [place + shift] * 2, color=colour, linewidth=1.0)
                        face = colour if holds else "white"
                        axes.plot([d.mean], [place + shift], "o", color=colour, markersize=2.8, mfc=face, mew=0.7)
                axes.axvline(0, color="#777777", linewidth=0.8)
                axes.set_title(f"{name}, minus {reference}" if name else f"minus {reference}: no runs", fontsize=8)
                axes.set_yticks(range(len(order)), order)
                axes.set_ylim(max(len(order), 1) - 0.5, -0.5)
                axes.tick_params(labelbottom=True)
                axes.spines[["top", "right"]].set_visible(False)
        marks = [
            matplotlib.lines.Line2D([], [], color=c, marker="o", markersize=3, label=n) for n, c in COLOURS.items()
        ]
        figure.legend(handles=marks, loc="outside upper center", ncols=len(marks), frameon=False)
        label = f"difference at {PHASES[phase]}, 95 % interval by itself; filled where it holds after Holm's correction"
        figure.supxlabel(label, fontsize=8)
        _save(figure, path)


def _save(figure: matplotlib.figure.Figure, path: Path) -> None:
    figure.savefig(path, format="svg", facecolor="white", metadata={"Date": None})
