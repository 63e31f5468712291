"""The study of first results: its arithmetic by hand and by scipy, what it runs again, and what its page says of what."""

import json
import math
import re
import subprocess
import sys
from dataclasses import replace
from itertools import chain

import numpy as np
import pytest
from scipy import stats

from benchmarks.first_results import reasons, statistics, wording
from benchmarks.first_results.page import page, spoken
from benchmarks.first_results.plot import write_figure
from benchmarks.first_results.results import Results
from benchmarks.first_results.schedule import Schedule, best
from benchmarks.first_results.studies import CHECKS, METHODS, STUDIES, Study, grid
from benchmarks.first_results.training import CODE, ROOT, Job, constant
from equipoise.datasets.prepare import prepare

# Records made up here. A run: accuracies by coalition id, and how many rows it trained on.


def record(accuracy, seed=0, copies=0, **keys):
    """Of a run whose test accuracies are {coalition id: accuracy}; 100 test rows, each coalition right on the first ones."""
    num_modalities = int(math.log2(len(accuracy) + 1))
    names = ["a", "b", "c"][:num_modalities]
    score = np.array([[row < round(100 * accuracy[c]) for c in sorted(accuracy)] for row in range(100)])
    codes = [bytes(np.packbits(row, bitorder="little")).hex() for row in score]
    return {
        "modalities": names,
        "classes": ["x", "y"],
        "rows": {"train": 500, "validation": 50, "test": 100},
        "steps": 10,
        "seed": seed,
        "session": "1",
        "seconds": {"wall": 2.0, "cpu": 1.0},
        "best": {"value": 0.9, "loss": 0.3, "step": 5},
        "curve": [{"step": s, "value": v} for s, v in ((1, 0.5), (3, 0.7), (5, 0.6), (10, 0.9))],
        "whole": 640 - copies,
        "copies": dict.fromkeys(names, copies / num_modalities),
        "copies_by_class": {m: [30, 90] for m in names},
        "rows_by_class": [300, 200],
        "test": {str(c): {"accuracy": value, "loss": 1.0} for c, value in accuracy.items()},
        "contributions": dict.fromkeys(names, 0.9),
        "patterns": {code: codes.count(code) for code in codes},
        "constant": {"accuracy": 0.4, "loss": 0.69},
        **keys,
    }


def study(name="made-up", steps=10, **keys):
    return Study(name, "made up", steps=steps, tries=grid(optimizer__lr=(1e-3, 3e-3)), **keys)


def accuracies(a, b, both, wavering=0.001):
    """Of a seed: {coalition: accuracy}, with all modalities a little more from seed to seed."""
    return lambda seed: {1: a, 2: b, 3: both + wavering * seed}


def results(name="made-up", seeds=5, **methods):
    """Of methods given as functions seed -> {coalition: accuracy}; those not given are like joint."""
    joint = methods.pop("joint", accuracies(0.8, 0.6, 0.9))
    made = {m: methods.get(m, joint) for m in (*METHODS, "fewer_rows", "smoothed")}
    runs = {m: {s: record(f(s), s, copies=0 if m == "joint" else 320) for s in range(seeds)} for m, f in made.items()}
    tries = {f"try{i}": {0: {"best": {"value": v, "loss": 1.0}, **timed}} for i, v in enumerate((0.7, 0.9))}
    return Results(study(name), tries, runs)


timed = {"session": "1", "seconds": {"wall": 2.0, "cpu": 1.0}}


# Arithmetic


def test_avg_and_gap_of_two_modalities_are_those_of_balgrads_table():
    # Table 1, Food-101, baseline: missing image 12.99, missing text 63.52 give Avg 38.26 (38.255) and Gap 50.53.
    run = record({1: 0.6352, 2: 0.1299, 3: 0.7601})  # a: image, b: text
    assert statistics.measure(run, "without a") == 0.1299
    assert statistics.measure(run, "alone a") == statistics.measure(run, "without b") == 0.6352
    assert statistics.measure(run, "Avg") == pytest.approx(0.38255)
    assert statistics.measure(run, "Gap") == pytest.approx(0.5053)
    assert statistics.measure(run, "all") == 0.7601


def test_avg_and_gap_of_three_modalities():
    # By hand: without a is coalition 6 (b and c), without b is 5, without c is 3.
    run = record({1: 0.1, 2: 0.2, 3: 0.5, 4: 0.3, 5: 0.7, 6: 0.6, 7: 0.9})
    assert [statistics.measure(run, f"without {m}") for m in "abc"] == [0.6, 0.7, 0.5]
    assert [statistics.measure(run, f"alone {m}") for m in "abc"] == [0.1, 0.2, 0.3]
    assert statistics.measure(run, "Avg") == pytest.approx(0.6)
    assert statistics.measure(run, "Gap") == pytest.approx(0.2)
    assert statistics.measure(run, "subsets") == pytest.approx(3.3 / 7)


