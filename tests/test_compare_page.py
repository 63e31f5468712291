"""The pages of a comparison: figures by hand, incomplete frames, the same bytes, hostile text, ranks."""

import json
import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from equipoise import EquipoiseError
from equipoise.pipelines.comparing import diagram
from equipoise.pipelines.comparing import document as doc
from equipoise.pipelines.comparing.frame import Comparison, figures
from equipoise.pipelines.comparing.page import FILES, page, write_results
from equipoise.pipelines.comparing.statistics import Difference, detectable

ABOUT = {
    "command": "equipoise compare examples/compare.yaml",
    "machine": "2 cores",
    "date": "2026-11-24",
    "hours": "3.2",
}
METHODS = ("joint", "summed", "gmd", "joint+sample")


def row(data: str, method: str, seed: int, full: float, phase: str = "steps", **other: object) -> dict[str, object]:
    names = ["left", "right"] if data != "three" else ["a", "b", "c"]
    out: dict[str, object] = {
        "data": data,
        "method": method,
        "phase": phase,
        "number": 1,
        "seed": seed,
        "status": "done",
    }
    out |= {"error": None, "steps": 600, "spent": 4800, "modalities": names, "metric": "accuracy", "seconds": 2.0}
    out |= {
        "overrides": json.dumps({"optimizer.lr": 0.00321}),
        "memory": 5e6,
        "passes": 1,
        "sweeps": 0,
        "test/full": full,
    }
    out |= {f"test/missing/{m}": full - 0.1 * (i + 1) for i, m in enumerate(names)}
    out |= {f"test/noisy/{m}": full - 0.05 * (i + 1) for i, m in enumerate(names)}
    return {**out, **other}


def some_runs(
    data: tuple[str, ...] = ("digits", "three"), methods: tuple[str, ...] = METHODS, seeds: int = 5
) -> list[dict]:
    """gmd is far above all on digits; nothing else differs but by chance."""
    rng = np.random.default_rng(2)
    rows = []
    for d in data:
        shared = rng.normal(0.8, 0.01, seeds)
        for m in methods:
            for s in range(seeds):
                lift = 0.08 if (d, m) == ("digits", "gmd") else 0.0
                rows.append(row(d, m, s, shared[s] + lift + rng.normal(0, 0.003)))
            for k in range(2):
                tried = {"phase": "tune", "number": k, "validation/score": 0.7 + k / 100, "spent": None}
                rows.append({**row(d, m, 0, math.nan), **tried})
    return rows


def written(rows: list[dict], out: Path, **more: object) -> str:
    paths = write_results(pd.DataFrame(rows), out, ABOUT, **more)  # type: ignore[arg-type]
    assert [p.name for p in paths] == list(FILES)
    assert all(p.stat().st_size for p in paths)
    return (out / "results.md").read_text()


def markdown(rows: list[dict], **more: object) -> str:
    """The page without its pictures, on one line."""
    found = Comparison(pd.DataFrame(rows), more.get("planned"), more.get("equal_time", True))  # type: ignore[arg-type]
    rankings = [diagram.ranking(found, "steps", figure) for figure in diagram.RANKED]
    return said(doc.to_markdown(page(found, ABOUT, rankings, more.get("left_out", {}))))  # type: ignore[arg-type]


def said(text: str) -> str:
    """Without line breaks."""
    return re.sub(r"\s+", " ", text)


def test_figures_of_a_run() -> None:
    found = figures(pd.Series(row("three", "joint", 0, 0.9)))
    expected = {"full": 0.9, "missing Avg": 0.7, "missing Gap": 0.2, "noisy Avg": 0.8, "noisy Gap": 0.1}
    assert found == pytest.approx(expected)
    hole = figures(pd.Series(row("three", "joint", 0, 0.9, **{"test/missing/b": math.nan})))
    assert math.isnan(hole["missing Avg"])
    assert math.isnan(hole["missing Gap"])
    assert hole["noisy Avg"] == pytest.approx(0.8)


