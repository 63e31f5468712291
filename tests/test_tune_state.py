"""What a search keeps and takes up again, without Ray: the first trial, other configurations, refused ones, looks at test."""

import json

import pytest

from equipoise import EquipoiseError
from equipoise.datasets.manifest import Manifest
from equipoise.pipelines.files import write_json
from equipoise.pipelines.seats import Node, Resources
from equipoise.pipelines.tuning import trials, tune
from equipoise.pipelines.tuning.config import differences, load_tune
from equipoise.pipelines.tuning.confirm import differences as compared
from equipoise.pipelines.tuning.records import Record, Records
from equipoise.pipelines.tuning.room import room_for
from equipoise.pipelines.tuning.search import Search

BASE = {"max_steps": 40, "balancer": "ogm"}
NAMES = ("optimizer.lr", "optimizer.weight_decay", "balancer.options.alpha", "balancer.options.apply")
HERE = Resources((Node("this machine", 2, 0, 1 << 30, 1 << 30),), (0, 1))
ROW = {"epoch": 0, "step": 20, "full": 0.5, "missing": 0.4, "score": 0.45, "loss": 1.0, "seconds": 1.0}


@pytest.fixture
def asked(data, tmp_path):
    return {"base": {**BASE, "data": data}, "out": str(tmp_path / "search"), "trials": {"light": 4}}


def test_the_first_trial_is_the_base_where_conditions_hold_for_the_base(asked):
    momentum = {"uniform": [0.5, 0.95], "default": 0.9, "when": {"optimizer.name": ["sgd"]}}
    space = {"optimizer.name": {"choice": ["adamw", "sgd"], "default": "adamw"}, "optimizer.momentum": momentum}
    assert "optimizer.momentum" not in load_tune({**asked, "space": space}).default
    config = load_tune({**asked, "space": space}, {"base.optimizer.name": "sgd", "base.optimizer.momentum": 0.7})
    assert config.default["optimizer.momentum"] == 0.7


def test_a_parameter_left_out_makes_another_search(asked):
    config, other = load_tune(asked), load_tune(asked, ["space.optimizer.weight_decay=null", "trials.light=9"])
    assert "optimizer.weight_decay" not in other.default
    assert differences(config, load_tune(asked, {"trials.light": 9})) == []
    assert any("space.optimizer.weight_decay" in line for line in differences(config, other))


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (
            {"base.optimizer.weight_decay": 0},
            r"optimizer.weight_decay=0.0, which has no place on the scale of its space",
        ),
        ({"space.clip_norm": {"log": [0.1, 9], "default": 1}}, r"with clip_norm=None, which has no place on the scale"),
        ({"space.optimizer.lrr": None}, r"Unknown searched parameter 'optimizer.lrr': did you mean 'optimizer.lr'"),
        ({"space.early_stopping.patience": {"integer": [1, 3], "default": 1}}, r"says where or how long a run runs"),
        (
            {f"space.{k}": None for k in NAMES},
            "is empty",
        ),
        ({"base.device": "cuda"}, r"light trials ask for no GPU \(gpus=0\) and would train on the CPU: give gpus=1"),
    ],
)
def test_what_no_trial_could_begin_with_is_refused(asked, overrides, sentence):
    with pytest.raises(EquipoiseError, match=sentence):
        load_tune(asked, overrides)


def test_a_look_at_test_that_fits_nowhere_is_refused(asked):
    whole = {**asked, "trials": {"light": 0, "train": 1}, "cpus": 4}
    with pytest.raises(EquipoiseError, match=r"A run of the look at test \(confirm.seeds\) asks for cpus=4"):
        room_for(load_tune(whole), HERE)
    assert room_for(load_tune(whole, {"confirm.seeds": 0}), HERE).at_once == {"train": 2}
    assert room_for(load_tune(whole, {"cpus": 1}), HERE).looks == 2


def test_a_refused_combination_is_a_failed_trial(asked, tmp_path, monkeypatch):
    config = load_tune(asked)
    tmp_path.joinpath("search").mkdir()
    records = Records(tmp_path / "search")

    def refuse(params):
        raise EquipoiseError("These two do not go together.")

    search = Search(config, records, "light", refuse, 0.0)
    suggested = search.suggest("one")
    said = []
    monkeypatch.setattr("ray.tune.report", said.append)
    trials.trainable("light", config.out)(suggested)
    assert said == [{"step": 0, "full": 0, "missing": 0, "score": 0, "error": "These two do not go together."}]
    records.by_number[0].error = said[0]["error"]
    search.on_trial_complete("one")
    assert records.by_number[0].status == "failed"
    assert search.suggest("two")["number"] == 1, "the search goes on"


def test_a_trial_whose_process_died_before_it_began_comes_again(asked, tmp_path):
    config = load_tune({**asked, "trials": {"light": 2}})
    (tmp_path / "search").mkdir()
    records = Records(tmp_path / "search")
    search = Search(config, records, "light", lambda params: trials.complete("light", settings_of(config), params), 0.0)
    first, params = search.suggest("one"), records.by_number[0].params
    search.on_trial_complete("one", error=True)
    assert not records.by_number[0].ended
    again = search.suggest("two")
    assert (again["number"], records.by_number[0].params) == (first["number"], params)
    assert search.suggest("three")["number"] == 1
    assert search.suggest("four") is None, "both are under way"
    records.by_number[0].attempts = 2
    search.on_trial_complete("two", error=True)
    assert (records.by_number[0].status, records.by_number[0].error) == ("failed", "its process died 2 times")
    search.on_trial_complete("three")
    assert search.suggest("five") == "FINISHED"


