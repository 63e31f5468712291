"""Methods that scale what a modality owns (AGM, MSLR, MSES), and optimisers that cancel it."""

import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import balancers as oracle
from oracles import scaling
from sklearn.datasets import load_digits
from world_cases import CLASSES, SHAPES, build_model, global_batch, take

from equipoise import balancers
from equipoise.balancers.adaptive import cancels_scale
from equipoise.balancers.agm import ratios
from equipoise.balancers.balancer import REGISTRY
from equipoise.balancers.counting import contexts_of
from equipoise.models import (
    MLP,
    Classification,
    EarlyConcat,
    EquipoiseError,
    LateFusion,
    MultiLabel,
    Regression,
    Segmentation,
)

FULL = 5  # `global_batch(FULL)`: no row has "b"
QUIET = pytest.mark.filterwarnings("ignore:Balancer .* scales gradients")
APPLY = [name for name, kind in REGISTRY.items() if "apply" in kind.Options.model_fields]


def sgd(p, **how):
    return torch.optim.SGD(p, **{"lr": 1.0, **how})


def adamw(p, **how):
    return torch.optim.AdamW(p, **{"lr": 1e-3, **how})


def make_step(name, *, optimizer=sgd, model=None, how=None, seed=11, **options):
    balancer = balancers.get(name, **options)
    model = model or build_model(torch.float64, **(how or {"unimodal": balancer.accepts[0]}))
    return balancers.BalancedStep(model, Classification(CLASSES), balancer, optimizer(model.parameters()), seed=seed)


def parameters(model):
    return {name: p.detach().numpy().copy() for name, p in model.named_parameters()}


def train(name, steps=1, optimizer=sgd, **how):
    """(parameters before, after, results) of some steps."""
    step = make_step(name, optimizer=optimizer, **how)
    before = parameters(step.model)
    results = [step(global_batch(t, torch.float64)) for t in range(steps)]
    return before, parameters(step.model), results


def owner(parameter):
    return parameter.split(".")[1]  # encoders.<modality>..., heads.<modality>..., fusion.head...


def cells(**values):
    """A validation of the modalities a, b, c, by metric."""
    return {1 << i: {metric: v[i] for metric, v in values.items()} for i in range(3)}


# AGM


@pytest.fixture(params=[0, FULL], ids=["some absent", "one absent everywhere"])
def batch(request):
    return global_batch(request.param, torch.float64)


@pytest.mark.parametrize("alpha", [1.0, 3.0])
def test_agm_descends_the_logits_whose_parts_are_scaled(batch, alpha):
    first, step = global_batch(1, torch.float64), make_step("agm", alpha=alpha, how={"unimodal": "split"})
    start = parameters(step.model)
    step(first)
    before = parameters(step.model)
    result = step(batch)
    after = parameters(step.model)
    data = oracle.arrays(batch)
    running = [scaling.agm_losses(scaling.agm_parts(start, oracle.arrays(first)), oracle.arrays(first))]
    losses = scaling.agm_losses(scaling.agm_parts(before, data), data)
    k = scaling.agm_coefficients(losses, running, alpha)
    assert max(abs(v - 1) for v in k.values()) > 0.05
    for m in k:
        assert result.statistics[f"agm_loss_{m}"] == pytest.approx(losses[m], abs=1e-12)
        assert result.statistics[f"agm_coefficient_{m}"] == pytest.approx(k[m], abs=1e-12)
    assert len(result.statistics) == 2 * len(k), "an absent modality takes no part"
    assert result.loss == pytest.approx(oracle.joint_loss(before, data), abs=1e-12)
    expected = oracle.gradient(lambda p: scaling.agm_loss(p, before, data, k), before)
    for name, g in expected.items():
        np.testing.assert_allclose(before[name] - after[name], g, rtol=1e-6, atol=1e-9, err_msg=name)


FUSIONS = [
    {"fusion": "concat", "absence": "feature"},
    {"fusion": "gated", "absence": "token"},
    {"fusion": "attention", "absence": "drop"},
    {"fusion": "average", "absence": "drop"},
    {"early": True, "absence": "drop"},
]


