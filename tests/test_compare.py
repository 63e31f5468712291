"""`equipoise compare`: equal tuning, equal steps, one look at test; interrupted, it goes on."""

import json
import os
import time

import numpy as np
import pandas as pd
import pytest
import ray
import torch
from rich.console import Console

from equipoise.datasets.reading import Reader
from equipoise.models.errors import EquipoiseError
from equipoise.pipelines.comparing.compare import _results, compare, frame
from equipoise.pipelines.comparing.config import CONTROLS, Method, load_compare
from equipoise.pipelines.comparing.plan import SAME_TIME, Plan
from equipoise.pipelines.comparing.training import Job, run
from equipoise.pipelines.config import load_config
from equipoise.pipelines.files import write_json
from equipoise.pipelines.light import train_light

SMALL = {
    "balancers": ["balgrad"],
    "resamplers": ["sample"],
    "resampled": ["joint"],
    "seeds": 2,
    "tuning": {"configurations": 3, "several": 2},
    "base": {"batch_size": 64, "max_steps": 24, "model": {"encoder": {"hidden": 16}}},
    "data": {"digits": {"source": "digits", "options": {"test_seed": 0}}},
    "jobs": 2,
}
#: A rate at which training diverges, for every configuration but the first.
DIVERGES = {"optimizer.lr": {"choice": [1e30, 1e31], "default": 0.001}}


def quietly(config, **options):
    return compare(config, console=Console(quiet=True), **options)


@pytest.fixture(scope="module")
def compared(ray_cluster, tmp_path_factory):
    out = tmp_path_factory.mktemp("compare") / "small"
    config = {**SMALL, "out": str(out)}
    files = quietly(config)
    return config, out, files, pd.read_parquet(out / "runs.parquet")


def planned(config):
    plan = Plan(load_compare(config))
    plan.prepare()
    return plan


def test_controls_are_always_in(compared):
    _, _, _, runs = compared
    assert {*CONTROLS, "balgrad", "joint+sample"} == set(runs["method"])


def test_every_method_has_its_share_of_tuning_and_the_same_steps(compared):
    _, _, _, runs = compared
    assert set(runs["status"]) == {"done"}
    tuned = runs[runs["phase"] == "tune"].groupby("method").size()
    for label, count in tuned.items():
        assert count == (2 if "+" in label or label == "balgrad" else 3)
    final = runs[runs["phase"] == "steps"]
    assert (final.groupby("method")["seed"].apply(sorted).map(tuple) == (0, 1)).all()
    assert set(final["steps"]) == {24}
    spent = runs[runs["phase"] == "tune"].groupby("method")["steps"].sum()
    assert (final.groupby("method")["spent"].first() == spent).all()


def test_tuning_sees_nothing_of_test(compared):
    _, out, _, runs = compared
    tuned = runs[runs["phase"] == "tune"]
    shown = [name for name in runs.columns if name.startswith("test")]
    assert {"test/full", "test/missing/left", "test/noisy/right"} <= set(shown)
    assert tuned[[*shown, "right"]].isna().all(axis=None)
    for path in out.glob("runs/*/*/tune-*.json"):
        assert "test/" not in path.read_text()


def test_the_chosen_configuration_is_the_best_on_validation(compared):
    _, _, _, runs = compared
    for method, tuned in runs[runs["phase"] == "tune"].groupby("method"):
        aims = (tuned["validation/full"] + tuned["validation/missing"]) / 2
        best = tuned.loc[aims[aims == aims.max()].index, "number"].min()
        final = runs[(runs["phase"] == "steps") & (runs["method"] == method)]
        assert set(final["number"]) == {best}


def test_test_rows_are_the_same_for_all_seeds_and_train_rows_are_not(compared):
    config, _, _, _ = compared
    plan = planned(config)

    def ids(seed, split):
        reader = Reader(plan.folder("digits", seed))
        chunks = range(reader.manifest.num_chunks(split))
        return {name for chunk in chunks for name in reader.source_ids(split, chunk)}

    assert ids(0, "test") == ids(1, "test")
    assert ids(0, "train") != ids(1, "train")
    assert not ids(1, "train") & ids(0, "test")


