"""`equipoise tune` on the Ray of the tests: light trials, a trial that always fails, a second sitting, and what is refused."""

import signal

import pytest
import torch
import yaml

from equipoise import EquipoiseError
from equipoise.pipelines.config import load_config
from equipoise.pipelines.interrupting import alone
from equipoise.pipelines.light import train_light
from equipoise.pipelines.tuning.config import load_tune
from equipoise.pipelines.tuning.records import Records
from equipoise.pipelines.tuning.tune import tune

pytestmark = pytest.mark.ray

BASE = {"max_steps": 40, "batch_size": 100, "balancer": "ogm", "seed": 3}


@pytest.fixture
def asked(data, tmp_path):
    return {"base": {**BASE, "data": data}, "out": str(tmp_path / "search"), "trials": {"light": 4}}


def test_a_search_of_light_trials(ray_cluster, asked, tmp_path, capsys):
    # At most learning rates nothing can be learnt: whatever is drawn after the default, some of it fails.
    rates = {"optimizer.lr": {"choice": [1e-3, 1e29, 1e30, 1e31]}, "optimizer.weight_decay": None}
    asked |= {"space": rates, "concurrent": 2, "confirm": {"seeds": 2}, "seed": 1, "trials": {"light": 5}}
    hears = signal.getsignal(signal.SIGINT)
    search = tune(asked)
    assert signal.getsignal(signal.SIGINT) is hears  # Tune would keep Ctrl-C to itself
    trials, out = search.trials, tmp_path / "search"
    assert list(trials["number"]) == list(range(5))
    assert trials.loc[0, "param/optimizer.lr"] == 1e-3
    assert trials.loc[0, "param/balancer.options.alpha"] == 0.3
    # What always fails is said once, and the rest goes on.
    failed = trials["param/optimizer.lr"] > 1
    assert 0 < failed.sum() < 5
    assert (trials["status"] == "failed").equals(failed)
    assert trials.loc[failed, "error"].nunique() == 1
    said = capsys.readouterr().err
    assert said.count(trials.loc[failed, "error"].iloc[0]) == 1
    # The winner is of those trained to the end, and what the record says of it is what a training of that configuration does.
    done = trials[trials["status"] == "done"]
    best = done.sort_values(["score", "number"], ascending=[False, True]).iloc[0]
    config = load_config(out / "best.yaml")
    assert f"# Trial {best['number']} " in (out / "best.yaml").read_text()
    torch.set_num_threads(config.threads)
    again = train_light(config, splits=()).epochs
    curve = Records(out).by_number[best["number"]].curve
    exact = ("epoch", "step", "full", "missing", "score", "loss")
    assert [[row[key] for key in exact] for row in curve] == [[row[key] for key in exact] for row in again]
    assert search.confirmed["seeds"] == [4, 5]
    assert "resources back" in search.back
    assert search.page == out / "index.html"
    assert search.page.is_file()

    # The same call again finds all done, and leaves it as it is. More trials are in test_tune_chaos.py.
    before = {path: path.stat().st_mtime_ns for path in out.glob("*/*/record.json")}
    assert len(before) == 5
    again = tune(asked)
    assert again.trials.equals(trials)
    assert again.confirmed == search.confirmed
    assert {path: path.stat().st_mtime_ns for path in before} == before
    # A folder of another search is refused.
    with pytest.raises(EquipoiseError, match=r"holds a search of another configuration .*grace: 0.12 -> 0.5"):
        tune(asked, grace=0.5)


REFUSED = {
    "test": (
        {"select": "test/accuracy"},
        r"select='test/accuracy' would choose on test: trials are chosen on validation",
    ),
    "objective": ({"select": "ful"}, r"Unknown objective 'ful'.*full"),
    "option": (
        {"space": {"balancer.options.alpah": {"log": [0.1, 1], "default": 0.3}}},
        r"alpah.*alpha",
    ),
    "section": ({"space": {"optimiser.lr": {"log": [0.1, 1], "default": 0.3}}}, r"optimiser.*optimizer"),
    "bounds": ({"space": {"balancer.options.alpha": {"uniform": [-1, 1]}}}, r"alpha"),
    "default": (
        {"space": {"optimizer.lr": {"choice": [0.1, 0.2]}}},
        r"The first trial is the base as it is, with optimizer.lr=0.001, which the space does not hold: it has 0.1, 0.2",
    ),
    "seed": ({"space": {"seed": {"integer": [1, 9], "default": 1}}}, r"'seed', which says where or how long"),
    "none": ({"trials": {"light": 0}}, r"A search needs a trial at least"),
    "budget": ({"budget": {"steps": 39}}, r"budget.steps=39 is below one trial, which takes base.max_steps=40"),
    "key": ({"trails": {"light": 2}}, r"trails.*trials"),
    "base key": ({"base.optimizer.lrr": 1}, r"lrr.*lr"),
    "no steps": ({"base.max_steps": None, "base.max_epochs": 2}, r"give base.max_steps"),
    "concurrent": ({"concurrent": 99}, r"concurrent=99 light trials of cpus=1 do not fit: .*Ask for fewer"),
    "cpus": ({"cpus": 99}, r"A light trial asks for cpus=99 and gpus=0, more than there is in one place"),
}


@pytest.mark.parametrize(("overrides", "sentence"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused_before_anything_starts(asked, overrides, sentence, tmp_path):
    with pytest.raises(EquipoiseError, match=sentence):
        tune(asked, **overrides)
    assert not (tmp_path / "search").exists()


def test_one_search_at_a_time_in_a_folder_of_its_own(asked, tmp_path):
    with (
        alone(tmp_path / "search", "tune"),
        pytest.raises(EquipoiseError, match=r"Another `equipoise tune` is at work in .*search"),
    ):
        tune(asked)
    (tmp_path / "search" / "letter").touch()
    with pytest.raises(EquipoiseError, match="search is not empty and holds no search"):
        tune(asked)


def test_a_search_is_written_whole_and_read_back(asked, tmp_path):
    config = load_tune(asked, {"base.optimizer.lr": 0.5})
    (tmp_path / "tune.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    assert load_tune(tmp_path / "tune.yaml") == config
    # The first trial is the base as it is; where it is silent, the methods' defaults.
    assert config.default["optimizer.lr"] == 0.5
    assert config.default["balancer.options.alpha"] == 0.3
