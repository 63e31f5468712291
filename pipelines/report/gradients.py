"""The figures of the gradient indicator: how the objectives' gradients lie to each other, and how often they conflict."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pandas as pd

from equipoise.pipelines.report.facts import Facts, optional
from equipoise.pipelines.report.figures import Figure, Mark, Series

#: Where the indicator's columns stand: {prefix: what it watches}.
SOURCES = {
    "gradient": "the method's objectives",
    "monitor": "losses of sets of modalities",
}
BIN = 15  # degrees
POINTS = 120


def gradients(f: Facts) -> list[Figure]:
    """Of each source that the run has: mean cosines, a histogram of angles, conflict rate and dominance by step."""
    return [figure for prefix, what in SOURCES.items() for figure in _figures(f.steps, prefix, what)]


def _figures(steps: pd.DataFrame, prefix: str, what: str) -> list[Figure]:
    start = f"{prefix}/norm/"
    names = [str(c).removeprefix(start) for c in steps if str(c).startswith(start)]
    pairs = [(a, b) for a, b in combinations(names, 2) if f"{prefix}/cosine/{a}/{b}" in steps]
    if len(names) < 2:
        return []
    seen = steps[steps[[f"{start}{n}" for n in names]].notna().any(axis=1)]
    before = _cosines(seen, prefix, pairs)
    after = _cosines(seen, f"{prefix}/after", pairs)
    # Of many objectives only the summary is logged.
    figures = [_map(prefix, what, names, pairs, before)] if pairs else []
    series = [Series("before" if after.size else "angles", _angles(before), 0)]
    series += [Series("after", _angles(after), 1)] if after.size else []
    edges = [f"{low}-{low + BIN}" for low in range(0, 180, BIN)]
    if pairs:
        figures.append(
            Figure(f"{prefix}/angles", f"Angles between {what}", "group", "degrees", "share of pairs", edges, series)
        )
    share = {"before" if after.size else "conflicts": f"{prefix}/conflicts"}
    share |= {"after": f"{prefix}/after/conflicts"} if after.size else {}
    figures.append(_lines(seen, f"{prefix}/conflicts", f"Conflicting pairs of {what}", "share of pairs", share))
    dominance = {"largest / smallest": f"{prefix}/dominance"}
    one = [Mark("equal gradients", 1.0)]
    figures.append(_lines(seen, f"{prefix}/dominance", f"Dominance among {what}", "ratio of norms", dominance, one))
    return figures


def _cosines(steps: pd.DataFrame, prefix: str, pairs: list[tuple[str, str]]) -> np.ndarray:
    """[looks, pairs], NaN where a pair has no angle; empty where nothing of the kind was logged."""
    columns = [f"{prefix}/cosine/{a}/{b}" for a, b in pairs]
    return steps[columns].to_numpy(float) if set(columns) <= set(steps) else np.empty((0, 0))


def _map(prefix: str, what: str, names: list[str], pairs: list[tuple[str, str]], cosines: np.ndarray) -> Figure:
    table = np.full((len(names), len(names)), np.nan)
    for (a, b), column in zip(pairs, cosines.T, strict=True):
        i, j = names.index(a), names.index(b)
        known = column[~np.isnan(column)]
        table[i, j] = table[j, i] = known.mean() if len(known) else np.nan
    np.fill_diagonal(table, 1.0)
    rows = [Series(n, [None if np.isnan(v) else round(float(v), 4) for v in row]) for n, row in zip(names, table)]
    note = f"Means over {len(cosines):,} steps. Below 0: what lowers one loss raises the other."
    return Figure(f"{prefix}/cosines", f"Mean cosines between {what}", "heat", "", "", names, rows, note=note)


def _angles(cosines: np.ndarray) -> list[float]:
    """Share of the known angles in each bin."""
    known = np.rad2deg(np.arccos(np.clip(cosines[~np.isnan(cosines)], -1, 1)))
    counts, _ = np.histogram(known, np.arange(0, 180 + BIN, BIN))
    return [round(float(c), 4) for c in counts / max(len(known), 1)]


def _lines(
    steps: pd.DataFrame, key: str, title: str, label: str, columns: dict[str, str], marks: list[Mark] | None = None
) -> Figure:
    size = -(-len(steps) // POINTS)
    bins = steps.replace([np.inf, -np.inf], np.nan).groupby(np.arange(len(steps)) // size)
    x = [float(v) for v in bins["step"].mean()]
    series = [Series(name, optional(bins[c].mean()), i) for i, (name, c) in enumerate(columns.items())]
    return Figure(key, title, "lines", "step", label, x, series, marks or [])