def test_a_record_is_what_the_training_finds_in_this_process(compared):
    _, _, _, runs = compared
    row = runs[(runs["phase"] == "steps") & (runs["method"] == "balgrad") & (runs["seed"] == 1)].iloc[0]
    light = train_light(load_config(json.loads(row["config"])))
    assert row["test/full"] == light.matrix["test"][3]["accuracy"]
    assert row["test/missing/left"] == light.matrix["test"][2]["accuracy"]
    assert row["validation/full"] == light.matrix["validation"][3]["accuracy"]
    right = np.unpackbits(np.frombuffer(row["right"], np.uint8), count=int(row["test_rows"])).astype(bool)
    reader = Reader(json.loads(row["config"])["data"])
    chunks = range(reader.manifest.num_chunks("test"))
    order = np.argsort([name for chunk in chunks for name in reader.source_ids("test", chunk)])
    np.testing.assert_array_equal(right, light.values["test"].score[order, -1])


def test_equal_time_gives_slower_methods_fewer_steps(compared):
    config, _, _, runs = compared
    plan = planned(config)
    balgrad = Method("balgrad")
    seconds = runs[runs["phase"] == "steps"].pivot_table(index="seed", columns="method", values="seconds")
    ratio = (seconds["balgrad"] / seconds["joint"]).median()
    assert plan.slower("digits", balgrad) == pytest.approx(ratio)
    timed = runs[(runs["phase"] == "time") & (runs["method"] == "balgrad")]
    assert set(timed["steps"]) == ({round(24 / ratio)} if ratio > SAME_TIME else {24})
    joint = runs[(runs["phase"] == "time") & (runs["method"] == "joint")]
    assert set(joint["steps"]) == {24}


def test_the_same_call_repeats_nothing_and_makes_only_what_is_missing(compared):
    config, out, _, runs = compared
    records = {path: path.stat().st_mtime_ns for path in out.glob("runs/*/*/*.json")}
    gone = out / "runs" / "digits" / "summed" / "steps-0-0.json"
    gone = next(iter(sorted((out / "runs" / "digits" / "summed").glob("steps-*-0.json"))), gone)
    former = json.loads(gone.read_text())
    gone.unlink()
    quietly(config)
    again = json.loads(gone.read_text())
    cost = ("seconds", "wall", "memory")
    assert {k: v for k, v in again.items() if k not in cost} == {k: v for k, v in former.items() if k not in cost}
    for path, stamp in records.items():
        assert (path.stat().st_mtime_ns == stamp) == (path != gone)
    columns = [name for name in runs.columns if name not in cost]
    pd.testing.assert_frame_equal(pd.read_parquet(out / "runs.parquet")[columns], runs[columns])


def test_another_configuration_makes_records_of_its_own(compared):
    config, _, _, _ = compared
    plan, other = planned(config), planned({**config, "base": {**config["base"], "max_steps": 25}})
    assert all(job.record() is not None for job in plan.tuning())
    assert all(job.record() is None for job in other.tuning())


def test_rebuilding_trains_nothing_and_gives_the_same_files(compared, tmp_path):
    config, out, files, _ = compared
    first = {path: path.read_bytes() for path in files if path.suffix in (".md", ".tex", ".svg")}
    assert first
    lacking = next(out.glob("runs/digits/joint+sample/steps-*-1.json"))
    kept = lacking.read_bytes()
    lacking.unlink()
    quietly(config, rebuild=True)
    assert not lacking.exists()
    assert (out / "results.md").read_bytes() != first[out / "results.md"]
    lacking.write_bytes(kept)
    quietly(config, rebuild=True)
    assert {path: path.read_bytes() for path in first} == first


def test_a_training_that_fails_is_shown_once_and_the_rest_goes_on(ray_cluster, tmp_path):
    config = {
        **SMALL,
        "out": str(tmp_path / "c"),
        "balancers": [],
        "resamplers": [],
        "space": DIVERGES,
        "equal_time": False,
        "seeds": 1,
    }
    with (tmp_path / "said").open("w") as said:
        compare(config, console=Console(file=said, width=200))
    lines = (tmp_path / "said").read_text().splitlines()
    told = [line for line in lines if line.startswith("failed: digits joint tune")]
    assert len(told) == 1
    assert "The objective 'fused' is nan in step 1 of epoch 0" in told[0]
    assert told[0].endswith("or lower the learning rate. The rest goes on.")
    runs = pd.read_parquet(tmp_path / "c" / "runs.parquet")
    final = runs[runs["phase"] == "steps"]
    assert set(final["method"]) == set(CONTROLS)
    assert set(final["number"]) == {0}
    assert set(final["status"]) == {"done"}