def parts_of(model, data):
    """AGM's parts of a batch, and from full passes over masked batches the logits of every set of modalities."""
    step = make_step("agm", model=model)
    [ctx] = contexts_of(step, [data])
    step._forward(ctx)
    found = step.balancer.parts(ctx)
    table = {}
    with torch.no_grad():
        for bits in range(1, 8):
            some = torch.tensor([bool(bits >> j & 1) for j in range(3)])
            z = model(data["inputs"], data["present"] & some).logits
            table[frozenset(some.nonzero().flatten().tolist())] = z.numpy()
    return ctx, found, table


@pytest.mark.parametrize("how", FUSIONS, ids=lambda how: how.get("fusion", "early"))
def test_agm_s_parts_are_shapley_values_of_the_logits(how):
    data = global_batch(0, torch.float64)
    ctx, parts, table = parts_of(build_model(torch.float64, unimodal="coalition", **how), data)
    expected = scaling.shapley_parts(table, data["present"].numpy())
    for j, z in enumerate(parts.values()):
        np.testing.assert_allclose(z.detach(), expected[j], atol=1e-12)
        assert (z[~data["present"][:, j]] == 0).all()
    torch.testing.assert_close(sum(parts.values()), ctx.outputs.logits, rtol=0, atol=1e-12)


@pytest.mark.parametrize("absent", [False, True])
def test_agm_s_parts_of_two_modalities_are_the_authors(absent):
    torch.manual_seed(0)
    model = LateFusion({m: MLP(n, (5,), 5) for m, n in (("a", 7), ("b", 4))}, CLASSES, "gated").double()
    data = global_batch(0, torch.float64)
    data = {**data, "inputs": {m: data["inputs"][m] for m in "ab"}, "present": torch.ones(12, 2, dtype=torch.bool)}
    data["present"][3, 1] = not absent
    step = make_step("agm", model=model)
    [ctx] = contexts_of(step, [data])
    step._forward(ctx)
    parts, whole = step.balancer.parts(ctx), ctx.outputs.logits
    for m, other in ("ab", "ba"):
        rows = data["present"].all(dim=1)
        theirs = (whole - ctx.fuse([other]) + ctx.fuse([m])) / 2
        torch.testing.assert_close(parts[m][rows], theirs[rows])
    torch.testing.assert_close(parts["a"][3], whole[3] if absent else parts["a"][3])
    assert (parts["b"][3] == 0).all() == absent


@pytest.mark.parametrize("how", FUSIONS[1:4], ids=lambda how: how["fusion"])
def test_agm_s_gradient_with_any_fusion_is_that_of_scaled_parts(how):
    # By full passes: value of the part, k times its gradient, as the authors' hook on it does.
    data = global_batch(0, torch.float64)
    step = make_step("agm", alpha=2.0, how={"unimodal": "heads", **how})
    step(global_batch(1, torch.float64))
    model, names, present = step.model, list(SHAPES), data["present"]
    running, before = [step.balancer.state_dict()["mean"]], parameters(model)

    def logits(members):
        keep = present & torch.tensor([m in members for m in names])
        return torch.where(keep.any(dim=1)[:, None], model(data["inputs"], keep).logits, 0.0)

    parts = {}
    for m in names:
        a, b = (o for o in names if o != m)
        parts[m] = (
            logits(m) / 3 + (logits(m + a) - logits(a)) / 6 + (logits(m + b) - logits(b)) / 6
            + (logits("abc") - logits(a + b)) / 3
        )  # fmt: skip
    losses = scaling.agm_losses({m: z.detach().numpy() for m, z in parts.items()}, oracle.arrays(data))
    k = scaling.agm_coefficients(losses, running, 2.0)
    z = sum(p.detach() + k[m] * (p - p.detach()) for m, p in parts.items())
    model.zero_grad()
    torch.nn.functional.cross_entropy(z, data["target"]).backward()
    expected = {n: torch.zeros_like(p) if p.grad is None else p.grad.clone() for n, p in model.named_parameters()}
    step(data)
    for name, p in model.named_parameters():
        np.testing.assert_allclose(before[name] - p.detach().numpy(), expected[name], rtol=1e-9, atol=1e-12)


