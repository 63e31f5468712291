"""The ablation of Dynamic Sharing and GMD: what it runs again, and what its page says of what."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from benchmarks.sharing.page import PAIRS, page, verdict
from benchmarks.sharing.runs import ROWS, STUDIES, Results, ensure
from equipoise.datasets.prepare import prepare
from equipoise.models import EarlyConcat, build_model

NAMES = ["a", "b"]


def record(values, conflicts=None, rate=0.01):
    """Of test values {coalition id: value}."""
    return {
        "identity": {"config": {"optimizer": {"lr": rate}}},
        "modalities": NAMES,
        "metric": "accuracy",
        "rows": {"train": 10, "validation": 5, "test": 5},
        "steps": 350,
        "best": 20,
        "parameters": 1234,
        "seconds": 2.0,
        "conflicts": conflicts,
        "conflicts_after": None if conflicts is None else 0.0,
        "validation": {str(c): v for c, v in values.items()},
        "test": {str(c): v for c, v in values.items()},
    }


def made_up(gains, seeds=4):
    """Results in which a row has `gains[row]` more than early fusion in every set, wavering a little."""
    rng = np.random.default_rng(0)
    runs = {
        row: [
            record(
                {c: 0.5 + 0.1 * c + gains.get(row, 0) + 0.001 * rng.normal() for c in (1, 2, 3)}, [0.1, 0.2, 0.3, 0.4]
            )
            for _ in range(seeds)
        ]
        for row in ROWS
    }
    return Results(STUDIES["volumes"], {row: {0.01: runs[row][0]} for row in ROWS}, runs)


def test_the_page_says_what_the_records_say():
    found = made_up({"ds_mean": 0.1, "ds_gmd": 0.05, "ds_dropout": 0.02})
    text = page([found])
    assert verdict([found], "ds_dropout", "dropout") == "added something on volumes."
    assert verdict([found], "ds_gmd", "ds_mean") == "cost something on volumes."
    assert verdict([found], "dropout", "early").startswith("made no difference")
    flat = re.sub(r"\s+", " ", text)
    assert "So Dynamic Sharing (the model, both trained by dropout) added something on volumes." in flat
    assert "of 3 sets, looked at together, 3 higher and 0 lower" in flat
    assert "25.0 % on volumes had gradients that oppose each other" in flat
    # Every number of the table of differences, by scipy.
    a, b, _ = PAIRS[0]
    table = [line.split("|")[1:-1] for line in text.split("| difference |")[1].split("\n\n")[0].splitlines()[2:]]
    assert [row[0].strip() for row in table] == ["a+b", "a", "b", "mean over all", "mean over single ones"]
    for row, sets in zip(table, ([3], [1], [2], [3, 1, 2], [1, 2])):
        x, y = (np.array([np.mean([r["test"][str(c)] for c in sets]) for r in found.runs[name]]) for name in (a, b))
        interval = stats.ttest_rel(x, y).confidence_interval(0.95)
        shown = [float(n.replace("−", "-")) for n in re.findall(r"[+−]?\d*\.\d+", row[1])]
        assert shown == pytest.approx([(x - y).mean(), interval.low, interval.high], abs=5.1e-4)
        assert row[1].strip().endswith("*") == (len(sets) == 1)


def test_equal_steps_are_asserted():
    found = made_up({})
    found.runs["early"][0]["steps"] = 349
    with pytest.raises(AssertionError, match="steps"):
        page([found])


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """The whole study of volumes, but small: (its folder, what it said, its results)."""
    folder, said = tmp_path_factory.mktemp("sharing"), []
    study = replace(STUDIES["volumes"], steps=4, options={"volumes": 14, "size": 8}, size={"width": 0.125, "levels": 1})
    return folder, study, said, ensure(study, folder / "data", folder / "runs", 2, said.append)


def test_what_is_there_is_not_run_again_and_what_differs_is(small):
    folder, study, said, found = small
    # Two rates of the first seed but for GMD, which has the mean loss's rate, and the second seed of all.
    assert len(said) == 4 * 2 + 1 + len(ROWS)
    again = []
    assert ensure(study, folder / "data", folder / "runs", 2, again.append) == found
    assert again == []
    path = next((folder / "runs" / "volumes").glob("early-*-1.json"))
    path.write_text(json.dumps({**json.loads(path.read_text()), "identity": "another"}))
    ensure(study, folder / "data", folder / "runs", 2, again.append)
    assert len(again) == 1
    assert again[0].startswith("volumes early seed 1")


def test_the_rows_of_the_study_are_what_the_page_calls_them(small):
    *_, found = small
    for row, records in found.runs.items():
        config = records[0]["identity"]["config"]
        assert config["model"]["kind"] == ("sharing" if row.startswith("ds") else "early")
        assert [r["steps"] for r in records] == [4, 4]
        assert set(records[0]["test"]) == {str(c) for c in range(1, 16)}
        assert (records[0]["conflicts"] is not None) == (row in ("ds_mean", "ds_gmd"))
        assert records[0]["identity"]["data"] != records[1]["identity"]["data"], "a seed draws its own volumes"
    mean, gmd = (found.runs[row][0]["identity"]["config"] for row in ("ds_mean", "ds_gmd"))
    assert mean["balancer"]["options"] == {"project": False}
    assert mean["optimizer"] == gmd["optimizer"]
    assert page([found]).count("| volumes |") == len(ROWS) + 2


def test_early_fusion_of_mfeat_is_one_network_of_all(tmp_path):
    study = STUDIES["mfeat"]
    manifest = prepare("mfeat", tmp_path, **study.options)
    model = build_model(study.config("early", 0, 0.01, tmp_path).model, manifest.modalities, 10)
    assert isinstance(model, EarlyConcat)
    assert model.modalities == ("fou", "zer", "mor")