def test_trainings_under_way_end_with_a_comparison_that_joined_a_ray(ray_cluster, data, tmp_path):
    def job(root, steps):
        config = load_config({"data": str(root), "out": "o", "max_steps": steps})
        return Job("d", "joint", "tune", 0, 0, config, {}, {}, tmp_path / f"{steps}.json", 3)

    def free():
        return ray.available_resources().get("CPU", 0)

    def until(ready):
        deadline = time.monotonic() + 30
        while not ready():
            assert time.monotonic() < deadline
            time.sleep(0.1)

    all_of_them = ray.cluster_resources()["CPU"]
    until(lambda: free() == all_of_them)
    results = _results([job(tmp_path / "nowhere", 1), job(data, 10**7)], load_compare({**SMALL, "out": str(tmp_path)}))
    assert next(results)[1]["status"] == "failed"
    until(lambda: free() == all_of_them - 1)
    results.close()
    until(lambda: free() == all_of_them)


def test_any_error_of_a_training_becomes_its_record(tmp_path):
    config = load_config({"data": str(tmp_path / "nowhere"), "out": "o", "max_steps": 1})
    record = run(Job("d", "joint", "tune", 0, 0, config, {}, {}, tmp_path / "r.json", 3))
    assert record["status"] == "failed"
    assert "nowhere" in record["error"]
    assert json.loads((tmp_path / "r.json").read_text()) == record


def test_what_is_not_defined_for_a_data_set_is_named_not_run(tmp_path):
    base = {**SMALL["base"], "model": {"fusion": "gated"}}
    plan = planned({**SMALL, "out": str(tmp_path), "base": base})
    assert (
        "Balancer 'ensemble' is defined for model.fusion=average, not for gated" in plan.refused["digits", "ensemble"]
    )
    row = frame(plan).iloc[0]
    assert (row["method"], row["status"]) == ("ensemble", "refused")
    assert "ensemble" not in {method.label for method in plan.methods("digits")}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"balancers": ["balgrid"]}, "Unknown balancer 'balgrid': did you mean 'balgrad'?"),
        ({"resamplers": ["samples"]}, "Unknown resampler 'samples': did you mean 'sample'?"),
        ({"balancers": "joint"}, "Config key 'balancers' in the configuration: Input should be a valid list"),
        ({"data": {}}, "A comparison needs one data set or more under `data`."),
        ({"data": {"a": {}}}, "needs either `source` (what `equipoise prepare` takes) or `path` (what it wrote)"),
        ({"data": {"../a": {"path": "x"}}}, "A data set cannot be called '../a'"),
        (
            {"data": {"a": {"path": "x", "methods": ["joint", "balgrad"]}}},
            "The `methods` of a data set leave out summed, which all are compared with",
        ),
        (
            {"data": {"a": {"path": "x", "methods": ["joint", "summed", "ogm"]}}},
            "Unknown method of the data set 'a': 'ogm'",
        ),
        ({"base": {"seed": 3}}, "`base` cannot set 'seed': the comparison chooses it."),
        ({"base": {"balancer.name": "ogm"}}, "`base` cannot set 'balancer.name': the comparison chooses it."),
        ({"base": {"max_epochs": 2}}, "`base` cannot set 'max_epochs': a comparison is made at equal optimiser steps"),
        ({"base": {"early_stopping.patience": 2}}, "`base` cannot set 'early_stopping.patience': a comparison is made"),
        ({"data": {"a": {"path": "x", "base": {"seed": 3}}}}, "`base` cannot set 'seed': the comparison chooses it."),
        ({"data": {"a": {"source": "digits", "options": {"seed": 3}}}}, "`options` of a data set cannot set 'seed'"),
        (
            {"space": {"max_steps": {"integer": [1, 9], "default": 4}}},
            "`space` cannot change 'max_steps': it is the same",
        ),
        (
            {"space": {"seed": {"integer": [1, 9], "default": 4}}},
            "`space` cannot change 'seed': it is the same for all",
        ),
        ({"space": {"balancer.options.alpha": None}}, "`space` cannot change 'balancer.options.alpha'"),
        (
            {"select": "test/full"},
            "Config key 'select' in the configuration: Input should be 'score', 'full' or 'missing'",
        ),
        (
            {"tuning": {"configurations": 0}},
            "Config key 'tuning.configurations' in the configuration: Input should be greater",
        ),
        ({"sedes": 3}, "Unknown config key 'sedes' in the configuration: did you mean 'seeds'?"),
        (
            {"tuning": {"configuration": 2}},
            "'tuning.configuration' in the configuration under 'tuning': did you mean 'configurations'?",
        ),
    ],
)
def test_a_configuration_that_cannot_be_is_refused_in_a_sentence(change, sentence):
    with pytest.raises(EquipoiseError) as refused:
        load_compare({**SMALL, "out": "o", **change})
    assert sentence in str(refused.value)


