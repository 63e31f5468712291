"""The balanced step: what it refuses, in which words, and what it gives back."""

import copy
import math
import warnings
from functools import partial

import numpy as np
import pytest
import torch
import torch.distributed as dist
from sketches import SKETCHES
from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from world_cases import CLASSES, SHAPES, build_model, global_batch, take

from equipoise import balancers
from equipoise.balancers import BalancedStep, Balancer
from equipoise.models import Classification, EarlyFusion, LateFusion
from equipoise.models.early_fusion import Patches
from equipoise.models.encoders import GRU, MLP
from equipoise.models.errors import EquipoiseError
from equipoise.models.fusion import FUSIONS

NAMES = balancers.names()


def fitting(balancer):
    """What a model of a balancer is built with."""
    fusion = (
        {"fusion": balancer.fusions[0], "absence": FUSIONS[balancer.fusions[0]].absences[0]} if balancer.fusions else {}
    )
    return {"unimodal": balancer.accepts[0], **fusion}


def make_step(name="joint", *, model=None, how=None, options=None, dtype=torch.float64, optimizer=None, **kwargs):
    balancer = name if isinstance(name, Balancer) else balancers.get(name, **(options or {}))
    model = model or build_model(dtype, **fitting(balancer), **(how or {}))
    optimizer = (optimizer or (lambda p: torch.optim.AdamW(p, lr=1e-2)))(model.parameters())
    return BalancedStep(model, Classification(CLASSES), balancer, optimizer, seed=11, **kwargs)


def batch(t=0, dtype=torch.float64):
    return global_batch(t, dtype)


def refused(match):
    return pytest.raises(EquipoiseError, match=match)


# What is refused when the step is made


def test_a_wrapped_model_is_refused(tmp_path):
    model = build_model(torch.float32)
    with refused(r"already wrapped in DataParallel: give the bare model \(model.module\)"):
        make_step(model=DataParallel(model))
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        with refused("already wrapped in DistributedDataParallel.*parallel_strategy=None"):
            make_step(model=DistributedDataParallel(model))
    finally:
        dist.destroy_process_group()


class Leaky(LateFusion):
    """Declares what a test tells it to."""

    def __init__(self, change):
        super().__init__({"a": MLP(2), "b": MLP(2)}, CLASSES)
        self.temperature = nn.Parameter(torch.ones(()))
        self.change = change

    def parameter_groups(self):
        groups = super().parameter_groups()
        self.change(groups, self.temperature)
        return groups


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda groups, p: None, "'temperature' of Leaky is owned by nobody: add it to a modality"),
        (
            lambda groups, p: [groups[k].append(p) for k in ("a", "head")],
            "'temperature' is owned by both 'a' and 'head'",
        ),
        (lambda groups, p: groups.update(scale=[p]), "names the group 'scale': it must be one of a, b, shared, head"),
    ],
)
def test_who_owns_a_parameter_must_be_declared(change, sentence):
    with refused(sentence):
        make_step(model=Leaky(change))


def test_a_frozen_parameter_needs_no_owner():
    model = Leaky(lambda groups, p: None)
    model.temperature.requires_grad_(False)
    make_step(model=model)


@pytest.mark.parametrize("name", ["summed", "ogm", "ogm_ge"])
def test_a_model_of_another_kind_is_refused(name):
    with refused(f"{name!r} needs unimodal logits of kind 'split' or 'heads', .* build it with unimodal='split'"):
        make_step(name, model=build_model(torch.float32, unimodal="coalition"))
    early = EarlyFusion({"a": Patches((4,), 2, 8), "b": Patches((4,), 2, 8)}, CLASSES, 8, 1, 2)
    with refused("the model has unimodal='coalition'"):
        make_step(name, model=early)


def test_a_task_or_a_number_of_modalities_that_the_method_has_no_meaning_for_is_refused():
    class Ranking(Classification):
        name = "ranking"

    model = build_model(torch.float32)
    with refused("'ogm' is defined for classification, not for the task 'ranking': choose another balancer"):
        BalancedStep(model, Ranking(2), balancers.get("ogm"), torch.optim.SGD(model.parameters()))

    class Pairwise(Balancer):  # without a name, it is registered nowhere
        max_modalities = 2

    with refused(r"at most 2 modalities, the model has 3 \(a, b, c\)"):
        make_step(Pairwise())


