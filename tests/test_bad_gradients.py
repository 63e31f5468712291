"""Bad gradients, batches, models and tasks, for every registered balancer: what is refused in which words, and what comes
out where nothing is wrong but odd. (tests/test_balanced_step.py has what does not depend on the balancer.)
"""

import copy
import math

import pytest
import torch
from bad_gradient_cases import Planted, Unbounded, fitting, pairs, planted_steps
from torch import nn
from world_cases import CLASSES, build_model, global_batch

from equipoise import balancers
from equipoise.models import MLP, Classification, EquipoiseError, LateFusion, MultiLabel, Regression, Segmentation

NAMES = balancers.names()
TASKS = [Classification(5), MultiLabel(5), Regression(1, tolerance=0.5), Segmentation(["one", "two"])]
ONE_HALF = 0.5  # |d CE((v, 0), 0) / dv| at v = 0


def made(name, model=None, optimizer=None):
    model = model or build_model(torch.float64, **fitting(name))
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=0.1)
    return balancers.BalancedStep(model, Classification(CLASSES), balancers.get(name), optimizer, seed=11)


def refused(sentence):
    return pytest.raises(EquipoiseError, match=sentence)


def odd(result):
    """The numbers of a result that are not finite, but for the indicator's: a gradient of zero has no angle, and a ratio to
    it is infinite.
    """
    numbers = {**result.losses, **result.statistics}
    return {n: v for n, v in numbers.items() if not math.isfinite(v) and not n.startswith("gradient/")}


def assert_finite(step, result, but=()):
    assert odd(result) == {}
    assert all(bool(p.isfinite().all()) for n, p in step.model.named_parameters() if not n.startswith(tuple(but)))


# Not finite


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_one_worker_cannot_compute_is_refused_on_both_by_every_balancer(gloo, value):
    first, second = gloo.run("bad_gradient_cases", "refusals", 2, value)
    assert first == second, "the same words on both workers"
    assert list(first) == NAMES
    for name, (sentence, unchanged) in first.items():
        assert sentence.startswith("The objective '"), (name, sentence)
        assert " is nan in step 0 of epoch 0: the step was refused on all workers and no parameter changed" in sentence
        assert unchanged, name


OWN_HEADS = [n for n in NAMES if "heads" in balancers.get(n).accepts and not balancers.get(n).fusions]


@pytest.mark.parametrize("name", OWN_HEADS)
def test_the_objective_that_is_not_finite_is_the_one_that_is_named(name):
    # Only the head of "b" is broken, which the fused logits do not read.
    model = build_model(torch.float64, unimodal="heads")
    objectives = set(made(name, model)(global_batch(0, torch.float64)).losses)
    read = model.heads["b"].weight.grad
    with torch.no_grad():
        model.heads["b"].weight.fill_(math.nan)
    before = copy.deepcopy(model.state_dict())
    if read is not None and bool(read.any()):
        named = {"b", "b_probe", "unimodal", "kl", "kl/b"} & objectives
        with refused(rf"^The objective '({'|'.join(named)})' is nan in step 0 of epoch 0: the step was refused on all"):
            made(name, model)(global_batch(0, torch.float64))
        for key, value in model.state_dict().items():
            torch.testing.assert_close(value, before[key], rtol=0, atol=0, equal_nan=True)
    else:  # it reads no heads at all
        step = made(name, model)
        assert_finite(step, step(global_batch(0, torch.float64)), but=["heads.b"])


# The size of a feature means nothing to cosines.
@pytest.mark.parametrize("name", [n for n in NAMES if balancers.get(n).fusions != ("cosine",)])
def test_a_loss_without_bound_is_refused(name):
    step = made(name)
    data = global_batch(0, torch.float64)
    with torch.no_grad():  # a feature so large that a probability of 0 meets its label
        for encoder in step.model.encoders.values():
            encoder.layers[-1].bias.fill_(1e308)
    before = copy.deepcopy([step.model.state_dict(), step.state_dict()])
    with refused(r"^The objective '.+' is (nan|inf) in step 0 of epoch 0: the step was refused on all workers"):
        step(data)
    torch.testing.assert_close([step.model.state_dict(), step.state_dict()], before, rtol=0, atol=0)


@pytest.mark.parametrize("name", NAMES)
def test_a_gradient_that_is_not_finite_is_refused_though_the_loss_is(name):
    shapes = {"a": 7, "b": 4, "c": 3}
    encoders = {m: MLP((d,), (6,), 5) for m, d in shapes.items()}
    encoders["a"] = Unbounded(encoders["a"], 5)
    step = made(name, LateFusion(encoders, CLASSES, **fitting(name)).double())
    before = copy.deepcopy([step.model.state_dict(), step.state_dict()])
    sentence = (
        r"^The gradient of ('a'|the objective '.+') is not finite in step 0 of epoch 0, though .*the step was refused"
    )
    with refused(sentence):
        step(global_batch(0, torch.float64))
    torch.testing.assert_close([step.model.state_dict(), step.state_dict()], before, rtol=0, atol=0)
    assert step.optimizer.state == {}


# Odd gradients


@pytest.mark.parametrize("name", NAMES)
def test_identical_objectives_give_the_direction_of_each_of_them(name):
    found, result = planted_steps("identical", name, steps=1)
    # Down the one gradient, by the step that the method gives it: never back, never nothing.
    assert found["shared"] > ONE_HALF / 4, found
    assert found["shared"] <= ONE_HALF * len(result.losses) * 1.5 + 1e-12
    assert found["a"] == found["b"] == 0
    assert odd(result) == {}