def test_agm_slows_the_modality_that_is_ahead():
    # A public benchmark has the sign inverted: 1.38 and 0.40 where the authors' formula gives 0.39 and 1.39.
    k = {m: math.exp(1.0 - r) for m, r in ratios({"audio": 0.5, "visual": 1.2}).items()}
    assert k["audio"] == pytest.approx(math.exp(1 - math.exp(0.7)))
    assert k["audio"] < 0.4 < 1 < k["visual"]
    assert ratios({"a": 1.0, "b": 2.0, "c": 4.0})["a"] == pytest.approx(math.exp(3.0 - 1.0)), "the mean of the others"
    assert ratios({"a": 5.0}) == {"a": 1.0}
    _, _, [first] = train("agm")
    loss = {m: first.statistics[f"agm_loss_{m}"] for m in SHAPES}
    for m in SHAPES:  # in the first step, against 1
        ahead = loss[m] < np.mean([loss[o] for o in SHAPES if o != m])
        assert (first.statistics[f"agm_coefficient_{m}"] < 1) == ahead


def test_agm_of_extreme_losses_stays_a_number():
    # All certain and wrong in one modality, certain and right in the other: rows count as 1e-8 at least.
    step = make_step("agm", model=LateFusion({m: torch.nn.Linear(3, 3, bias=False) for m in "ab"}, 3).double())
    with torch.no_grad():
        for m in "ab":
            step.model.encoders[m].weight.copy_(torch.eye(3) * (1.0 if m == "a" else -1.0))
        step.model.fusion.head.weight.copy_(torch.eye(3).repeat(1, 2))
        step.model.fusion.head.bias.zero_()
    ids = torch.arange(3)
    data = {
        "sample_id": ids, "copy": 0 * ids, "target": ids, "present": torch.ones(3, 2, dtype=torch.bool),
        "inputs": {"a": 1e4 * torch.eye(3, dtype=torch.float64), "b": 1e4 * torch.eye(3, dtype=torch.float64)},
    }  # fmt: skip
    found = step(data).statistics
    assert found["agm_loss_b"] == pytest.approx(-math.log(1e-8))
    assert found["agm_coefficient_a"] == 0.0
    assert found["agm_coefficient_b"] == pytest.approx(math.exp(1 - 1e-8))
    again = step({**data, "inputs": {"a": data["inputs"]["b"] * 0, "b": data["inputs"]["a"] * 0}}).statistics
    assert again["agm_coefficient_a"] == pytest.approx(math.exp(10.0)), "the largest exponent"


def test_agm_s_running_means_count_a_step_once_and_only_where_a_modality_is():
    step = make_step("agm")
    whole = [global_batch(t, torch.float64) for t in (0, FULL, 1)]
    reported = []
    for data in whole:
        reported.append(step([take(data, slice(0, 5)), take(data, slice(5, 12))]).statistics)
    state = step.balancer.state_dict()
    assert state["steps"] == {"a": 3, "b": 2, "c": 3}
    for m in SHAPES:
        seen = [r[f"agm_loss_{m}"] for r in reported if f"agm_loss_{m}" in r]
        assert state["mean"][m] == pytest.approx(np.mean(seen))


def test_agm_with_one_modality_is_joint():
    def trained(name):
        torch.manual_seed(0)
        step = make_step(name, model=LateFusion({"a": MLP(7, (5,), 5)}, CLASSES).double())
        for t in range(3):
            data = global_batch(t, torch.float64)
            step({**data, "inputs": {"a": data["inputs"]["a"]}, "present": torch.ones(12, 1, dtype=torch.bool)})
        return parameters(step.model)

    joint = trained("joint")
    for name, p in trained("agm").items():
        np.testing.assert_allclose(p, joint[name], rtol=1e-12)


# MSLR