@pytest.mark.parametrize(
    ("name", "options", "sentence"),
    [
        ("omg", {}, "Unknown balancer 'omg': did you mean 'ogm'?"),
        ("zzz", {}, "Unknown balancer 'zzz': known: .*joint, .*modality_dropout, .*ogm"),
        ("ogm", {"alhpa": 0.1}, "Unknown option of balancer 'ogm': 'alhpa': did you mean 'alpha'?"),
        ("joint", {"alpha": 0.1}, "The balancer 'joint' has no options, found 'alpha'"),
        ("ogm", {"alpha": -1}, "Option 'alpha' of balancer 'ogm': .*greater than or equal to 0, found -1"),
        ("ogm", {"apply": "updates"}, "Option 'apply' of balancer 'ogm': .*'gradient' or 'update', found 'updates'"),
        ("modality_dropout", {"p": 1.0}, "Option 'p' of balancer 'modality_dropout': .*less than 1, found 1.0"),
        ("summed", {"weight": "much"}, "Option 'weight' of balancer 'summed': .*found 'much'"),
    ],
)
def test_a_wrong_name_or_option_is_named_with_the_nearest_right_one(name, options, sentence):
    with refused(sentence):
        balancers.get(name, **options)


def test_chance_inside_the_model_is_warned_of():
    def model(*layers):
        return LateFusion({"a": nn.Sequential(nn.Linear(2, 4), *layers), "b": MLP(2, (), 4)}, CLASSES)

    for layer in (nn.BatchNorm1d(4), nn.Dropout(0.1)):
        with pytest.warns(UserWarning, match=f"{type(layer).__name__} layers: N workers then equal one worker in dist"):
            make_step(model=model(layer))
    stacked = LateFusion({"a": GRU(2, 4, depth=2)}, CLASSES)
    stacked.encoders["a"].gru.dropout = 0.5
    with pytest.warns(UserWarning, match="GRU layers"):
        make_step(model=stacked)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make_step(model=model(nn.Dropout(0.0), nn.LayerNorm(4), nn.GroupNorm(2, 4)))


# What is refused in a step


def with_(data, **changes):
    return {**data, **changes}


def without_input(data, name):
    return with_(data, inputs={m: x for m, x in data["inputs"].items() if m != name})


def edited(tensor, index, value):
    tensor = tensor.clone()
    tensor[index] = value
    return tensor


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (
            lambda b: with_(b, target=edited(b["target"], 2, 7)),
            "Label 7 in row 2 of the batch is outside the 5 classes 0..4",
        ),
        (lambda b: with_(b, target=edited(b["target"], 3, -1)), "Label -1 in row 3"),
        (
            lambda b: with_(b, target=b["target"].double()),
            r"Class labels must be integers of shape \[B\], found torch.float64",
        ),
        (
            lambda b: with_(b, present=edited(b["present"], 4, False), sample_id=b["sample_id"] + 100),
            r"sample_id 104 \(row 4 of the batch\) has no modality present",
        ),
        (
            lambda b: with_(b, present=b["present"][:, :2]),
            r"present must be bool \[12, 3\] .*found torch.bool \(12, 2\)",
        ),
        (lambda b: with_(b, present=b["present"].long()), r"present must be bool \[12, 3\] .*found torch.int64"),
        (lambda b: without_input(b, "b"), "no inputs for modality 'b': it holds a, c"),
    ],
)
def test_a_bad_batch_is_refused_and_nothing_changes(spoil, sentence):
    step = make_step()
    before = state_of(step)
    with refused(sentence):
        step(spoil(batch()))
    assert_same(state_of(step), before)


class Counting(balancers.get("joint").__class__):
    """Joint with a state that a step changes; registered nowhere."""

    name = ""

    def __init__(self):
        super().__init__()
        self.steps = 0

    def modulate(self, gradients, ctx):
        self.steps += 1

    def state_dict(self):
        return {"steps": self.steps}


def state_of(step):
    return copy.deepcopy([step.model.state_dict(), step.optimizer.state_dict(), step.state_dict()])


def assert_same(a, b):
    torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("method", [*NAMES, Counting, *SKETCHES.values()])
def test_a_nan_is_refused_and_nothing_changes(method):
    def made():
        return make_step(method if isinstance(method, str) else method())

    step, spared = made(), made()
    for s in (step, spared):
        s(batch(0))
    before = state_of(step)
    spoilt = batch(1)
    row = int(spoilt["present"][:, 0].nonzero()[0])
    spoilt["present"][row] = True  # whatever modality dropout leaves of the row, it reads a NaN
    for x in spoilt["inputs"].values():
        x[row, 0] = float("nan")
    with refused(r"The objective '.+' is nan in step 1 of epoch 0: the step was refused on all workers"):
        step(spoilt)
    assert_same(state_of(step), before)
    # It leaves no trace in the next step either.
    for s in (step, spared):
        s(batch(2))
    assert_same(state_of(step), state_of(spared))