def test_trials_that_can_never_begin_fail_and_the_search_ends(asked, tmp_path):
    config = load_tune({**asked, "trials": {"light": 2}})
    (tmp_path / "search").mkdir()
    records = Records(tmp_path / "search")
    search = Search(config, records, "light", lambda params: trials.complete("light", settings_of(config), params), 0.0)
    for turn in range(20):
        suggested = search.suggest(str(turn))
        if suggested == "FINISHED":
            break
        search.on_trial_complete(str(turn), error=True)
    assert turn == 4, "each was given up twice"
    assert [r.error for r in records.ended()] == ["no process for it could begin"] * 2


def settings_of(config):
    return {"base": config.base.model_dump(mode="json"), "threads": 1, "device": "cpu"}


def test_a_run_that_goes_on_reports_what_its_record_lacks(asked, tmp_path, monkeypatch):
    config, said, fitted = load_tune(asked).base, [], []
    monkeypatch.setattr("ray.tune.report", lambda row: said.append(row["row"]["epoch"]))
    monkeypatch.setattr("equipoise.pipelines.fit.fit_config", lambda *a, **k: fitted.append(a))
    monkeypatch.setattr(trials, "_epochs", lambda config: None)
    monkeypatch.setattr(trials, "ended_epochs", lambda run: [0, 1, 2])
    monkeypatch.setattr(trials, "row_of", lambda run, epoch, seconds: {**ROW, "epoch": epoch})
    config = config.model_copy(update={"out": str(tmp_path / "run")})
    trials.train_trial(config, known=[0, 1])
    assert (said, len(fitted)) == ([2], 1)
    write_json(tmp_path / "run" / "finished.json", {})
    trials.train_trial(config, known=[0, 1, 2])
    assert (said, len(fitted)) == ([2, 2], 1)


def test_another_data_set_in_the_same_place_is_refused(asked, tmp_path):
    config, manifest = load_tune(asked), Manifest.load(asked["base"]["data"])
    out = tmp_path / "search"
    out.mkdir()
    tune._claim(out, config, manifest)
    tune._claim(out, config, manifest)
    with pytest.raises(EquipoiseError, match=r"is not the data set that the search in .*search began with"):
        tune._claim(
            out, config, Manifest.model_validate({**manifest.model_dump(), "seed": manifest.seed + 1, "hash": ""})
        )


def test_a_look_at_test_is_of_the_winner(asked, tmp_path):
    config = load_tune(asked, {"confirm.seeds": 0})
    records = Records(tmp_path / "search")
    for number, score in ((0, 0.1), (1, 0.2)):
        records.write(Record(number, "light", {}, {}, "done", curve=[{**ROW, "score": score}]))
    sitting = tune._Sitting(config, room_for(config, HERE), HERE, False)
    path = tmp_path / "search" / "confirm.json"
    for trial, stays in ((1, True), (0, False)):
        write_json(path, {"trial": trial})
        sitting._confirm(sitting._winner())
        assert path.is_file() == stays


def test_intervals_of_what_differs_not_at_all_or_always_the_same():
    def run(score):
        return dict.fromkeys(("full", "missing", "score"), score)

    default = [run(0.8), run(0.5), run(0.1)]
    same = compared({"default": default, "best": default})["score"]
    assert same == {"mean": 0, "low": 0, "high": 0, "p": 1}
    # Three seeds that differ by the same amount, but for rounding: no spread to make an interval of.
    shifted = compared({"default": default, "best": [run(r["score"] + 0.1) for r in default]})["score"]
    assert shifted["mean"] == pytest.approx(0.1)
    assert json.dumps([shifted[k] for k in ("low", "high", "p")]) == "[NaN, NaN, NaN]"
    less = compared({"default": default, "best": [run(0.7), run(0.3), run(0.0)]})["score"]
    assert less["low"] < less["mean"] < 0, "best - default"


def test_the_page_is_there_when_all_trials_failed_or_the_look_at_test_did(asked, tmp_path, monkeypatch):
    monkeypatch.setattr(tune, "start_ray", lambda *a, **k: None)
    monkeypatch.setattr(tune, "free", dict)
    monkeypatch.setattr(tune._Sitting, "_trials", lambda self, kind: None)
    config, out = load_tune(asked), tmp_path / "search"
    out.mkdir()
    tune._claim(out, config, Manifest.load(asked["base"]["data"]))
    failed = Record(0, "light", config.default, {}, "failed", error="Out of <room>.")
    Records(out).write(failed)
    with pytest.raises(EquipoiseError, match=r"All 1 trials failed; the first said: Out of <room>\."):
        tune._Sitting(config, room_for(config, HERE), HERE, False).run()
    assert "Out of &lt;room&gt;." in (out / "index.html").read_text()

    def fail(*args):
        raise EquipoiseError("It failed on test.")

    (out / "index.html").unlink()
    monkeypatch.setattr(tune, "confirm", fail)
    Records(out).write(Record(1, "light", config.default, config.base.model_dump(mode="json"), "done", curve=[ROW]))
    with pytest.raises(EquipoiseError, match="It failed on test"):
        tune._Sitting(config, room_for(config, HERE), HERE, False).run()
    assert "Trial 1 is the best" in (out / "index.html").read_text()
