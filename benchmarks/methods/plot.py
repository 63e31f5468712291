"""The figure of the page: every method minus joint training with its interval, a panel a data set and figure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.figure
import matplotlib.lines

from benchmarks.methods.results import MethodResults
from benchmarks.methods.studies import JOINT, methods

#: Dark enough on white, and apart for most kinds of colour vision.
COLOURS = {"full": "#1f5fa8", "missing Avg": "#c2570c", "noisy Avg": "#5b7f2b"}


def write_figure(path: Path, results: Sequence[MethodResults]) -> None:
    """An SVG on white, the same bytes for the same records."""
    path.parent.mkdir(parents=True, exist_ok=True)
    style: Any = {"svg.fonttype": "none", "svg.hashsalt": "methods", "font.size": 8, "font.family": "sans-serif"}
    ran = {method for found in results for method in found.runs} - {JOINT}
    order = [method for method in methods() if method in ran]
    with matplotlib.rc_context(style):
        size = (2.0 + 2.3 * len(results), 1.2 + 0.26 * len(order))
        figure = matplotlib.figure.Figure(figsize=size, layout="constrained")
        grid = figure.subplots(1, len(results), sharey=True, squeeze=False).ravel()
        for axes, found in zip(grid, results):
            for place, method in enumerate(order):
                if method not in found.runs:
                    continue
                for shift, (name, colour) in zip((-0.22, 0, 0.22), COLOURS.items()):
                    d = found.difference(method, JOINT, name)
                    if d.n > 1:
                        axes.plot([d.low, d.high], [place + shift] * 2, color=colour, linewidth=1.2)
                    axes.plot([d.mean], [place + shift], "o", color=colour, markersize=2.5)
            axes.axvline(0, color="#777777", linewidth=0.8)
            axes.set_title(f"{found.name}, {found.seeds} seed{'s' * (found.seeds > 1)}", fontsize=9)
            axes.set_yticks(range(len(order)), order)
            axes.set_ylim(len(order) - 0.5, -0.5)
            axes.spines[["top", "right"]].set_visible(False)
        marks = [
            matplotlib.lines.Line2D([], [], color=c, marker="o", markersize=3, label=n) for n, c in COLOURS.items()
        ]
        figure.legend(handles=marks, loc="outside upper center", ncols=len(marks), frameon=False)
        figure.supxlabel(f"test accuracy minus that of {JOINT}, 95 % interval over seeds", fontsize=8)
        figure.savefig(path, format="svg", facecolor="white", metadata={"Date": None})