@pytest.mark.parametrize("absence", ["feature", "input"])
def test_what_stands_in_an_absent_modality_is_never_read(absence):
    # NaN times zero is NaN: neither the loss nor a gradient may have touched it.
    clean, spoilt = batch(), batch()
    for i, x in enumerate(spoilt["inputs"].values()):
        x[~spoilt["present"][:, i]] = float("nan")
    steps = [make_step("summed", how={"absence": absence}) for _ in range(2)]
    assert steps[0](clean) == steps[1](spoilt)
    assert_same(state_of(steps[0]), state_of(steps[1]))


def test_a_nan_on_one_worker_is_refused_on_all(gloo):
    answers = gloo.run("step_cases", "refusal", 2)
    assert answers[0] == answers[1]
    sentence, same = answers[0]
    assert sentence.startswith("EquipoiseError: The objective 'fused' is nan in step 0 of epoch 0")
    assert same


# What comes back


@pytest.mark.parametrize("name", NAMES)
def test_a_result_is_made_of_plain_numbers(name):
    result = make_step(name, clip_norm=1.0)(batch())
    assert type(result.loss) is float
    assert result.loss == pytest.approx(sum(result.losses.values()))
    for numbers in (result.losses, result.statistics):
        assert type(numbers) is dict
        assert all(type(k) is str and type(v) is float and math.isfinite(v) for k, v in numbers.items())
    assert ("fused" in result.losses) == ("fused" in balancers.get(name).losses)
    assert "gradient_norm" in result.statistics


@pytest.mark.parametrize("cut", ["uneven", "empty"])
@pytest.mark.parametrize("name", ["summed", "ogm_ge"])
def test_every_worker_reports_the_global_batch(gloo, name, cut):
    [alone] = gloo.run("step_cases", "results", 1, name, cut)
    replicas = gloo.run("step_cases", "results", 2, name, cut)
    assert replicas[0] == replicas[1]
    for ours, theirs in zip(replicas[0], alone):
        for a, b in zip(ours, theirs):
            assert a == pytest.approx(b, rel=1e-10)


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_without_rows_changes_nothing(name):
    step = make_step(name, optimizer=lambda p: torch.optim.SGD(p, lr=1.0))
    before = copy.deepcopy(step.model.state_dict())
    result = step(take(batch(), slice(0, 0)))
    assert result.loss == 0.0
    assert_same(step.model.state_dict(), before)


@pytest.mark.parametrize("name", NAMES)
def test_clip_norm_clips_the_norm_over_all_parameters(name):
    def distance(clip_norm):
        step = make_step(name, optimizer=lambda p: torch.optim.SGD(p, lr=1.0), clip_norm=clip_norm)
        before = copy.deepcopy(step.model.state_dict())
        result = step(batch())
        after = step.model.state_dict()
        return sum(float((after[n] - before[n]).square().sum()) for n in before) ** 0.5, result

    free, _ = distance(None)
    loose, result = distance(100.0)
    assert loose == pytest.approx(free)
    assert result.statistics["gradient_norm"] == pytest.approx(free)
    tight, result = distance(free / 10)
    assert tight == pytest.approx(free / 10, rel=1e-5)
    assert result.statistics["gradient_norm"] == pytest.approx(free), "reported as it was before clipping"


AUTOCAST = [
    *((name, {"unimodal": kind}) for name in NAMES for kind in balancers.get(name).accepts),
    *((name, {"unimodal": "heads"}) for name in SKETCHES),
    ("gmd", {"unimodal": "heads", "absence": "input", "fusion": "gated"}),
]


@pytest.mark.parametrize(("name", "how"), AUTOCAST)
def test_bfloat16_autocast_stays_near_float32(name, how):
    balancer = SKETCHES[name] if name in SKETCHES else lambda: balancers.get(name)

    def losses(autocast):
        method = balancer()
        model = build_model(torch.float32, **{**(fitting(method) if method.fusions else {}), **how})
        step = make_step(method, model=model, autocast=autocast)
        result = step(batch(0, torch.float32))
        assert all(p.dtype == torch.float32 for p in model.parameters())
        assert all(p.grad.dtype == torch.float32 for p in model.parameters() if p.grad is not None)
        return result.losses

    half, full = losses(torch.bfloat16), losses(None)
    assert half != full, "autocast did something"
    assert half == pytest.approx(full, rel=0.05, abs=0.05)


# Resume


@pytest.mark.parametrize("name", NAMES)
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(tmp_path, name):
    options = SHORT.get(name)
    (expected, state), (found, resumed) = whole_and_resumed(
        tmp_path, lambda: make_step(name, options=options, clip_norm=1.0)
    )
    assert found == expected
    assert_same(resumed, state)


#: Options with which the state of a balancer makes a difference within a few validations.
SHORT = {"mses": {"patience": 1}, "mslr": {"memory": 1}}