def test_a_family_is_every_method_on_every_data_set(tmp_path: Path) -> None:
    rows = some_runs()
    found = Comparison(pd.DataFrame(rows))
    tests = found.family("steps", "full", "summed")
    assert set(tests) == {(d, m) for d in ("digits", "three") for m in METHODS if m != "summed"}
    score = {(r["data"], r["method"], r["seed"]): r["test/full"] for r in rows if r["phase"] == "steps"}
    for (d, m), difference in tests.items():
        a, b = ([score[d, method, s] for s in range(5)] for method in (m, "summed"))
        assert difference.p == pytest.approx(stats.ttest_rel(a, b).pvalue)
    ps = sorted(t.p for t in tests.values())
    assert min(t.adjusted for t in tests.values()) == pytest.approx(6 * ps[0])
    deviations = [t.deviation for (d, _), t in tests.items() if d == "digits"]
    expected = detectable(10, 0.05 / 6) * np.median(deviations)
    assert found.detectable("steps", "digits", "full", "summed", 10, True) == pytest.approx(expected)

    text = said(written(rows, tmp_path))
    assert "**full**, minus `joint`: higher on digits `gmd`; not distinguishable in 5 of 6 tests together." in text
    assert re.search(r"\| `gmd` \| \+\.0\d\d \[\+\.0\d\d, \+\.\d\d\d\] † \|", text)
    assert "`optimizer.lr=0.00321`" in text
    table = pd.read_csv(tmp_path / "tests.csv")
    held = table[table["verdict"] == "higher"]
    assert set(held["method"]) == {"gmd"}
    assert (held["adjusted"] <= 0.05).all()
    assert len(table) == 2 * 5 * 6


def test_no_verdict_where_nothing_holds() -> None:
    rows = [r for r in some_runs() if r["method"] != "gmd"]
    text = markdown(rows)
    for reference in ("joint", "summed"):
        for figure in ("full", "missing Avg", "noisy Avg"):
            said_so = f"no method is distinguishable from `{reference}` on any data set (4 tests together)"
            assert f"**{figure}**, minus `{reference}`: {said_so}" in text
    assert "†" not in text.split("## At equal optimiser steps")[1].split("## Limits")[0]
    assert not re.search(r"\bbetter\b|\bbest method\b|outperform", text)


@pytest.mark.slow
def test_the_same_frame_gives_the_same_bytes(tmp_path: Path) -> None:
    """Also from Parquet, with its rows in another order, in another process."""
    frame = pd.DataFrame(some_runs())
    write_results(frame, tmp_path / "a", ABOUT)
    parts = [part.sample(frac=1, random_state=1) for _, part in frame.groupby("data", sort=False)]
    pd.concat(parts).to_parquet(tmp_path / "runs.parquet")
    program = (
        "import sys, json, pandas as pd; from pathlib import Path\n"
        "from equipoise.pipelines.comparing.page import write_results\n"
        "write_results(pd.read_parquet(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3]))"
    )
    call = [sys.executable, "-c", program, str(tmp_path / "runs.parquet"), str(tmp_path / "b"), json.dumps(ABOUT)]
    subprocess.run(call, check=True)
    for name in FILES:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


def test_what_is_not_there_is_said() -> None:
    rows = [r for r in some_runs() if not (r["data"] == "three" and r["method"] == "summed")]
    rows = [r for r in rows if not (r["method"] == "gmd" and r["data"] == "three" and r["seed"] in (3, 4))]
    rows += [{**row("three", "jd", 0, math.nan), "status": "refused", "error": "No jd for three", "seed": math.nan}]
    failed = {"status": "failed", "error": "Loss is not a number at step 7"}
    rows = [r for r in rows if not (r["method"] == "joint+sample" and r["seed"] == 2 and r["phase"] == "steps")]
    rows += [{**row(d, "joint+sample", 2, math.nan), **failed} for d in ("digits", "three")]
    text = markdown(rows, left_out={"emoji": "twemoji is not installed here"})
    assert "Left out: emoji. twemoji is not installed here." in text
    assert "Refused: `jd` on three. No jd for three." in text
    assert "Failed: `joint+sample` on digits, at equal optimiser steps, seed 2. Loss is not a number at step 7." in text
    assert "Not made yet: `gmd` on three at equal optimiser steps, seeds 3 and 4." in text
    assert "Not there in any form: `jd` on digits" in text
    assert "`summed` on three" in text
    assert "Without `summed` at equal optimiser steps nothing is compared with it on three" in text
    assert "Not made yet: any final run at equal processor time." in text
    assert "**Not finished**: 2 final runs are not made yet" in text
    assert "| `gmd` (3 of 5) |" in text
    assert "| `joint+sample` (4 of 5) |" in text
    found = Comparison(pd.DataFrame(rows))
    assert found.family("steps", "full", "joint")["three", "gmd"].n == 3
    assert set(found.family("steps", "full", "summed")) == {("digits", m) for m in METHODS if m != "summed"}


