"""The gradient indicator in the report: what is drawn is what was logged."""

import math
import re
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest

from equipoise.pipelines.report.drawing import draw
from equipoise.pipelines.report.figures import Figure, Series
from equipoise.pipelines.report.gradients import _figures


def logged(prefix="gradient", after=True):
    """Four steps of three objectives, one with a slash in its name; the third step has no angle between two of them."""
    angles = {
        ("fused", "kl/a"): [62, 100, 100, 122],
        ("fused", "b"): [35, 35, math.nan, 35],
        ("kl/a", "b"): [92, 80, 170, 175],
    }
    rows = []
    for t in range(4):
        row = {"step": t, "epoch": 0, f"{prefix}/conflicts": 0.5, f"{prefix}/dominance": [2.0, 3, math.inf, 4][t]}
        row |= {f"{prefix}/norm/{n}": 1.0 + t for n in ("fused", "kl/a", "b")}
        for (a, b), found in angles.items():
            row[f"{prefix}/cosine/{a}/{b}"] = math.cos(math.radians(found[t]))
            if after:
                row[f"{prefix}/after/cosine/{a}/{b}"] = math.cos(math.radians(min(found[t], 180 - found[t])))
        rows.append(row | ({f"{prefix}/after/conflicts": 0.0} if after else {}))
    return pd.DataFrame(rows)


def test_what_is_drawn_is_what_was_logged():
    cosines, angles, conflicts, dominance = _figures(logged(), "gradient", "objectives")
    assert list(cosines.x) == ["fused", "kl/a", "b"]
    expected = np.cos(np.radians([62, 100, 100, 122])).mean()
    assert cosines.series[0].y == [
        1.0,
        pytest.approx(expected, abs=1e-4),
        pytest.approx(math.cos(math.radians(35)), abs=1e-4),
    ]
    assert cosines.series[1].y[0] == cosines.series[0].y[1]
    # 11 known angles: 35 three times, 62, 80, 92, 100 twice, 122, 170, 175.
    shares = dict(zip(angles.x, np.array(angles.series[0].y) * 11, strict=True))
    assert shares["30-45"] == pytest.approx(3, abs=1e-2)
    assert shares["75-90"] == pytest.approx(1, abs=1e-2)
    assert shares["90-105"] == pytest.approx(3, abs=1e-2)
    assert shares["165-180"] == pytest.approx(2, abs=1e-2)
    assert [s.name for s in angles.series] == ["before", "after"]
    assert sum(angles.series[1].y[6:]) == 0
    assert {s.name: s.y for s in conflicts.series} == {"before": [0.5] * 4, "after": [0.0] * 4}
    assert dominance.series[0].y == [2.0, 3.0, None, 4.0]
    svg = draw(cosines)
    assert svg.count('class="heat low"') + svg.count('class="heat high"') == 9
    assert f">{expected:.2f}<" in svg
    for figure in (angles, conflicts, dominance):
        assert not re.search(r"\bnan\b", draw(figure))


def test_a_monitor_s_columns_are_null_between_its_looks():
    steps = logged("monitor", after=False)
    steps.loc[[1, 3], [c for c in steps if c.startswith("monitor/")]] = math.nan
    cosines, angles, conflicts, _ = _figures(steps, "monitor", "sets")
    assert conflicts.x == [0.0, 2.0]
    assert [s.name for s in angles.series] == ["angles"]
    assert cosines.note.startswith("Means over 2 steps")


def test_a_run_without_them_has_no_figures():
    assert _figures(pd.DataFrame({"step": [0], "loss": [1.0]}), "gradient", "objectives") == []


def test_labels_below_a_chart_do_not_run_into_each_other():
    cosines, angles, *_ = _figures(logged(), "gradient", "objectives")
    shown = re.findall(r'<text class="tick mid" x="([\d.]+)" y="[\d.]+">([^<]+)</text>', draw(angles))
    assert [label for _, label in shown][:2] == ["0-15", "30-45"]
    ends = [(float(x) - 3.2 * len(label), float(x) + 3.2 * len(label)) for x, label in shown]
    assert all(right < left for (_, right), (left, _) in pairwise(ends))
    # A heat map's columns: side by side where they fit, else turned, whole, and inside the picture.
    assert "rotate" not in draw(cosines)
    names = ["accelerometer", "gyroscope", "accelerometer+gyroscope"]
    wide = draw(replace(cosines, x=names))
    assert wide.count("rotate(-40)") == 3
    assert wide.count(">accelerometer<") == 1
    height = float(re.search(r'viewBox="0 0 480 (\d+)"', wide)[1])
    assert height > 12 + 3 * 52 + 14 + 16 * 6 * math.sin(math.radians(40))


def test_the_ticks_of_a_constant_have_labels_of_their_own():
    line = Figure(
        "k", "loss scale", "lines", "step", "loss_scale", [0, 1], [Series("scale", [65536.0] * 2, 0)], zero=False
    )
    labels = re.findall(r'<text class="tick end"[^>]*>([^<]+)</text>', draw(line))
    assert len(labels) == len(set(labels)) > 2


@pytest.mark.parametrize("top", [1.0, 90.0, 65536.0, 2.5e6, 1.5e-4])
def test_the_name_of_the_y_axis_has_room_beside_its_ticks_labels(top):
    svg = draw(Figure("k", "t", "lines", "step", "loss_scale", [0, 1], [Series("s", [0.0, top])]))
    shown = re.findall(r'<text class="tick end" x="([\d.]+)" y="[\d.]+">([^<]+)</text>', svg)
    starts = min(float(x) - 6.7 * len(label) for x, label in shown)
    baseline = float(re.search(r'transform="translate\(([\d.]+) [\d.]+\) rotate\(-90\)"', svg)[1])
    assert starts - (baseline + 3) >= 4, "what hangs below the baseline of 12 px text takes 3"
    grid = re.search(r'class="grid" x1="([\d.]+)" x2="([\d.]+)"', svg)
    line = re.search(r'<polyline[^>]*points="([\d.]+),[\d.]+ ([\d.]+),', svg)
    assert [float(x) for x in line.groups()] == [float(x) for x in grid.groups()], (
        "the lines begin and end with the grid"
    )