def test_a_balancer_that_forgets_its_state_fails_the_test_above(tmp_path):
    def forgetful(name):
        kind = type(balancers.get(name))
        planted = type("Forgetful", (kind,), {"name": "", "load_state_dict": lambda self, state: None})
        return make_step(planted(**SHORT.get(name, {})), clip_norm=1.0)

    stateful = []
    for name in NAMES:
        (expected, state), (found, _) = whole_and_resumed(tmp_path, partial(forgetful, name))
        if state[2]["balancer"]:
            stateful.append(name)
            assert found != expected, f"{name}: its state makes no difference in these steps; see SHORT"
        else:
            assert found == expected, name
    assert {"agm", "mses", "mslr", "pmr"} <= set(stateful)


def whole_and_resumed(tmp_path, made):
    """((results, state) of ten steps, the same of five that are saved and five from what was saved)."""

    def go_on(step, steps):
        results = []
        for t in steps:
            if t % 3 == 0:
                step.epoch = t // 3
            if t % 3 == 0 and t:
                cells = {c: {"loss": float(c * t), "accuracy": 0.9 - 0.02 * c * t} for c in (1, 2, 4)}
                step.balancer.on_epoch(cells, {"a": 1.5, "b": 0.1, "c": 0.2})
            results.append(step(batch(t)))
        return results

    whole = made()
    expected = go_on(whole, range(10))

    first = made()
    found = go_on(first, range(5))
    parts = {"model": first.model, "optimizer": first.optimizer, "step": first}
    torch.save({key: part.state_dict() for key, part in parts.items()}, tmp_path / "checkpoint.pt")

    second = made()
    with torch.no_grad():
        for p in second.model.parameters():
            p.zero_()
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    for key, part in {"model": second.model, "optimizer": second.optimizer, "step": second}.items():
        part.load_state_dict(state[key])
    found += go_on(second, range(5, 10))
    return (expected, state_of(whole)), (found, state_of(second))


def test_a_resume_without_the_step_s_state_would_differ():
    # The test above has teeth: modality dropout's masks follow the epoch, OGM-GE's noise the step.
    for name, lost in [("modality_dropout", "epoch"), ("ogm_ge", "step")]:
        step, other = make_step(name), make_step(name)
        setattr(other, lost, 1)
        step(batch()), other(batch())
        a, b = step.model.state_dict(), other.model.state_dict()
        assert any(not torch.equal(a[n], b[n]) for n in a), name


def test_a_state_that_nobody_takes_back_is_an_error():
    step = make_step(Counting())
    with pytest.raises(NotImplementedError, match=r"Counting has a state_dict but no load_state_dict: .* lose steps"):
        step.load_state_dict(step.state_dict())


def test_micro_batches_report_like_one_batch():
    whole, parts = make_step("ogm"), make_step("ogm")
    data = batch()
    a, b = whole(data), parts([take(data, slice(0, 5)), take(data, slice(5, 12))])
    assert a.losses == pytest.approx(b.losses, rel=1e-12)
    assert a.statistics == pytest.approx(b.statistics, rel=1e-12)
    np.testing.assert_allclose(
        torch.cat([p.flatten() for p in whole.model.parameters()]).detach(),
        torch.cat([p.flatten() for p in parts.model.parameters()]).detach(),
        rtol=1e-10,
        atol=1e-12,
    )


class UnboundedDerivative(nn.Module):
    """sqrt at 0: the loss is finite, its gradient is not."""

    def __init__(self):
        super().__init__()
        self.inner, self.out_features = MLP(SHAPES["a"], out_features=5), 5

    def forward(self, x, length=None):
        feature = self.inner(x)
        return (feature * 0).square().sqrt() + feature


def test_a_gradient_that_is_not_finite_is_refused_and_nothing_changes():
    torch.manual_seed(0)
    encoders = {"a": UnboundedDerivative(), **{m: MLP(d, out_features=5) for m, d in SHAPES.items() if m != "a"}}
    step = make_step("joint", model=LateFusion(encoders, CLASSES).double(), clip_norm=1.0)
    before = [p.detach().clone() for p in step.layout.parameters]
    with refused(
        r"The gradient of 'a' is not finite in step 0 of epoch 0, though the losses are.*no parameter changed"
    ):
        step(batch())
    assert all(torch.equal(p, q) for p, q in zip(step.layout.parameters, before, strict=True))
    assert step.optimizer.state == {}


@pytest.mark.parametrize("name", ["rows", "fused", "shared", "head"])
def test_a_modality_may_not_take_the_name_of_a_count_or_an_objective(name):
    with refused(f"Modality name '{name}' is the name of"):
        LateFusion({name: MLP(3), "b": MLP(4)}, CLASSES)


def test_workers_that_differ_in_micro_batches_are_told_so(gloo):
    for sentence in gloo.run("step_cases", "different_micro_batches", 2):
        assert "The workers gave different numbers of micro-batches to step 0 (this one" in sentence
