"""The figure of the page: paired differences with their intervals, a panel a data set."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.figure

from benchmarks.first_results.results import Results

PAIRS = (
    ("summed", "joint"),
    ("modality_dropout", "joint"),
    ("random_copies", "joint"),
    ("modality", "joint"),
    ("sample", "joint"),
    ("modality", "random_copies"),
    ("sample", "random_copies"),
)
#: Dark enough on white, and apart for most kinds of colour vision.
COLOURS = {"all": "#1f5fa8", "Avg": "#c2570c"}
TITLES = {"all": "all modalities present", "Avg": "Avg: one modality missing"}


def write_figure(path: Path, results: Sequence[Results]) -> None:
    """An SVG on white, the same bytes for the same records."""
    path.parent.mkdir(parents=True, exist_ok=True)
    style: Any = {"svg.fonttype": "none", "svg.hashsalt": "first-results", "font.size": 8, "font.family": "sans-serif"}
    with matplotlib.rc_context(style):
        figure = matplotlib.figure.Figure(figsize=(9, 2.6 * -(-max(len(results), 1) // 3) + 0.4), layout="constrained")
        grid = figure.subplots(-(-max(len(results), 1) // 3), 3, sharey=True, squeeze=False).ravel()
        for axes in grid[len(results) :]:
            axes.set_visible(False)
        for axes, found in zip(grid, results):
            for place, (a, b) in enumerate(PAIRS):
                for shift, (name, colour) in zip((-0.17, 0.17), COLOURS.items()):
                    d = found.difference(a, b, name)
                    label = TITLES[name] if place == 0 else None
                    if d.n > 1:
                        axes.plot([d.low, d.high], [place + shift] * 2, color=colour, linewidth=1.4)
                    axes.plot([d.mean], [place + shift], "o", color=colour, markersize=3.5, label=label)
            axes.axvline(0, color="#777777", linewidth=0.8)
            axes.set_title(f"{found.name}, {found.seeds} seeds", fontsize=9)
            axes.set_yticks(range(len(PAIRS)), [f"{a} − {b}" for a, b in PAIRS])
            axes.spines[["top", "right"]].set_visible(False)
            axes.invert_yaxis() if axes is grid[0] else None
        if results:
            figure.legend(*grid[0].get_legend_handles_labels(), loc="outside upper center", ncols=2, frameon=False)
            figure.supxlabel("difference of test accuracies, 95 % interval over seeds", fontsize=8)
        figure.savefig(path, format="svg", facecolor="white", metadata={"Date": None})
