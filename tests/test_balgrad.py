"""BalGrad: every vector of the specification, and a numpy version of the whole step over finite differences."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from oracles import balancers as base
from oracles import balgrad as oracle
from torch import nn
from world_cases import CLASSES, SHAPES, build_model, global_batch

from equipoise import balancers
from equipoise.balancers import Gradients
from equipoise.balancers.balgrad import BalGrad, bernoulli_kl, categorical_kl
from equipoise.balancers.gradients import Layout
from equipoise.models import MLP, Classification, LateFusion, MultiLabel
from equipoise.pipelines.config import load_config
from equipoise.pipelines.light import train_light

# Losses and weights.

A_V, A_L = [2.0, 1.0, 0.0], [0.0, 1.0, 0.5]


def slope(loss, target, logits):
    z = torch.tensor([logits], dtype=torch.float64, requires_grad=True)
    value = loss(target, z).sum()
    return value.item(), torch.autograd.grad(value, z)[0][0].tolist()


def test_categorical_divergence_by_hand():
    # T1: the other modality is the fixed target.
    p_v, p_l = (torch.tensor([z], dtype=torch.float64).softmax(dim=1) for z in (A_V, A_L))
    for target, logits, value, gradient in (
        (p_l, A_V, 0.50828679, [0.478917, -0.261752, -0.217165]),
        (p_v, A_L, 0.55813033, [-0.478917, 0.261752, 0.217165]),
    ):
        found, by_logits = slope(categorical_kl, target, logits)
        assert found == pytest.approx(value, abs=1e-8)
        np.testing.assert_allclose(by_logits, gradient, atol=1e-6)
        # The other direction, or probabilities taken for log-probabilities, would give other numbers.
        assert by_logits != pytest.approx([0.475337, -0.314590, -0.160747], abs=1e-3)


def test_bernoulli_divergence_by_hand():
    # T5, the mean over labels
    target = torch.tensor([[0.0, 2.0]], dtype=torch.float64).sigmoid()
    value, gradient = slope(bernoulli_kl, target, [1.0, -1.0])
    assert value == pytest.approx(0.474420, abs=1e-6)
    np.testing.assert_allclose(gradient, [0.231059 / 2, -0.611856 / 2], atol=1e-6)
    certain = bernoulli_kl(torch.tensor([[0.0, 1.0]]), torch.zeros(1, 2))
    assert certain.item() == pytest.approx(np.log(2)), "a certain target must not make NaN"


@pytest.mark.parametrize(
    ("losses", "options", "expected"),
    [
        ((0.4, 1.2), {}, (0.25, 0.75)),  # T2
        ((1, 1), {}, (0.5, 0.5)),
        ((0, 2), {}, (0, 1)),
        ((0, 0), {}, (0.5, 0.5)),
        ((0.40760596, 1.68026967), {}, (0.195225, 0.804775)),  # T1
        ((0.313262, 1.410038), {}, (0.181780, 0.818220)),  # T5
        ((0.4, 1.2), {"weights": "equal"}, (0.5, 0.5)),
        ((0.4, 1.2), {"reweight": False}, (0.5, 0.5)),
        ((0.4, 1.2), {"weights": "softmax", "tau": 0.5}, (1 / (1 + np.exp(1.6)), 1 / (1 + np.exp(-1.6)))),
        ((1e4, 1.2), {"weights": "softmax"}, (1, 0)),
        ((1, 2, 5), {}, (1 / 8, 2 / 8, 5 / 8)),
    ],
)
def test_weights(losses, options, expected):
    names = "vls"[: len(losses)]
    ctx = SimpleNamespace(
        modalities=tuple(names), counts=dict.fromkeys(names, 4.0),
        statistics={m: torch.tensor(4.0 * v, dtype=torch.float64) for m, v in zip(names, losses, strict=True)},
    )  # fmt: skip
    found = balancers.get("balgrad", **options)._weights(ctx)
    np.testing.assert_allclose(list(found.values()), expected, atol=1e-6)


# Projection.


def combined(rows, sizes, reports=None, names=("fused", "unimodal", "kl"), **options):
    """What BalGrad makes of gradients over the columns of modalities of these sizes, all reached by all."""
    groups = {m: [nn.Parameter(torch.zeros(n))] for m, n in zip("vl", sizes, strict=True)} | {"shared": [], "head": []}
    flat = torch.tensor(rows, dtype=torch.float64)
    found = Gradients(flat, names, Layout.of(groups), torch.ones(len(rows), len(sizes), dtype=torch.bool))
    said = {} if reports is None else reports
    ctx = SimpleNamespace(modalities=("v", "l"), report=said.__setitem__)
    return balancers.get("balgrad", **options).combine(found, ctx).numpy()


@pytest.mark.parametrize(
    ("g_t", "g_kl", "dot", "expected"),
    [
        ([3, 4], [-1, 0], -3, [0, 4]),
        ([3, 4], [1, 0], 3, [3, 4]),
        ([2, -2], [-1, 1], -4, [0, 0]),
        ([1, 2, -1], [-1, 0, 1], -2, [0, 2, 0]),
        ([0, 5], [3, 0], 0, [0, 5]),
        ([1, 1], [0, 0], 0, [1, 1]),
    ],
)  # fmt: skip
def test_projection_by_hand(g_t, g_kl, dot, expected):
    # T3
    said = {}
    found = combined([g_t, [0] * len(g_t), g_kl], (1, len(g_t) - 1), said)
    np.testing.assert_allclose(found - g_kl, expected, atol=1e-12)
    assert said["balgrad_product"] == pytest.approx(dot)
    assert said["balgrad_conflict"] == (dot < 0)
    assert (found - g_kl) @ g_kl == pytest.approx(max(dot, 0), abs=1e-12)
    np.testing.assert_allclose(oracle.projected(np.array(g_t), np.array(g_kl)), expected, atol=1e-12)
    plain = combined([g_t, [0] * len(g_t), g_kl], (1, len(g_t) - 1), project=False)
    np.testing.assert_allclose(plain, np.add(g_t, g_kl))


def test_projection_over_two_blocks():
    # T4: as one vector, or block by block; with the unimodal gradients added the whole update.
    g_t, g_kl = [1, 2, -1, 0.5], [-0.5, 0, 0.375, -0.75]
    one = combined([g_t, [0] * 4, g_kl], (2, 2)) - g_kl
    np.testing.assert_allclose(one, [0.344262, 2, -0.508197, -0.483607], atol=1e-6)
    np.testing.assert_allclose(combined([g_t, [0] * 4, g_kl], (2, 2), blockwise=True) - g_kl, [0, 2, -0.6, -0.3])
    whole = combined([g_t, [0.1, 0.2, 0.3, -0.1], g_kl], (2, 2))
    np.testing.assert_allclose(whole, [-0.055738, 2.2, 0.166803, -1.333607], atol=1e-6)


def test_blocks_may_be_in_conflict_where_the_whole_is_not():
    # T4b
    g_t, g_kl = [4, 0, -1, 0], [1, 0, 1, 0]
    np.testing.assert_allclose(combined([g_t, [0] * 4, g_kl], (2, 2)) - g_kl, g_t)
    np.testing.assert_allclose(combined([g_t, [0] * 4, g_kl], (2, 2), blockwise=True) - g_kl, [4, 0, 0, 0])


# The whole step.

H_V, H_L = [[0.5, -0.5], [0.25, 0.5]], [[-0.5, 0.25], [1, 0.5]]
F_V, F_L = np.eye(2), [[1, -1], [0.5, 0.5]]
F_T = [[0.5, -1, 0.25, 0], [-0.5, 0.5, 0, 1]]


class Linear(nn.Linear):
    """Without a bias, which the vectors do not have."""

    def __init__(self, weight):
        super().__init__(2, 2, bias=False)
        self.weight = nn.Parameter(torch.tensor(weight, dtype=torch.float64))


def t6(y, balancer=None, **options):
    """The step of T6: {parameter: what SGD with learning rate 1 subtracted}, and what the balancer reported."""
    model = LateFusion({"v": Linear(H_V), "l": Linear(H_L)}, 2, unimodal="heads").double()
    with torch.no_grad():
        for name, weight in (("v", F_V), ("l", F_L)):
            model.heads[name].weight.copy_(torch.as_tensor(np.array(weight)))
            model.heads[name].bias.zero_()
        model.fusion.head.weight.copy_(torch.tensor(F_T))
        model.fusion.head.bias.zero_()
    before = {n: p.detach().numpy().copy() for n, p in model.named_parameters()}
    batch = {
        "sample_id": torch.tensor([0]), "copy": torch.zeros(1, dtype=torch.int16),
        "inputs": {"v": torch.tensor([[1.0, 2.0]]).double(), "l": torch.tensor([[1.0, -1.0]]).double()},
        "present": torch.ones(1, 2, dtype=torch.bool), "target": torch.tensor([y]),
    }  # fmt: skip
    balancer = balancer or balancers.get("balgrad", **options)
    sgd = torch.optim.SGD(model.parameters(), lr=1.0)
    result = balancers.BalancedStep(model, Classification(2), balancer, sgd)(batch)
    return {n: before[n] - p.detach().numpy() for n, p in model.named_parameters()}, result


def test_a_whole_step_in_conflict():
    # T6, y = 1
    found, result = t6(1)
    assert result.losses["fused"] == pytest.approx(0.045710, abs=1e-6)
    assert result.losses["unimodal"] == pytest.approx(0.160224 + 0.281150, abs=1e-6)
    assert result.losses["kl"] == pytest.approx(0.363012 * 0.032252 + 0.636988 * 0.028396, abs=1e-6)
    expected = {
        "encoders.v.weight": [[0.145543, 0.291087], [-0.167884, -0.335767]],
        "encoders.l.weight": [[0.175111, -0.175111], [-0.536503, 0.536503]],
        "heads.v.weight": [[-0.056411, 0.141027], [0.056411, -0.141027]],
        "heads.l.weight": [[-0.230173, 0.153448], [0.230173, -0.153448]],
        "fusion.head.weight": [[-0.022340, 0.055851, -0.033511, 0.022340], [0.022340, -0.055851, 0.033511, -0.022340]],
    }
    for name, gradient in expected.items():
        np.testing.assert_allclose(found[name], gradient, atol=2e-6, err_msg=name)
    said = result.statistics
    assert said["balgrad_weight_v"] == pytest.approx(0.363012, abs=1e-6)
    assert said["balgrad_loss_v"] == pytest.approx(0.160224, abs=1e-6)
    assert said["balgrad_loss_l"] == pytest.approx(0.281150, abs=1e-6)
    assert said["balgrad_product"] == pytest.approx(-0.01069816, abs=1e-8)
    assert said["balgrad_cosine"] == pytest.approx(-0.31465475, abs=1e-7)
    assert said["balgrad_conflict"] == 1


def test_a_whole_step_block_by_block():
    found, _ = t6(1, blockwise=True)
    g_t_and_rest = {  # blockwise g_T of T6, plus g_T^m and the reweighted g_kl
        "encoders.v.weight": np.add([-0.011170, -0.022340, -0.011170, -0.022340], [0.148047, 0.296094, -0.148047, -0.296094])
        + 0.363012 * np.array([-0.097038, -0.194076, 0.097038, 0.194076]),
        "encoders.l.weight": np.add([0.011170, -0.011170, -0.044681, 0.044681], [0.122543, -0.122543, -0.367628, 0.367628])
        + 0.636988 * np.array([0.048519, -0.048519, -0.145557, 0.145557]),
    }  # fmt: skip
    for name, gradient in g_t_and_rest.items():
        np.testing.assert_allclose(found[name].ravel(), gradient, atol=3e-6, err_msg=name)


def test_a_whole_step_without_conflict():
    # T6, y = 0
    found, result = t6(0)
    np.testing.assert_allclose(
        np.concatenate([found["encoders.v.weight"].ravel(), found["encoders.l.weight"].ravel()]),
        [-1.863165, -3.726331, 2.340825, 4.681650, -0.595715, 0.595715, 2.025975, -2.025975],
        atol=1e-5,
    )
    assert result.statistics["balgrad_product"] == pytest.approx(0.539708, abs=1e-6)
    assert result.statistics["balgrad_cosine"] == pytest.approx(0.661414, abs=1e-6)


@pytest.mark.parametrize(("weights", "w_v"), [("norm", 0.460706), ("inverse", 0.216983 / (0.306861 + 0.216983))])
def test_weights_by_norms_of_gradients(weights, w_v):
    _, result = t6(1, weights=weights)
    assert result.statistics["balgrad_weight_v"] == pytest.approx(w_v, abs=1e-6)
    assert result.statistics["balgrad_weight_l"] == pytest.approx(1 - w_v, abs=1e-6)
    assert set(result.losses) == {"fused", "v", "l", "kl/v", "kl/l"}


class Kept(BalGrad):
    """BalGrad whose losses are kept apart, weighed afterwards by what the loss weights of T6 are."""

    name = ""
    by_norm = True

    def _norm_weights(self, gradients):
        return {"v": 0.3630121, "l": 0.6369879}


def test_losses_weighed_before_or_kept_apart_and_weighed_after_give_the_same_step():
    (found, _), (apart, _) = t6(1), t6(1, Kept())
    for name in found:
        np.testing.assert_allclose(apart[name], found[name], atol=1e-6)


@pytest.mark.parametrize("weights", ["loss", "norm", "inverse"])
def test_the_name_of_a_modality_decides_nothing(weights):
    found = {}
    for names in (("a", "b", "c"), ("kl", "klaxon", "unimodal")):
        rename = dict(zip("abc", names, strict=True))
        torch.manual_seed(3)
        encoders = {rename[m]: MLP((d,), hidden=(6,), out_features=5) for m, d in SHAPES.items()}
        model = LateFusion(encoders, CLASSES, unimodal="heads").double()
        sgd = torch.optim.SGD(model.parameters(), lr=0.3)
        step = balancers.BalancedStep(model, Classification(CLASSES), balancers.get("balgrad", weights=weights), sgd)
        for t in range(3):
            data = global_batch(t, torch.float64)
            step(data | {"inputs": {rename[m]: x for m, x in data["inputs"].items()}})
        found[names] = torch.cat([p.detach().flatten() for p in model.parameters()])
    torch.testing.assert_close(*found.values(), rtol=0, atol=0)


# Three modalities, rows that lack some, several labels: against numpy.


def flat(gradient):
    return np.concatenate([g.ravel() for g in gradient.values()])


CASES = [
    *((number, single, {}, True) for number in (0, 5) for single in (True, False)),
    (0, True, {}, False),
    *((0, True, options, True) for options in ({"project": False}, {"reweight": False})),
]


@pytest.mark.parametrize(("number", "single", "options", "conflict"), CASES)
def test_a_step_is_the_numpy_version_over_finite_differences(number, single, options, conflict):
    data = global_batch(number, torch.float64)
    if not single:
        rng = np.random.default_rng(number)
        data["target"] = torch.from_numpy((rng.random((len(data["target"]), CLASSES)) < 0.4).astype(np.float64))
    model = build_model(torch.float64, unimodal="heads")
    # Which of the two heads opposes what the modalities learn from each other is found out by trying, and asserted below.
    with torch.no_grad():
        model.fusion.head.weight.mul_(1 if conflict == (number == 0) else -4)
    p = {n: v.detach().numpy().copy() for n, v in model.named_parameters()}
    task = Classification(CLASSES) if single else MultiLabel(CLASSES)
    sgd = torch.optim.SGD(model.parameters(), lr=1.0)
    result = balancers.BalancedStep(model, task, balancers.get("balgrad", **options), sgd)(data)
    moved = flat({n: p[n] - v.detach().numpy() for n, v in model.named_parameters()})

    batch = base.arrays(data)
    fixed = base.unimodal_logits(p, batch, "heads")
    levels = oracle.unimodal_losses(fixed, batch, single)
    w = oracle.loss_shares(levels) if options.get("reweight", True) else dict.fromkeys(levels, 1 / len(levels))

    def fused(q):
        z = base.fused_logits(q, batch)
        return oracle.unimodal_losses({"fused": z}, batch | {"present": np.ones((len(z), 1), bool)}, single)["fused"]

    def unimodal(q):
        return sum(oracle.unimodal_losses(base.unimodal_logits(q, batch, "heads"), batch, single).values())

    def kl(q):
        found = oracle.divergences(base.unimodal_logits(q, batch, "heads"), fixed, batch, single)
        return sum(w[m] * v for m, v in found.items())

    for name, loss in (("fused", fused), ("unimodal", unimodal), ("kl", kl)):
        assert result.losses[name] == pytest.approx(loss(p), abs=1e-12)
    g_t, g_uni, g_kl = (flat(base.gradient(loss, p)) for loss in (fused, unimodal, kl))
    # Own heads see nothing of the fused loss, the fused head nothing of the KL loss: neither takes part in the projection.
    both = np.concatenate([np.full(v.size, n.startswith("encoders.")) for n, v in p.items()])
    assert result.statistics["balgrad_product"] == pytest.approx(g_t[both] @ g_kl[both], abs=1e-7)
    if single and options.get("reweight", True):
        assert (result.statistics["balgrad_product"] < 0) == conflict
    aim = g_t.copy()
    if options.get("project", True):
        aim[both] = oracle.projected(g_t[both], g_kl[both])
    np.testing.assert_allclose(moved, aim + g_uni + g_kl, atol=2e-7)
    assert (aim[both] @ g_kl[both] >= -1e-9) or not options.get("project", True)


def test_one_modality_has_no_other_to_learn_from():
    torch.manual_seed(0)
    model = LateFusion({"v": Linear(H_V)}, 2, unimodal="heads").double()
    batch = {
        "sample_id": torch.arange(3), "copy": torch.zeros(3, dtype=torch.int16),
        "inputs": {"v": torch.randn(3, 2, dtype=torch.float64)}, "present": torch.ones(3, 1, dtype=torch.bool),
        "target": torch.tensor([0, 1, 0]),
    }  # fmt: skip
    sgd = torch.optim.SGD(model.parameters(), lr=1.0)
    result = balancers.BalancedStep(model, Classification(2), balancers.get("balgrad"), sgd)(batch)
    assert set(result.losses) == {"fused", "unimodal"}


def test_on_digits_no_step_opposes_what_the_modalities_learn_from_each_other(data, monkeypatch):
    # Seen from outside: the three gradients before, the step after, over the encoders.
    products = []
    inner = BalGrad.combine

    def watched(self, gradients, ctx):
        g_t, g_uni, g_kl = gradients.flat.clone().double()
        step = inner(self, gradients, ctx).double()
        encoders = torch.zeros_like(step, dtype=torch.bool)
        for m in ctx.modalities:
            own = sum(p.numel() for p in ctx.model.encoders[m].parameters())
            start = gradients.layout.owners[m].start
            encoders[start : start + own] = True
        scale = (g_t[encoders].norm() * g_kl[encoders].norm()).item()
        after = (step - g_uni - g_kl)[encoders] @ g_kl[encoders]
        products.append(((g_t[encoders] @ g_kl[encoders]).item() / scale, after.item() / scale))
        return step.to(gradients.flat.dtype)

    monkeypatch.setattr(BalGrad, "combine", watched)
    config = {"data": data, "out": "unused", "balancer": "balgrad", "max_steps": 150, "batch_size": 100}
    train_light(load_config({**config, "optimizer": {"lr": 0.01}}))
    before, after = np.array(products).T
    assert (before < -0.01).sum() > 10, "nothing was in conflict"
    assert after.min() > -1e-4  # float32
    np.testing.assert_allclose(after[before > 0], before[before > 0], atol=1e-4)