@pytest.mark.parametrize("name", NAMES)
def test_opposite_gradients_do_not_blow_up(name):
    # From 0 every objective's gradient by w_a is 1/2 or -1/2: no sum, mean or projection of them is longer than all of them.
    # MMPareto's, which may be 1.5 times as long, and what divides by a length of 0 are the ones to look at.
    found, result = planted_steps("opposite", name, steps=1)
    assert odd(result) == {}
    for m in ("a", "b"):
        assert abs(found[m]) <= 1.5 * ONE_HALF * len(result.losses) + 1e-12
    assert found["shared"] == found["head"] == 0
    later, result = planted_steps("opposite", name, steps=5)
    assert odd(result) == {}
    assert all(map(math.isfinite, later.values()))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("plant", ["zero", "one zero"])
def test_a_zero_gradient_divides_nothing(name, plant):
    found, result = planted_steps(plant, name)
    assert odd(result) == {}
    assert all(map(math.isfinite, found.values()))
    if plant == "zero":
        assert set(found.values()) == {0.0}, "nothing has a gradient, so nothing moves"


@pytest.mark.filterwarnings("ignore:Balancer .* scales gradients")
@pytest.mark.parametrize("name", NAMES)
def test_an_adaptive_optimiser_takes_a_zero_gradient_too(name):
    model = Planted("zero", name)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    step = balancers.BalancedStep(model, Classification(2), balancers.get(name), optimizer)
    for _ in range(2):
        step(pairs())
    assert all(p.item() == 0.0 for p in model.parameters())


# Odd models and batches


@pytest.mark.parametrize("name", NAMES)
def test_an_unowned_parameter_is_refused(name):
    model = build_model(torch.float64, **fitting(name))
    model.temperature = nn.Parameter(torch.ones(()))
    with refused(
        r"Parameter 'temperature' of LateFusion is owned by nobody: add it to a modality, to 'shared' or to 'head'"
    ):
        made(name, model)


@pytest.mark.parametrize("absent", [("b",), ("a", "b")])
@pytest.mark.parametrize("name", NAMES)
def test_a_modality_that_no_row_has_keeps_its_encoder_as_it_is(name, absent):
    step = made(name)
    data = global_batch(0, torch.float64)
    for i, m in enumerate(step.model.modalities):
        data["present"][:, i] = m not in absent
    before = {m: copy.deepcopy(e.state_dict()) for m, e in step.model.encoders.items()}
    for _ in range(3):  # methods with a memory meet what they remember
        result = step(data)
    assert_finite(step, result)
    for m, encoder in step.model.encoders.items():
        same = all(torch.equal(v, before[m][k]) for k, v in encoder.state_dict().items())
        assert same == (m in absent), m
    # And they go on where it comes back.
    assert_finite(step, step(global_batch(1, torch.float64)))


@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize("name", NAMES)
def test_any_number_of_modalities_works_or_is_refused(name, count):
    torch.manual_seed(0)
    names = [f"m{i}" for i in range(count)]
    model = LateFusion({m: MLP(3, (4,), 4) for m in names}, CLASSES, **fitting(name)).double()
    most = balancers.get(name).max_modalities
    if most is not None and count > most:
        with refused(rf"Balancer '{name}' is defined for at most {most} modalities, the model has {count} \(m0, m1"):
            made(name, model)
        return
    step = made(name, model)
    rows = 8
    data = {
        "sample_id": torch.arange(rows), "copy": torch.zeros(rows, dtype=torch.int16),
        "inputs": {m: torch.randn(rows, 3, dtype=torch.float64) for m in names},
        "present": torch.ones(rows, count, dtype=torch.bool), "target": torch.arange(rows) % CLASSES,
    }  # fmt: skip
    for _ in range(2):
        assert_finite(step, step(data))


# What it does not accept


@pytest.mark.parametrize("task", TASKS, ids=lambda t: t.name)
@pytest.mark.parametrize("name", NAMES)
def test_a_task_that_it_is_not_defined_for_is_refused(name, task):
    balancer = balancers.get(name)
    model = build_model(torch.float64, **fitting(name))
    if task.name in balancer.tasks:
        balancer.check(model, task)
        return
    with refused(
        rf"^Balancer '{name}' is defined for {', '.join(balancer.tasks)}, not for the task '{task.name}': choose another balancer"
    ):
        balancer.check(model, task)


@pytest.mark.parametrize("kind", ["split", "heads", "coalition"])
@pytest.mark.parametrize("name", NAMES)
def test_a_kind_of_unimodal_logits_that_it_does_not_accept_is_refused(name, kind):
    balancer = balancers.get(name)
    model = build_model(torch.float64, **{**fitting(name), "unimodal": kind})
    if kind in balancer.accepts:
        made(name, model)
        return
    with refused(
        rf"^Balancer '{name}' needs unimodal logits of kind '{balancer.accepts[0]}'.* but the model has unimodal='{kind}': "
        rf"build it with unimodal='{balancer.accepts[0]}'"
    ):
        made(name, model)


@pytest.mark.parametrize("name", [n for n in NAMES if balancers.get(n).fusions])
def test_a_fusion_that_it_is_not_defined_for_is_refused(name):
    needed = balancers.get(name).fusions[0]
    with refused(rf"^Balancer '{name}' is defined for the fusion '{needed}', .*: build it with fusion='{needed}'"):
        made(name, build_model(torch.float64, unimodal="split"))