def test_a_plan_says_what_is_to_come() -> None:
    planned = {"digits": dict.fromkeys(METHODS, range(6)), "watch": {"joint": range(2), "summed": range(2)}}
    text = markdown(some_runs(("digits",)), planned=planned)
    everyone = "`gmd`, `joint`, `summed` and `joint+sample`"
    assert f"Not made yet: {everyone} on digits at equal optimiser steps, seed 5." in text
    assert "Not made yet: `joint` and `summed` on watch at equal optimiser steps, seeds 0 and 1." in text
    assert "**Not finished**: 36 final runs are not made yet" in text, "8 at equal steps, 28 at equal time"
    assert "Not there in any form" not in text
    text = markdown(some_runs(("digits",)), equal_time=False)
    assert "processor time," not in text
    assert "Nothing: every run is there." in text


@pytest.mark.parametrize(
    "rows", [[], some_runs(seeds=1), some_runs()[5:7], [r for r in some_runs() if r["phase"] == "tune"]]
)
def test_a_page_of_almost_nothing(rows: list[dict]) -> None:
    text = markdown(rows)
    assert "nan" not in text.lower().replace("finance", "")
    assert "Not made yet: any final run at equal processor time." in text
    if rows and rows[0]["seed"] == 0 and len(rows) > 10:
        assert "one seed only, so there is no test" in text or "any final run at equal optimiser steps" in text


def test_the_second_table_is_of_its_own_families() -> None:
    rows = some_runs()
    rows += [
        row(r["data"], r["method"], r["seed"], 0.8 + r["seed"] / 100, "time") for r in rows if r["phase"] == "steps"
    ]
    text = markdown(rows)
    assert "## At equal processor time" in text
    assert "At equal processor time, **full**, minus `joint`: no method is distinguishable from `joint`" in text
    assert "At equal optimiser steps, **full**, minus `joint`: higher on digits `gmd`" in text
    assert "Nothing: every run is there." in text


