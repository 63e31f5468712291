"""The table of all methods: what is run, what a killed run leaves, and what its page says of the records."""

import os
import re
import signal
import time
from multiprocessing import get_context

import pytest

from benchmarks.first_results.studies import Study, grid
from benchmarks.first_results.training import ROOT, hash_of
from benchmarks.methods import fingerprint as prints
from benchmarks.methods.page import page
from benchmarks.methods.plot import write_figure
from benchmarks.methods.results import MethodResults, figure
from benchmarks.methods.schedule import MethodSchedule
from benchmarks.methods.studies import JOINT, REFERENCES, STUDIES, methods
from equipoise import balancers, valuation
from equipoise.datasets.prepare import prepare
from equipoise.models.errors import EquipoiseError


def record(full, missing, noisy, steps=10, seconds=1.0):
    cells = {"full": {"": full}, "missing": dict(zip("ab", missing)), "noisy": dict(zip("ab", noisy))}
    return {
        "modalities": ["a", "b"],
        "classes": ["x", "y"],
        "rows": {"train": 500, "validation": 50, "test": 100},
        "steps": steps,
        "session": "1",
        "seconds": {"wall": 2.0, "cpu": seconds},
        "best": {"value": 0.9, "loss": 0.3, "step": 5},
        "impaired": cells,
    }


def results(name="digits", seeds=5, refused=None, **differing):
    """All methods like joint, where not given as functions seed -> (full, missing, noisy)."""

    def joint(seed):
        return 0.9 + 0.001 * seed, (0.8, 0.6), (0.7, 0.8)

    made = {m: differing.get(m, joint) for m in methods() if m not in (refused or {})}
    runs = {m: {s: record(*f(s), seconds=2.0 if m == "summed" else 1.0) for s in range(seeds)} for m, f in made.items()}
    tries = {"try0": {0: record(0.9, (0.8, 0.6), (0.7, 0.8))}}
    study = Study(name, "made up", steps=10, tries=grid(optimizer__lr=(1e-3,)))
    return MethodResults(study, tries, runs, refused or {})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("methods") / "digits"
    prepare("digits", root)
    return str(root)


@pytest.fixture(scope="module")
def written(folder):
    def write(*found, absent=None):
        return page(found, absent or {}, {f.name: folder for f in found}, {"1": 90.0}, 2)

    return write


def section(text, title):
    return text.replace("\N{NO-BREAK SPACE}", " ").split(f"## {title}\n")[1].split("\n## ")[0]


# What is run


def test_every_registered_method_is_run_and_none_is_named():
    assert set(balancers.names()) <= set(methods())
    assert {f"joint+{name}" for name in valuation.names()} - set(methods()) == {"joint+none"}
    source = "".join(path.read_text() for path in (ROOT / "benchmarks" / "methods").glob("*.py"))
    named = {name for name in [*balancers.names(), *valuation.names()] if f'"{name}"' in source}
    assert named - {"modality"} == {*REFERENCES, "none"}  # the word heads a column as well


def test_methods_differ_in_balancer_resampler_and_the_fusion_that_the_balancer_needs():
    for study in STUDIES:
        choice = study.tries[0]
        plain = study.configured({}, 3, choice, "data").model_dump()
        for name, differs in methods().items():
            mine = study.configured(differs, 3, choice, "data").model_dump()
            fusions = balancers.get(mine["balancer"]["name"]).fusions
            assert {k for k in mine if mine[k] != plain[k]} <= {
                "balancer",
                "resampler",
                *(["model"] if fusions else []),
            }
            assert {k for k in mine["model"] if mine["model"][k] != plain["model"][k]} <= {"fusion"}, name
            assert mine["max_steps"] == study.steps