@given(
    st.lists(st.one_of(st.just(math.nan), st.floats(0, 1)), max_size=12),
    st.floats(0, 3), st.integers(1, 6), st.booleans(),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_mslr_compares_the_newest_validation_with_the_mean_of_those_before(values, initial, memory, lower):
    balancer = balancers.get("mslr", memory=memory, initial={"a": initial})
    task = Regression(1, tolerance=1.0) if lower else Classification(CLASSES)
    balancer.check(build_model(torch.float64), task)
    for value in values:
        balancer.on_epoch(cells(**{task.headline: (value, 0.5, 0.5)}), None)
    again = balancers.get("mslr", memory=memory, initial={"a": initial})
    again.check(build_model(torch.float64), task)
    again.load_state_dict(balancer.state_dict())
    known = [v for v in values if not math.isnan(v)]
    expected = scaling.mslr_coefficient(initial, known, memory, lower_is_better=lower)
    for found in (balancer, again):
        ctx = make_context()
        k = found.coefficients(ctx)
        assert k["a"] == pytest.approx(expected, rel=1e-9)
        assert k["b"] == k["c"] == 1.0
        assert ctx.reports == {f"mslr_coefficient_{m}": k[m] for m in k}


def make_context():
    step = make_step("joint")
    [ctx] = contexts_of(step, [global_batch(0, torch.float64)])
    return ctx


def test_mslr_by_hand():
    balancer = balancers.get("mslr", initial={"a": 1.3, "b": 0.7})
    balancer.check(build_model(torch.float64), Classification(CLASSES))
    ctx = make_context()
    for a in (0.1, 0.2, 0.3, 0.4, 0.5):
        balancer.on_epoch(cells(accuracy=(a, 0.5, 0.0), loss=(9, 9, 9)), None)
        assert balancer.coefficients(ctx) == {"a": 1.3, "b": 0.7, "c": 1.0}
    balancer.on_epoch(cells(accuracy=(0.6, 0.25, 0.0)), None)
    assert balancer.coefficients(ctx) == pytest.approx({"a": 1.3 * 2, "b": 0.7 / 2, "c": 1.0})
    balancer.on_epoch({1: {"rows": 0.0, "loss": math.nan}, 2: {"accuracy": 0.45}, 4: {"accuracy": 0.9}}, None)
    assert balancer.coefficients(ctx) == pytest.approx({"a": 1.3 * 2, "b": 0.7, "c": 1.0}), "nothing is known of a"


@QUIET
@pytest.mark.parametrize("optimizer", [adamw, lambda p: sgd(p, lr=0.1, momentum=0.9, weight_decay=0.01)])
def test_mslr_is_a_learning_rate_a_modality(optimizer):
    initial = {"a": 1.5, "b": 0.25, "c": 0.0}
    _, found, _ = train("mslr", 8, optimizer, initial=initial, how={"unimodal": "split"})
    model = build_model(torch.float64, unimodal="split")
    made = optimizer(
        [{"params": list(model.encoders[m].parameters())} for m in SHAPES]
        + [{"params": list(model.fusion.parameters())}]
    )
    for group, m in zip(made.param_groups, SHAPES):
        group["lr"] *= initial[m]
    step = balancers.BalancedStep(model, Classification(CLASSES), balancers.get("joint"), made)
    for t in range(8):
        step(global_batch(t, torch.float64))
    for name, p in parameters(model).items():
        np.testing.assert_allclose(found[name], p, rtol=1e-9, atol=1e-12, err_msg=name)
    _, gradients, _ = train("mslr", 8, optimizer, initial=initial, apply="gradient", how={"unimodal": "split"})
    assert any(np.abs(gradients[n] - p).max() > 1e-4 for n, p in parameters(model).items()), (
        "a gradient is another thing"
    )


def test_mslr_refuses_what_is_no_modality():
    with pytest.raises(
        EquipoiseError, match=r"^Unknown modality in option 'initial' of balancer 'mslr': 'audio': known: .*\.$"
    ):
        make_step("mslr", initial={"audio": 2.0})
    for bad in ({"a": -1.0}, {"a": math.inf}, {"a": "much"}):
        with pytest.raises(EquipoiseError, match=r"Option 'initial.*' of balancer 'mslr'"):
            balancers.get("mslr", initial=bad)


# MSES


@given(st.lists(st.one_of(st.just(math.nan), st.sampled_from([0.1, 0.2, 0.3])), max_size=12), st.integers(1, 4))
@settings(max_examples=60, deadline=None)
def test_mses_stops_a_modality_for_good_once_its_lowest_loss_is_old(losses, patience):
    balancer = balancers.get("mses", patience=patience)
    balancer.check(build_model(torch.float64, unimodal="heads"), Classification(CLASSES))
    known = []
    for loss in losses:
        resumed = balancers.get("mses", patience=patience)
        resumed.check(build_model(torch.float64, unimodal="heads"), Classification(CLASSES))
        resumed.load_state_dict(balancer.state_dict())
        balancer = resumed
        balancer.on_epoch(cells(loss=(loss, 0.5 - 0.01 * len(known), math.nan)), None)
        known += [] if math.isnan(loss) else [loss]
        assert balancer.stopped("a") == (scaling.mses_stops(known, patience) is not None)
        assert not balancer.stopped("c")


@pytest.mark.parametrize("optimizer", [adamw, lambda p: sgd(p, lr=0.1, momentum=0.9, weight_decay=0.01)])
@pytest.mark.parametrize("apply", ["update", "gradient"])
@QUIET
def test_what_mses_stopped_does_not_move_a_bit(optimizer, apply):
    # A gradient of zeros does: by momentum and by decay.
    step = make_step("mses", optimizer=optimizer, patience=1, apply=apply)
    for t in range(3):
        step(global_batch(t, torch.float64))
    for loss in (0.5, 0.6):
        step.balancer.on_epoch(cells(loss=(loss, 1 - loss, loss)), None)
    before = parameters(step.model)
    for t in range(3, 8):
        result = step(global_batch(t, torch.float64))
    assert [result.statistics[f"mses_coefficient_{m}"] for m in SHAPES] == [0.0, 1.0, 0.0]
    for name, p in parameters(step.model).items():
        frozen = owner(name) in ("a", "c")
        if apply == "update":
            assert np.array_equal(p, before[name]) == frozen, name
        else:
            assert (p != before[name]).any(), name


def test_mses_descends_the_losses_of_summed_until_it_stops(batch):
    for weight in (0.0, 0.7):
        mses, summed = (make_step(n, weight=weight, how={"unimodal": "heads"}) for n in ("mses", "summed"))
        assert mses(batch).losses == summed(batch).losses
        for name, p in parameters(mses.model).items():
            np.testing.assert_allclose(p, parameters(summed.model)[name], rtol=0, atol=1e-15)


def test_mses_freezes_the_half_of_a_digit_that_overfits():
    images, target, order = halves_of_digits()
    some, held = order[:60], order[200:600]
    model = digits_model()
    balancer = balancers.get("mses", patience=2)
    step = balancers.BalancedStep(model, Classification(10), balancer, torch.optim.AdamW(model.parameters(), lr=0.01))
    before, history = {}, []
    for _ in range(60):
        for rows in some.split(20):
            step(rows_of(images, target, rows))
        history.append([unimodal_loss(model, images, target, held, m) for m in images])
        stopped = [balancer.stopped(m) for m in images]
        balancer.on_epoch({1 << i: {"loss": loss} for i, loss in enumerate(history[-1])}, None)
        for i, m in enumerate(images):
            if balancer.stopped(m) and not stopped[i]:
                before[m] = [p.detach().clone() for p in model.encoders[m].parameters()]
        if len(before) == 2:
            break
    stops = [scaling.mses_stops(losses, 2) for losses in zip(*history)]
    assert None not in stops, "both overfit sixty rows"
    assert min(stops) >= 4, "and learned something before"
    for m, then in before.items():
        assert all(torch.equal(p, q) for p, q in zip(model.encoders[m].parameters(), then)), m
    assert min(stops) < max(stops), "each by itself"


# Digits


def halves_of_digits():
    digits = load_digits()
    images = torch.from_numpy(digits.images.astype(np.float32)) / 16
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(images)))
    return {"left": images[:, :, :5], "right": images[:, :, 5:]}, torch.from_numpy(digits.target), order