def test_the_paired_interval_is_students():
    # Differences .01 .02 .03 .04 .05: mean .03, deviation sqrt(.00025) = .0158114, t(.975, 4) = 2.776445.
    b = np.array([0.70, 0.80, 0.75, 0.72, 0.78])
    steady, wavering = np.array([0.01, 0.02, 0.03, 0.04, 0.05]), np.array([-0.01, 0.02, 0.03, -0.04, 0.05])
    d = statistics.paired(b + steady, b)
    half = 2.776445 * 0.0158114 / math.sqrt(5)
    assert (d.mean, d.low, d.high) == pytest.approx((0.03, 0.03 - half, 0.03 + half), abs=1e-6)
    assert d.verdict == "higher"
    assert d.p == pytest.approx(2 * stats.t.sf(0.03 / (0.0158114 / math.sqrt(5)), 4), rel=1e-4)
    assert statistics.paired(b, b + steady).verdict == "lower"
    assert statistics.paired(b, b + wavering).verdict == "not distinguishable"


def test_intervals_of_one_seed_and_of_no_spread():
    one = statistics.paired([0.9], [0.8])
    assert one.verdict == "one seed"
    assert one.mean == pytest.approx(0.1)
    assert math.isnan(one.low)
    assert statistics.paired([0.5, 0.5], [0.5, 0.5]).verdict == "not distinguishable"
    assert statistics.paired([0.75, 0.5], [0.5, 0.25]).verdict == "higher"
    assert statistics.Spread.of([0.5]).n == 1
    assert math.isnan(statistics.Spread.of([0.5]).deviation)
    assert statistics.Spread.of([0.4, 0.6]).deviation == pytest.approx(math.sqrt(0.02))


@pytest.mark.parametrize("n", [3, 5])
def test_what_can_be_detected_is_what_simulation_finds(n):
    size = statistics.detectable(n)
    drawn = np.random.default_rng(0).normal(size, 1, (40_000, n))
    found = stats.ttest_1samp(drawn, 0, axis=1)
    assert np.mean((found.pvalue < 0.05) & (drawn.mean(axis=1) > 0)) == pytest.approx(0.8, abs=0.01)


def test_holm_by_hand():
    # Sorted .01 .02 .03 against .05/3 = .0167, .05/2 = .025, .05: all hold; .04 instead of .02 stops at the second.
    assert statistics.holm([0.03, 0.01, 0.02]) == [True, True, True]
    assert statistics.holm([0.045, 0.01, 0.04]) == [False, True, False]
    assert statistics.holm([math.nan, 0.001]) == [False, True]


def test_the_constant_answer():
    # Train 6 of class 0 and 2 of class 1, so 7/10 and 3/10; test 0 0 1.
    found = constant(np.array([0] * 6 + [1] * 2), np.array([0, 0, 1]), 2)
    assert found.accuracy == pytest.approx(2 / 3)
    assert found.loss == pytest.approx(-(2 * math.log(0.7) + math.log(0.3)) / 3)


def test_what_is_right_only_together():
    # Of 100 rows 60 are right with a, 50 with b (the first ones), 80 with both: 20 with both only.
    assert reasons.only_together(record({1: 0.6, 2: 0.5, 3: 0.8})) == pytest.approx(0.2)
    # Validation .5 .7 .6 at steps 1 3 5 of 10: changes .2 and .1; what comes later does not count.
    assert reasons.swing(record({1: 0.6, 2: 0.5, 3: 0.8})) == pytest.approx(0.15)


def test_numbers_as_they_are_written():
    said = [
        wording.number(v, sign=s)
        for v, s in ((0.9784, False), (0.0132, True), (-0.0021, True), (-0.0001, True), (1.25, False))
    ]
    assert said == [".978", "+.013", "−.002", ".000", "1.250"]
    assert wording.number(math.nan) == "–"
    assert wording.listed(["a", "b", "c"]) == "a, b and c"


# The page


def written(*found, absent=None):
    return page(found, absent or {}, {"1": 90.0}, 2)


def section(text, title):
    text = text.replace("\N{NO-BREAK SPACE}", " ")
    return text.split(f"## {title}\n")[1].split("\n## ")[0]