def test_an_option_that_a_base_misspells_is_refused_before_anything_runs(tmp_path):
    with pytest.raises(EquipoiseError) as refused:
        planned({**SMALL, "out": str(tmp_path), "base": {"max_steps": 3, "batch_sizes": 3}})
    assert "did you mean 'batch_size'" in str(refused.value)


def test_a_data_set_without_a_budget_of_steps_is_refused(tmp_path):
    with pytest.raises(EquipoiseError) as refused:
        planned({**SMALL, "out": str(tmp_path), "base": {"batch_size": 64}})
    assert "The data set 'digits' has no max_steps" in str(refused.value)


def test_an_override_reaches_what_lies_deeper():
    config = load_compare(SMALL | {"out": "o"}, ["data.digits.seeds=1", "tuning.several=1"])
    assert config.data["digits"].seeds == config.tuning.several == 1
    assert config.data["digits"].source == "digits"
    assert config.tuning.configurations == 3


def records_of(plan, method, seconds):
    """Records of the method's tuning, and of its final runs with these seconds: None, one that failed."""
    for job in plan.tuning_of("digits", method):
        write_json(
            job.path, {"identity": job.identity, "status": "done", "number": job.number, "validation/score": 0.5}
        )
    for seed, some in enumerate(seconds):
        job = plan._final("digits", method)[seed]
        write_json(
            job.path, {"identity": job.identity, "status": "failed" if some is None else "done", "seconds": some}
        )


def test_another_severity_of_noise_is_another_final_run_and_no_other_tuning(tmp_path):
    plan = planned({**SMALL, "out": str(tmp_path)})
    records_of(plan, Method("joint"), [1.0, 1.0])
    other = planned({**SMALL, "out": str(tmp_path), "severity": 5})
    assert all(job.record() is not None for job in other.tuning_of("digits", Method("joint")))
    assert all(job.record() is not None for job in plan._final("digits", Method("joint")))
    assert all(job.record() is None for job in other._final("digits", Method("joint")))


def test_how_much_slower_is_of_the_seeds_that_both_finished(tmp_path):
    plan = planned({**SMALL, "out": str(tmp_path), "seeds": 3})
    records_of(plan, Method("joint"), [1.0, 1.0, None])
    assert plan.slower("digits", Method("summed")) is None, "not made yet"
    records_of(plan, Method("summed"), [2.0, None, 4.0])
    assert plan.slower("digits", Method("summed")) == 2.0
    records_of(plan, Method("balgrad"), [None, None, 3.0])
    assert plan.slower("digits", Method("balgrad")) is None, "no seed has both"


def test_paths_are_those_of_this_directory_wherever_a_task_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    job = planned({**SMALL, "out": "here"}).tuning()[0]
    assert job.path.is_relative_to(tmp_path / "here")
    assert job.config.data.startswith(str(tmp_path / "here"))


def test_a_training_whose_process_dies_is_a_failed_one(ray_cluster, tmp_path, monkeypatch):
    import equipoise.pipelines.comparing.compare as module

    monkeypatch.setattr(module, "run", dies)
    plan = planned({**SMALL, "out": str(tmp_path)})
    job = plan.tuning()[0]
    [(_, record)] = list(module._results([job], plan.config))
    assert record["status"] == "failed"
    assert "its process died" in record["error"]
    assert job.record() == json.loads(json.dumps(record))


def dies(job):
    os._exit(1)


def test_a_device_that_is_not_there_is_a_sentence(tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(EquipoiseError) as refused:
        quietly({**SMALL, "out": str(tmp_path), "base": {**SMALL["base"], "device": "cuda"}})
    assert "there is no GPU: leave it out to train on the CPU" in str(refused.value)


def test_only_refused_methods_and_no_run_is_a_page_all_the_same(tmp_path):
    base = {**SMALL["base"], "model": {"fusion": "gated"}}
    files = quietly({**SMALL, "out": str(tmp_path), "base": base}, rebuild=True)
    assert all(path.exists() for path in files)


def test_more_at_a_time_than_there_is_room_for_is_a_sentence(ray_cluster, tmp_path):
    with pytest.raises(EquipoiseError) as refused:
        quietly({**SMALL, "out": str(tmp_path), "jobs": 1000})
    assert "jobs=1000 trainings at a time need as many cores" in str(refused.value)


def test_all_methods_are_tuned_over_the_same_learning_rates():
    plan = Plan(load_compare({**SMALL, "out": "o", "balancers": ["ogm", "pmr"], "resamplers": []}))
    rates = {
        tuple(overrides.get("optimizer.lr") for overrides in plan.design(method))
        for method in plan.config.methods()
        if not method.several
    }
    assert len(rates) == 1