def digits_model():
    torch.manual_seed(0)
    return LateFusion({"left": MLP((8, 5), (32,), 16), "right": MLP((8, 3), (32,), 16)}, 10, unimodal="heads")


def rows_of(images, target, rows):
    return {
        "sample_id": rows,
        "copy": torch.zeros(len(rows), dtype=torch.int16),
        "inputs": {m: x[rows] for m, x in images.items()},
        "present": torch.ones(len(rows), 2, dtype=torch.bool),
        "target": target[rows],
    }


def unimodal_loss(model, images, target, rows, modality):
    data = rows_of(images, target, rows)
    data["present"] = torch.tensor([m == modality for m in images]).expand(len(rows), -1)
    with torch.no_grad():
        z = model(data["inputs"], data["present"]).logits
    return float(torch.nn.functional.cross_entropy(z, data["target"]))


@QUIET
@pytest.mark.parametrize(
    ("optimizer", "apply"),
    [
        (lambda p: sgd(p, lr=0.2), "gradient"),
        (lambda p: sgd(p, lr=0.2), "update"),
        (lambda p: adamw(p, lr=3e-3, weight_decay=0), "update"),
    ],
    ids=["sgd, gradient", "sgd, update", "adamw, update"],
)
def test_agm_slows_the_stronger_half_of_a_digit(optimizer, apply):
    images, target, order = halves_of_digits()

    def moved(name, **options):
        model = digits_model()
        start = {m: [p.detach().clone() for p in model.encoders[m].parameters()] for m in images}
        step = balancers.BalancedStep(
            model, Classification(10), balancers.get(name, **options), optimizer(model.parameters())
        )
        seen = [step(rows_of(images, target, rows)).statistics for rows in order.split(64) * 4]
        far = {
            m: sum(float((p.detach() - q).square().sum()) for p, q in zip(model.encoders[m].parameters(), start[m]))
            ** 0.5
            for m in images
        }
        return far, {name: np.mean([s[name] for s in seen[-20:]]) for name in seen[0]}

    joint, _ = moved("joint")
    agm, last = moved("agm", apply=apply)
    kept = {m: agm[m] / joint[m] for m in images}
    assert last["agm_loss_left"] < last["agm_loss_right"], "the left five columns lead"
    assert last["agm_coefficient_left"] < 0.9
    assert last["agm_coefficient_right"] > 1.05
    assert kept["left"] < 0.95
    assert kept["right"] > 1.0