def test_verdicts_follow_the_records():
    def better(seed):
        return {1: 0.85 + 0.01 * seed, 2: 0.8, 3: 0.9 + 0.001 * seed}

    def best_of_all(seed):
        return {1: 0.95 + 0.01 * (seed % 2), 2: 0.9, 3: 0.7 + 0.01 * (seed % 2)}

    # Avg .835 and .927, all modalities .902 and .704, over seeds 0 to 4.
    first = results("first", random_copies=better, sample=best_of_all)
    second = results("second", random_copies=best_of_all, sample=better)
    assert (
        spoken([first, second], "sample", "random_copies", "Avg") == "higher on first (+.092); lower on second (−.092)"
    )
    assert spoken([first, second], "summed", "joint", "Avg") == "not distinguishable on first and second"
    text = written(first, second)
    head = section(text, "In short").replace("\n ", "")
    assert "`sample` against random copies. Avg: higher on first (+.092); lower on second (−.092)." in head
    assert "All modalities: higher on second (+.198); lower on first (−.198)." in head
    rows = section(text, "Where valuation beats random copies, and where it does not")
    assert re.search(r"\| first \| `sample` \| Avg \| \+\.092 \[.*?\] \| higher †? ?\|", rows)
    assert re.search(r"\| second \| `sample` \| Avg \| −\.092 \[.*?\] \| lower †? ?\|", rows)
    assert re.search(r"\| first \| `modality` \| all \| \S+ \[.*?\] \| not distinguishable \|", rows)


def test_where_nothing_was_lost_the_page_says_so():
    lost = section(written(results("calm")), "Where accuracy was lost, and why")
    assert "On calm nothing was lost" in lost.replace("\n", " ")
    assert "### Why on" not in lost


def test_reasons_follow_the_records():
    # sample loses .1 with all modalities; fewer_rows loses nothing; b alone is never better than the constant answer.
    joint, worse = accuracies(0.8, 0.38, 0.9), accuracies(0.8, 0.41, 0.8, wavering=0.002)
    found = results("biased", joint=joint, sample=worse, random_copies=worse, smoothed=worse)
    lost = section(written(found), "Where accuracy was lost, and why").replace("\n", " ")
    assert "### Why on biased" in lost
    assert re.search(r"50 % of the rows that `sample` trained on were whole", lost)
    assert "a cost of fewer passes over the whole rows is not seen" in lost
    assert "the copies cost accuracy with all modalities beyond that" in lost
    assert "yes: b alone is at best +.010 from the accuracy of the constant answer" in lost
    assert "no more than the frequencies was learnt from it" in lost  # 1.0 against .69
    assert "Plans that chase" not in lost  # random copies lost as much
    # The other way round: fewer whole rows cost it all, and both modalities tell something.
    joint, worse = accuracies(0.8, 0.7, 0.9), accuracies(0.8, 0.7, 0.8, wavering=0.002)
    other = results("short", joint=joint, sample=worse, fewer_rows=worse)
    lost = section(written(other), "Where accuracy was lost, and why").replace("\n", " ")
    assert "fewer passes over the whole rows cost accuracy by themselves" in lost
    assert "no effect of the copies beyond that can be told from zero" in lost
    assert "No: each modality alone tells something" in lost
    assert "Plans that chase the last mistakes?" in lost


def test_one_seed_and_missing_data_sets_are_said():
    text = written(results("single", seeds=1), absent={"emoji": "The data set 'emoji' is not installed here: run x."})
    assert "`emoji` is not on this page: The data set 'emoji' is not installed here: run x." in text
    assert "one seed: no interval" in text
    assert "without an interval (one seed) on single" in section(text, "In short")
    assert "nan" not in text
    assert "higher on" not in text


def test_a_page_without_any_data_set():
    text = written(absent={"digits": "left out by `--only`"})
    assert "None of the data sets is installed here" in text
    assert "`digits` is not on this page: left out by `--only`." in text


def test_unequal_steps_are_refused():
    found = results("unequal")
    found.runs["sample"][2]["steps"] = 9
    with pytest.raises(AssertionError, match="unequal sample seed 2: 9 steps, not 10"):
        written(found)


def test_the_figure_is_small_and_the_same_each_time(tmp_path):
    found = [results(name) for name in ("one", "two", "three", "four")]
    for name in ("a.svg", "b.svg"):
        write_figure(tmp_path / name, found)
    drawn = (tmp_path / "a.svg").read_bytes()
    assert drawn == (tmp_path / "b.svg").read_bytes()
    assert len(drawn) < 200_000
    assert b"four, 5 seeds" in drawn


# What is run


def test_methods_differ_in_what_they_say_and_in_nothing_else():
    for some in STUDIES:
        for choice in some.tries:
            plain = some.config("joint", 3, choice, "data").model_dump()
            for method in METHODS:
                mine = some.config(method, 3, choice, "data").model_dump()
                assert {k for k in mine if mine[k] != plain[k]} <= {"balancer", "resampler"}
                assert mine["max_steps"] == some.steps
    assert set(CHECKS) & set(METHODS) == set()


def test_the_best_try_is_the_most_accurate_one_on_validation():
    def tries(*values):
        return {f"try{i}": {0: {"best": {"value": v, "loss": loss}}} for i, (v, loss) in enumerate(values)}

    assert best(tries((0.8, 0.1), (0.9, 0.5), (0.9, 0.4))) == 2
    assert best(tries((0.9, 0.4), (0.9, 0.4))) == 0