def test_a_fingerprint_is_of_what_a_method_runs(tmp_path):
    def write(**files):
        for name, text in files.items():
            (tmp_path / f"{name}.py").write_text(text)

    def names(*modules):
        return [path.stem for path in prints.imported(tmp_path, set(modules))]

    write(
        base="import ast",
        step="from equipoise.balancers.base import Base",
        lone="",
        other="from equipoise import models",
    )
    write(one="from equipoise.balancers import base, Nothing", two="import equipoise.balancers.one\nx = 1")
    write(late="def f():\n    from equipoise.balancers.two import x")
    assert names("lone", "step") == ["base", "lone", "step"]
    assert names("late") == ["base", "late", "one", "two"]
    # The real ones: a subclass depends on its parent's file, and not the other way round.
    ogm, ogm_ge = ({p.stem for p in prints.imported(ROOT / "balancers", {n, "step"})} for n in ("ogm", "ogm_ge"))
    assert ogm_ge - ogm == {"ogm_ge"}
    assert {"step", "balancer", "context", "gradients", "ogm"} <= ogm
    assert len({prints.fingerprint(name) for name in balancers.names()}) > len(balancers.names()) / 2
    assert all(any(ROOT.glob(pattern)) for pattern in prints.COMMON)


def test_words_about_code_are_not_in_its_fingerprint(tmp_path):
    def hashed(name, text):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.py").write_text(text)
        return hash_of([tmp_path / name / "x.py"], tmp_path / name)

    plain = hashed("plain", "def f(x):\n    'One.'\n    return x + 1\n")
    assert hashed("worded", "'A file.'\n\n\ndef f(x):\n    'Two.'\n    return (x + 1)  # three\n") == plain
    assert hashed("changed", "def f(x):\n    'One.'\n    return x + 2\n") != plain


SMALL = Study("digits", "digits", steps=4, tries=grid(optimizer__lr=(1e-3, 3e-3)))
SOME = {name: methods()[name] for name in (*REFERENCES, "ensemble", "joint+sample")}


def schedule(tmp_path, say=lambda line: None):
    made = MethodSchedule(tmp_path / "data", tmp_path / "runs", 1, 1, say, SOME)
    assert made.prepared([SMALL]) == ([SMALL], {})
    return made


def run_until_killed(tmp_path):
    def wait(line):
        if line.startswith("2/"):  # two records of the second round: hang in the middle of the work
            (tmp_path / "ready").touch()
            time.sleep(60)

    schedule(tmp_path, wait).results([SMALL])


def test_killed_it_goes_on_where_it_was(tmp_path):
    # The real thing, small: four steps of digits, four methods, killed as by kill -9.
    child = get_context("fork").Process(target=run_until_killed, args=(tmp_path,))
    schedule(tmp_path)  # the data are prepared here
    # The two tries make "2/2" at once: let them be there.
    first = schedule(tmp_path)
    first.ensure(first._tries(SMALL))
    child.start()
    began = time.monotonic()
    while not (tmp_path / "ready").exists():
        assert child.is_alive()
        assert time.monotonic() - began < 60
        time.sleep(0.02)
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    where = tmp_path / "runs" / "digits"
    before = {path.name: path.read_bytes() for path in where.glob("*.json")}
    assert len(before) == 4
    (where / "summed-0.json").write_bytes(before["summed-0.json"][:100])  # as a write cut short would leave it

    lines = []
    [found] = schedule(tmp_path, lines.append).results([SMALL])
    assert [line.split(" ", 1)[1] for line in lines] == [
        f"digits {m} seed 0" for m in SOME if f"{m}-0.json" not in before or m == "summed"
    ]
    assert all((where / name).read_bytes() == text for name, text in before.items() if name != "summed-0.json")
    found.check_equal_steps()
    again = found.runs["summed"][0]
    for cell in again["impaired"]["missing"].items():
        assert cell in {"left": again["test"]["2"]["accuracy"], "right": again["test"]["1"]["accuracy"]}.items()
    assert again["impaired"]["full"][""] == again["test"]["3"]["accuracy"]
    assert set(again["impaired"]["noisy"]) == {"left", "right"}
    assert again["impaired"]["noisy"] != again["impaired"]["missing"]
    assert again["severity"] == 3
    assert again["identity"]["code"] == prints.fingerprint("summed")
    assert found.runs["ensemble"][0]["identity"]["config"]["model"]["fusion"] == "average"

    lines.clear()
    [same] = schedule(tmp_path, lines.append).results([SMALL])
    assert lines == []
    assert same.runs == found.runs
    text = page([found], {}, {"digits": str(first.folder(SMALL, 0))}, {"1": 1.0}, 1)
    assert "digits, 1 seed |" in text
    assert "nan" not in text