def test_bad_frames_are_refused_in_a_sentence(tmp_path: Path) -> None:
    rows = some_runs()
    with pytest.raises(
        EquipoiseError, match=r"no column status\. Give the runs\.parquet that `equipoise compare` wrote"
    ):
        Comparison(pd.DataFrame(rows).drop(columns="status"))
    with pytest.raises(EquipoiseError, match="two finished runs of joint on digits, phase steps, seed 0"):
        written([*rows, rows[0]], tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(EquipoiseError, match=r"Cannot write the results to .*file.*Give another folder"):
        written(rows, tmp_path / "file")


HOSTILE = '<script>alert(1)</script> 50% of A_b & {c} \\d $x$ #1 ~ ^ | `q` **no** "e"'


def test_words_of_others_are_words(tmp_path: Path) -> None:
    rows = some_runs(("digits", "a_b & <i>c</i>|d"))
    rows.append({**row("digits", "gmd", 9, math.nan), "status": "failed", "error": HOSTILE})
    text = written(rows, tmp_path)
    html = (tmp_path / "results.html").read_text()
    assert "<script" not in html
    assert "<i>c" not in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt; 50% of A_b &amp; {c} \\d $x$ #1 ~ ^ | `q` **no**" in html
    assert "http" not in html.replace("http-equiv", "")
    assert not re.search(r"(?<!\\)<script", text)
    tables = [line for line in text.splitlines() if line.startswith("| ")]
    assert all(re.sub(r"\\.", "", line).count("|") in (3, 5, 6, 7, 10, 13) for line in tables), (
        "a row has its cells alone"
    )
    tex = (tmp_path / "results.tex").read_text()
    assert r"a\_b \& $<$i$>$c$<$/i$>$$|$d" in tex
    assert (
        tex.count(r"\begin{tabular}")
        == tex.count(r"\end{tabular}")
        == tex.count(r"\toprule")
        == tex.count(r"\bottomrule")
        > 5
    )
    for line in tex.splitlines():
        assert line.startswith("%") or not re.search(r"(?<!\\)[%#]|[\u2212\u2020\u00a0\u2013`]|\*\*", line), line
        assert line.replace(r"\$", "").count("$") % 2 == 0, line


def test_latex_of_every_sign() -> None:
    assert doc.latex(doc.plain("a\\b_c{d}$e$&f#g%h~i^j<k>l|m*n`o")) == (
        r"a\textbackslash{}b\_c\{d\}\$e\$\&f\#g\%h\textasciitilde{}i\textasciicircum{}j$<$k$>$l$|$m*n`o"
    )
    assert doc.latex("**−.01** [`x_y`, +.2] †") == (
        r"\textbf{$-$.01} [\texttt{x\_y}, $+$.2] \textsuperscript{$\dagger$}"
    )
    assert doc.html(doc.plain("<b> **x** `y`")) == "&lt;b&gt; **x** `y`"


def ranked(means: np.ndarray) -> diagram.Ranking:
    """A frame of one seed with these means [data sets, methods]."""
    rows = [row(f"d{i}", f"m{j}", 0, float(v)) for i, line in enumerate(means) for j, v in enumerate(line)]
    return diagram.ranking(Comparison(pd.DataFrame(rows)), "steps", "full")


def test_ranks_and_their_tests_by_hand() -> None:
    means = np.array([[0.9, 0.8, 0.7], [0.8, 0.7, 0.6], [0.7, 0.5, 0.6], [0.9, 0.8, 0.1]])
    found = ranked(means)
    assert found.ranks.to_dict() == {"m0": 1.0, "m1": 2.25, "m2": 2.75}
    chi2 = 12 * 4 / (3 * 4) * (sum(r**2 for r in (1.0, 2.25, 2.75)) - 3 * 16 / 4)
    assert found.friedman == pytest.approx(stats.chi2.sf(chi2, 2))
    # Demsar (2006), Table 5(a): q of three classifiers at .05 is 2.343.
    assert found.critical == pytest.approx(2.343 * math.sqrt(3 * 4 / (6 * 4)), rel=1e-3)
    assert found.apart == [("m0", "m2")]
    assert "Apart are `m0` before `m2`" in diagram.said(found)


def test_few_data_sets_are_said_to_tell_little() -> None:
    rng = np.random.default_rng(0)
    few = ranked(np.sort(rng.random((2, 12)), axis=1))
    assert few.critical > 11
    assert not few.apart
    assert "it can tell none apart, whatever they do" in diagram.said(few)
    chance = ranked(rng.random((6, 8)))
    assert chance.friedman > 0.05
    assert "not distinguishable from chance, and no two methods are compared" in diagram.said(chance)
    none = ranked(rng.random((1, 8)))
    assert math.isnan(none.critical)
    assert "at least two data sets" in diagram.said(none)
    lower = pd.DataFrame([row(d, m, 0, v, metric="mae") for d in "ab" for m, v in (("x", 1.0), ("y", 2.0), ("z", 3.0))])
    assert diagram.ranking(Comparison(lower), "steps", "full").ranks.to_dict() == {"x": 1, "y": 2, "z": 3}


def test_the_order_of_methods_changes_nothing() -> None:
    rows = some_runs()
    assert markdown(rows) == markdown(sorted(rows, key=lambda r: (r["data"], r["seed"])))


def test_verdicts_of_a_difference() -> None:
    assert Difference(0.1, 0.05, 0.15, 0.001, 0.01, 5, adjusted=0.2).verdict == "not distinguishable"
    assert Difference(0.1, 0.05, 0.15, 0.001, 0.01, 5, adjusted=0.04).verdict == "higher"
    assert Difference(-0.1, -0.15, -0.05, 0.001, 0.01, 5, adjusted=0.04).verdict == "lower"


def test_a_data_set_with_few_methods_does_not_keep_the_others_from_being_ranked() -> None:
    rows = [row(f"d{i}", f"m{j}", 0, 0.9 - j / 10) for i in range(3) for j in range(5)]
    rows += [row("small", f"m{j}", 0, 0.9 - j / 10) for j in range(2)]
    found = diagram.ranking(Comparison(pd.DataFrame(rows)), "steps", "full")
    assert list(found.data) == ["d0", "d1", "d2"]
    assert len(found.ranks) == 5
    assert not found.left_out
    assert "Not counted, as fewer methods ran there: small." in diagram.said(found)
    alone = [row(f"d{i}", f"m{j}", 0, 0.9 - j / 10) for i in range(3) for j in range(5) if (i, j) != (1, 4)]
    found = diagram.ranking(Comparison(pd.DataFrame(alone)), "steps", "full")
    assert list(found.data) == ["d0", "d1", "d2"]
    assert list(found.left_out) == ["m4"]