def test_the_code_hash_covers_what_a_training_imports():
    # What is left out checks a data set when it is opened, or is the configuration, which a record holds itself.
    said = "import sys, equipoise.pipelines.light; print(*(getattr(m, '__file__', 0) for m in [*sys.modules.values()]))"
    found = subprocess.run([sys.executable, "-c", said], capture_output=True, text=True, check=True, cwd=ROOT)
    files = {
        line.removeprefix(f"{ROOT}/").removeprefix("equipoise/") for line in found.stdout.split() if f"{ROOT}/" in line
    }
    mine = {
        path for path in files if path.split("/")[0] in ("balancers", "datasets", "models", "pipelines", "valuation")
    }
    covered = {str(path.relative_to(ROOT)) for pattern in CODE for path in ROOT.glob(pattern)}
    opening = {f"datasets/{name}.py" for name in ("bad_value", "footer", "manifest", "opening")}
    assert "models/late_fusion.py" in mine
    assert mine - covered - opening == {"pipelines/__init__.py", "pipelines/config.py"}
    assert all(any(ROOT.glob(pattern)) for pattern in CODE)


def test_what_is_there_is_not_run_again(tmp_path):
    # The real thing, small: 12 steps of digits, one seed, one process.
    small = Study("digits", "digits", steps=12, tries=grid(optimizer__lr=(1e-3, 3e-3)))
    lines = []

    def ran(study, jobs=1):
        lines.clear()
        schedule = Schedule(tmp_path / "data", tmp_path / "runs", 1, jobs, lines.append)
        assert schedule.prepared([study]) == ([study], {})
        tries, runs = schedule.run([study])["digits"]
        return schedule, Results(study, tries, runs)

    _, first = ran(small)
    made = [line.split(" ", 1)[1] for line in lines]
    assert len(made) == 2 + len(METHODS) + len(small.checks(small.tries[first.chosen]))
    first.check_equal_steps()
    sample = first.runs["sample"][0]
    assert sample["whole"] + sum(sample["copies"].values()) == 12 * 64
    assert sum(sample["copies_by_class"]["right"]) == sample["copies"]["right"]
    assert first.runs["fewer_rows"][0]["steps"] == round(sample["whole"] / 64)
    counts = chain.from_iterable(cell.values() for r in first.records for cell in r["validation"].values())
    assert all(math.isfinite(value) for value in counts)
    assert "test" not in first.tries["try0"][0]
    assert statistics.right(sample)[:, -1].mean() == pytest.approx(sample["test"]["3"]["accuracy"])

    schedule, again = ran(small)
    assert lines == []
    assert again.runs == first.runs
    assert set(schedule.seconds(again.records)) == {sample["session"]}

    # Damaged, and of other code: only these are made anew, in processes of their own, and to the same figures.
    where = tmp_path / "runs" / "digits"
    (where / "summed-0.json").write_text("{")
    stale = json.loads((where / "sample-0.json").read_text())
    stale["identity"]["code"] = "older"
    (where / "sample-0.json").write_text(json.dumps(stale))
    _, third = ran(small, jobs=2)
    assert sorted(line.split(" ", 1)[1] for line in lines) == ["digits sample seed 0", "digits summed seed 0"]
    for method in ("summed", "sample"):
        assert third.runs[method][0]["test"] == first.runs[method][0]["test"]

    # Another budget is another configuration, another data set another identity.
    folder = str(schedule.folder(small, 0))
    config = small.config("joint", 0, small.tries[first.chosen], folder)
    longer = replace(small, steps=13).config("joint", 0, small.tries[first.chosen], folder)
    assert Job.of("digits", "joint", 0, config, tmp_path / "runs").record() == first.runs["joint"][0]
    assert Job.of("digits", "joint", 0, longer, tmp_path / "runs").record() is None
    prepare("digits", tmp_path / "other", seed=1)
    other = small.config("joint", 0, small.tries[first.chosen], str(tmp_path / "other"))
    assert Job.of("digits", "joint", 0, other, tmp_path / "runs").record() is None


def test_a_data_set_that_is_not_installed_is_named_and_others_run(tmp_path, monkeypatch):
    from importlib.metadata import PackageNotFoundError

    from equipoise.datasets.sources import installed

    def nowhere(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(installed, "distribution", nowhere)
    schedule = Schedule(tmp_path / "data", tmp_path / "runs", 1, 1, lambda line: None)
    wanted = [some for some in STUDIES if some.name in ("digits", "mfeat")]
    there, absent = schedule.prepared(wanted)
    assert [some.name for some in there] == ["digits"]
    assert re.match(r"The data set 'mfeat' is part of .* not installed here: run ", absent["mfeat"])