# The page


def test_figures_by_hand():
    run = record(0.9, (0.8, 0.5), (0.7, 0.75), seconds=3.0)
    found = [figure(run, name) for name in ("full", "missing Avg", "missing Gap", "noisy Avg", "noisy Gap", "seconds")]
    assert found == pytest.approx([0.9, 0.65, 0.3, 0.725, 0.05, 3.0])


def test_what_the_page_says_follows_the_records(written):
    def better(seed):
        return 0.95 + 0.001 * seed, (0.9 + 0.002 * (seed % 2), 0.9), (0.7, 0.8)

    def worse(seed):
        return 0.85 + 0.002 * (seed % 2), (0.8, 0.6), (0.7, 0.8)

    two = [results(pmr=better, cml=worse), results("mfeat", pmr=better)]
    text = written(*two)
    said = re.sub(r"\s+", " ", section(text, "In short"))
    intervals = 2 * (len(methods()) - 1)
    assert (
        f"**full, minus `joint`**: of {intervals} intervals 2 lie above zero, 1 below and {intervals - 3} on both"
        in said
    )
    assert "Above on all 2 data sets: `pmr`; below on all 2 data sets: none. - **missing Avg, minus `joint`**" in said
    assert "**noisy Avg, minus `summed`**: of" in said
    assert "**digits**: full from .851 (`cml`) to .952 (`pmr`), joint .902 (.002)" in said
    alike = "`, `".join(m for m in methods() if m not in ("pmr", "joint+sample"))
    assert f"**mfeat**, the same accuracies on every seed and in every condition: `{alike}` and `joint+sample`." in said
    table = section(text, "digits")
    assert re.search(
        r"\| `pmr` \| \+\.050 \[\+\.050, \+\.050\] \* \| \+\.20\d \[.*?\] \* \| −.* \| \.000 \[\.000, \.000\] \|", table
    )
    assert "| `joint` | .902 (.002) | .700 (.000) | .200 (.000) | .750 (.000) | .100 (.000) | 1.0 (.0) |" in table
    assert "minus `summed`" in table
    assert re.search(r"\| `summed` \| control \|.* \| 2.0 \|", section(text, "What was run"))
    assert "no correction" in text
    assert not re.search(r"better than joint|wins|outperform", text)


def test_what_was_left_out_is_said_and_unequal_steps_are_refused(written):
    text = written(
        results(refused={"gmd": "Balancer 'gmd' is for ten.", "jd": "It needs x."}),
        results("mfeat", refused={"gmd": "Balancer 'gmd' is for ten."}),
        absent={"emoji": "The data set 'emoji' is not installed here: run x."},
    )
    assert "`gmd` was not run on digits and mfeat: Balancer 'gmd' is for ten." in text
    assert "`jd` was not run on digits: It needs x." in text
    assert "`emoji` is not on this page: The data set 'emoji' is not installed here: run x." in text
    assert "`gmd`" not in section(text, "digits")
    found = results()
    found.runs["summed"][2]["steps"] = 9
    with pytest.raises(AssertionError, match="digits summed seed 2: 9 steps, not 10"):
        written(found)
    with pytest.raises(EquipoiseError, match="None of the data sets is installed here, so there is no table: Because"):
        written(absent={"digits": "Because."})


def test_the_figure_is_the_same_each_time(tmp_path):
    for name in ("a.svg", "b.svg"):
        write_figure(tmp_path / name, [results(), results("mfeat", refused={"gmd": "x"})])
    drawn = (tmp_path / "a.svg").read_bytes()
    assert drawn == (tmp_path / "b.svg").read_bytes()
    assert len(drawn) < 300_000
    assert all(name.encode() in drawn for name in methods() if name != JOINT)