# Optimisers


@QUIET
def test_adam_cancels_a_constant_factor_of_the_gradient_but_not_of_the_update():
    def adam(p):
        return torch.optim.Adam(p, lr=1e-3)

    plain = train("mslr", 10, adam, how={"unimodal": "split"})
    found = {
        a: train("mslr", 10, adam, initial={"a": 0.1}, apply=a, how={"unimodal": "split"})
        for a in ("gradient", "update")
    }

    def far(run):
        return np.sqrt(sum(((run[1][n] - run[0][n]) ** 2).sum() for n in run[0] if owner(n) == "a"))

    assert far(found["gradient"]) == pytest.approx(far(plain), rel=0.01)
    assert far(found["update"]) == pytest.approx(0.1 * far(plain), rel=0.1)


def adaptive_ones():
    names = ["Adam", "AdamW", "Adamax", "NAdam", "RAdam", "RMSprop", "Adagrad", "Adadelta", "Rprop", "Adafactor"]
    return [getattr(torch.optim, name) for name in names]


WEIGHTS = [torch.nn.Parameter(torch.ones(2, 2))]


class Fussy(torch.optim.AdamW):
    """An adaptive optimiser whose constructor is like no other."""

    def __init__(self, schedule, *, model):
        super().__init__(model)
        self.schedule = schedule


class Normalised(torch.optim.SGD):
    """Steps of one length, by no name that a list would have."""

    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                p.grad /= p.grad.norm() + 1e-12
        return super().step(closure)


class Wrapper:
    """As Accelerate has it."""

    def __init__(self, optimizer):
        self.optimizer = optimizer


@pytest.mark.parametrize("kind", adaptive_ones(), ids=lambda k: k.__name__)
def test_adaptive_optimisers_are_known_by_what_they_do(kind):
    with torch.no_grad():
        WEIGHTS[0].fill_(1.0)
    optimizer = kind(WEIGHTS)
    assert cancels_scale(optimizer)
    assert cancels_scale(Wrapper(optimizer))
    assert not any(state["step"] for state in optimizer.state.values()), "it is another one that is tried"
    assert (WEIGHTS[0] == 1).all()
    assert WEIGHTS[0].grad is None


