"""The search spaces, one a method: whole, within what the methods take, and drawn as said."""

import math

import numpy as np
import optuna
import pytest
from optuna.distributions import CategoricalDistribution

from equipoise import balancers, valuation
from equipoise.models.errors import EquipoiseError
from equipoise.pipelines.config import flat, load_config
from equipoise.tune_spaces import Parameter, Space, load, searched, space_for

METHODS = [("balancer", name) for name in balancers.names()] + [("resampler", name) for name in valuation.names()]


def options(kind, name):
    return balancers.get(name).Options if kind == "balancer" else valuation.resampler_class(name).Options


@pytest.mark.parametrize(("kind", "name"), METHODS)
def test_every_registered_method_has_a_space_that_names_each_of_its_options_once(kind, name):
    said, space = load(name)
    assert said == kind
    prefix = f"{kind}.options."
    keys = [p.key for p in space.parameters] + list(space.left)
    assert sorted(keys) == sorted(prefix + option for option in options(kind, name).model_fields)
    assert all(p.source for p in space.parameters)
    assert all(space.left.values())


@pytest.mark.parametrize(("kind", "name"), METHODS)
def test_defaults_are_those_of_the_method_and_the_method_takes_both_ends(kind, name):
    get = balancers.get if kind == "balancer" else valuation.get
    for parameter in load(name)[1].parameters:
        option = parameter.key.rpartition(".")[2]
        assert options(kind, name).model_fields[option].default == parameter.default
        if isinstance(parameter.distribution, CategoricalDistribution):
            ends = parameter.distribution.choices
        else:
            ends = (parameter.quantile(0), parameter.quantile(1 - 1e-12))
        for value in ends:
            assert getattr(get(name, **{option: value}).options, option) == value


def test_no_space_is_left_over_from_a_method_that_is_gone():
    assert searched() == sorted(name for _, name in METHODS)


def test_the_training_parameters_are_keys_of_a_configuration_with_its_defaults():
    config = flat(load_config({"data": "d", "out": "o", "max_steps": 1}).model_dump())
    for parameter in load("training")[1].parameters:
        assert config[parameter.key] == parameter.default


def test_every_drawn_configuration_is_one_that_fit_takes():
    for name in balancers.names():
        for found in space_for(name, "sample").design(6):
            config = load_config(
                {"data": "d", "out": "o", "max_steps": 1, "balancer": name, "resampler": "sample"}, found
            )
            balancers.get(name, **config.balancer.options)
            valuation.get("sample", **config.resampler.options)
            # What is drawn is what trains, and the options' own classes take it as it is.
            assert found.items() <= flat(config.model_dump()).items()


def test_all_methods_draw_the_same_training_parameters_in_the_same_order():
    keys = ("optimizer.lr", "optimizer.weight_decay")
    drawn = {tuple(tuple(c[k] for k in keys) for c in space_for(name).design(8)) for name in balancers.names()}
    assert len(drawn) == 1


def test_a_design_has_the_defaults_first_and_then_one_draw_in_each_part():
    space = space_for("ogm")
    found = space.design(9, seed=3)
    assert found[0] == space.defaults()
    low, high = math.log(0.0003), math.log(0.03)
    parts = [int(8 * (math.log(c["optimizer.lr"]) - low) / (high - low)) for c in found[1:]]
    assert sorted(parts) == list(range(8))
    assert found != space.design(9, seed=4)
    assert found == space.design(9, seed=3)


def test_quantiles_are_those_of_what_optuna_draws():
    u = (np.arange(4000) + 0.5) / 4000
    sampler = optuna.samplers.RandomSampler(seed=0)
    for how in ({"log": [0.01, 1]}, {"uniform": [-1, 3]}, {"integer": [2, 6]}):
        parameter = Parameter.of("x", {**how, "default": 1})
        study = optuna.create_study(sampler=sampler)
        theirs = np.sort([parameter.suggest(study.ask()) for _ in range(400)])
        ours = np.quantile([parameter.quantile(v) for v in u], (np.arange(400) + 0.5) / 400)
        spread = theirs[-1] - theirs[0]
        assert np.abs(theirs - ours).mean() < 0.05 * spread


def test_what_a_condition_excludes_is_not_drawn():
    tau = {"log": [0.1, 1], "default": 1.0, "when": {"a": "softmax"}}
    a = Parameter.of("a", {"choice": ["loss", "softmax"], "default": "loss"})
    space = Space((a, Parameter.of("tau", tau)), {})
    drawn = space.design(20)
    assert {"tau" in c for c in drawn} == {True, False}
    assert all(("tau" in c) == (c["a"] == "softmax") for c in drawn)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    suggested = [space.suggest(study.ask()) for _ in range(20)]
    assert {"tau" in c for c in suggested} == {True, False}
    assert all(("tau" in c) == (c["a"] == "softmax") for c in suggested)


def test_a_configuration_changes_adds_and_leaves_out():
    changes = {
        "optimizer.lr": {"log": [0.01, 0.1]},
        "optimizer.weight_decay": None,
        "model.encoder.hidden": {"choice": [64, 256], "default": 64},
    }
    space = space_for("joint", changes=changes)
    assert space.defaults() == {"optimizer.lr": 0.001, "model.encoder.hidden": 64}
    assert all(0.01 <= c["optimizer.lr"] <= 0.1 for c in space.design(5)[1:])
    assert "optimizer.weight_decay" in space.left


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        ({"lag": [0, 1]}, "The space of 'x' must say what to draw from, one of log, uniform, integer, choice"),
        ({"log": [1, 0.1], "default": 1}, "The space of 'x' has log: [1, 0.1], which holds nothing"),
        ({"log": [0, 1], "default": 1}, "The space of 'x' has log: [0, 1], which holds nothing"),
        ({"choice": [], "default": 1}, "which holds nothing"),
        ({"uniform": [0, 1]}, "The space of 'x' needs a default, which is tried first"),
        ({"uniform": [0, 1], "defalt": 1}, "Unknown field of the space of 'x': 'defalt': did you mean 'default'?"),
        ({"uniform": [0, 1], "default": 0, "when": "a"}, "The space of 'x' has when: 'a': say which values of what"),
        (3, "such as {log: [0.001, 0.1], default: 0.01}; found 3."),
    ],
)
def test_a_space_that_cannot_be_read_is_refused_in_a_sentence(said, sentence):
    with pytest.raises(EquipoiseError) as refused:
        Parameter.of("x", said)
    assert sentence in str(refused.value)


def test_a_method_without_a_space_is_named():
    with pytest.raises(EquipoiseError) as refused:
        space_for("nobody")
    assert "No search space for 'nobody': write tune_spaces/nobody.yaml" in str(refused.value)


def test_a_condition_on_what_is_not_searched_before_is_refused():
    with pytest.raises(EquipoiseError) as refused:
        Space((Parameter.of("x", {"uniform": [0, 1], "default": 0, "when": {"y": 1}}),), {})
    assert "The space of 'x' depends on 'y', which is not searched before it" in str(refused.value)