@pytest.mark.parametrize(
    ("optimizer", "expected"),
    [
        (torch.optim.SGD(WEIGHTS, lr=0.1), False),
        (torch.optim.SGD(WEIGHTS, lr=0.1, momentum=0.9, weight_decay=0.1, nesterov=True), False),
        (torch.optim.ASGD(WEIGHTS), False),
        (torch.optim.LBFGS(WEIGHTS), False),
        (torch.optim.SparseAdam(WEIGHTS), True),
        (torch.optim.AdamW(WEIGHTS, lr=torch.tensor(0.1), fused=True, weight_decay=3.0), True),
        (torch.optim.AdamW(WEIGHTS, eps=1e3), False),
        (torch.optim.Adam(WEIGHTS, lr=0.0), False),
        (Fussy("cosine", model=WEIGHTS), False),
        (Normalised(WEIGHTS, lr=0.1), True),
    ],
    ids=lambda value: type(value).__name__,
)
def test_other_optimisers_are_tried_too(optimizer, expected):
    assert cancels_scale(optimizer) == expected


@pytest.mark.parametrize("name", APPLY)
def test_a_method_that_scales_gradients_warns_of_adam(name):
    how = {"unimodal": balancers.get(name).accepts[0]}
    sentence = (
        rf"^Balancer '{name}' scales gradients \(apply='gradient'\), and AdamW divides a factor that changes slowly out of them "
        r"again, so that little is left of the scaling: use apply='update' \(balancer.options.apply=update\), which scales what "
        r"the optimiser did, or an optimiser such as SGD\.$"
    )
    with pytest.warns(UserWarning, match=sentence) as told:
        make_step(name, optimizer=adamw, apply="gradient", how=how)
    assert len(told) == 1
    assert told[0].filename == __file__, "it points at where the step is made"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make_step(name, optimizer=adamw, apply="update", how=how)
        make_step(name, optimizer=lambda p: sgd(p, momentum=0.9), apply="gradient", how=how)


def test_one_worker_warns_for_all(gloo):
    first, *others = gloo.run("step_cases", "warned", 2)
    assert len(first) == 1
    assert "Balancer 'ogm' scales gradients" in first[0]
    assert others == [[]]


def test_methods_without_a_choice_do_not_warn():
    assert {"agm", "mses", "mslr", "ogm", "ogm_ge"} <= set(APPLY)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make_step("summed", optimizer=adamw)


@pytest.mark.parametrize("name", ["agm", "mslr", "mses"])
def test_a_state_that_is_refused_changes_nothing(name):
    balancer = balancers.get(name)
    before = balancer.state_dict()
    with pytest.raises((KeyError, TypeError, ValueError)):
        balancer.load_state_dict({next(iter(before)): {"a": 1.0}} if len(before) > 1 else {"history": {"a": 3}})
    assert balancer.state_dict() == before


def test_which_tasks_each_claims():
    model = build_model(torch.float64, unimodal="heads")
    for task in (MultiLabel(CLASSES), Regression(CLASSES, tolerance=1.0), Segmentation(["x"])):
        for name in ("mslr", "mses"):
            balancers.get(name).check(model, task)
    balancers.get("agm").check(model, MultiLabel(CLASSES))
    with pytest.raises(
        EquipoiseError, match="'agm' is defined for classification, multilabel, not for the task 'regression'"
    ):
        balancers.get("agm").check(model, Regression(CLASSES, tolerance=1.0))


@pytest.mark.parametrize(
    ("name", "options"),
    [("agm", {"apply": "update"}), ("mslr", {}), ("mses", {}), ("mslr", {"apply": "gradient"})],
    ids=str,
)
def test_where_no_modality_owns_anything_scaling_it_is_refused(name, options):
    # It would be `joint` under another name.
    model = EarlyConcat({m: (d,) for m, d in SHAPES.items()}, CLASSES)
    with pytest.raises(
        EquipoiseError, match=rf"Balancer '{name}' scales what a modality owns, and in this EarlyConcat no"
    ):
        balancers.get(name, **options).check(model, Classification(CLASSES))
    balancers.get("agm").check(model, Classification(CLASSES))  # scales parts of the logits
    frozen = build_model(torch.float64)
    for m in frozen.modalities:
        frozen.encoders[m].requires_grad_(False)
    with pytest.raises(EquipoiseError, match="in this LateFusion no modality owns a trainable parameter"):
        balancers.get("ogm").check(frozen, Classification(CLASSES))
