"""MMPareto, PCGrad, MGDA and TorchJD's aggregators: numpy versions, brute force, TorchJD itself, planted faults."""

from importlib.util import find_spec
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import balancers as oracle
from oracles.gmd import projected
from oracles.pareto import min_norm_point, mmpareto_encoder, projected_on_dual_cone
from sklearn.datasets import load_digits
from torch import nn
from world_cases import CLASSES, build_model, global_batch

from equipoise import balancers
from equipoise.balancers import BalancedStep, Gradients, min_norm_weights, remove_conflicts
from equipoise.balancers import jd as jd_module
from equipoise.balancers.conflicts import random_orders
from equipoise.balancers.gradients import Layout
from equipoise.balancers.jd import projected_weights
from equipoise.balancers.mmpareto import MMPareto
from equipoise.models import MLP, Classification, EquipoiseError, LateFusion
from equipoise.models.rowhash import seed_of

FULL = 5  # `global_batch(FULL)`: no row has "b"; the others miss some of each
METHODS = ["mmpareto", "pcgrad", "mgda", "jd"]

try:
    from torchjd import aggregation
except ImportError:
    aggregation = None
needs_torchjd = pytest.mark.skipif(aggregation is None, reason="TorchJD is not installed: pip install 'equipoise[jd]'")
needs = {"jd": [needs_torchjd]}


def each(names):
    return [pytest.param(name, marks=needs.get(name, [])) for name in names]


# Min-norm points


def weights_of(gradients):
    g = torch.tensor(gradients, dtype=torch.float64)
    return min_norm_weights(g @ g.T).numpy()


#: Of inner products [[4, -1], [-1, 1]].
CONFLICT = [[2, 0], [-1 / 2, np.sqrt(3) / 2]]


@pytest.mark.parametrize(
    ("gradients", "expected"),
    [
        (CONFLICT, [2 / 7, 5 / 7]),
        ([[1, 0], [0, 1]], [1 / 2, 1 / 2]),
        ([[1, 0], [0, 2]], [4 / 5, 1 / 5]),
        ([[1, 1], [3, 3]], [1, 0]),
        ([[3, 3], [1, 1]], [0, 1]),
        ([[1, 2], [1, 2]], [1 / 2, 1 / 2]),
        ([[1, 0], [-2, 0]], [2 / 3, 1 / 3]),
        ([[0, 0], [1, 2]], [1, 0]),
        ([[0, 0], [0, 0]], [1 / 2, 1 / 2]),
        ([[5, 5]], [1]),
        ([[1, 0, 0], [0, 1, 0], [0, 0, 1]], [1 / 3, 1 / 3, 1 / 3]),
        ([[1, 0, 0], [0, 2, 0], [0, 0, 4]], np.array([16, 4, 1]) / 21),
        ([[1, 0, 0], [0, 1e-6, 0], [0, 0, 1e6]], np.array([1e-12, 1, 1e-24]) / (1 + 1e-12 + 1e-24)),
        ([[1, 1], [-1, 1], [0, 9]], [1 / 2, 1 / 2, 0]),
        ([[1, 2], [0, 0], [-1, -2]], [0, 1, 0]),
    ],
)
def test_min_norm_weights_of_hand_worked_gradients(gradients, expected):
    # Relative: a weight of 1e-24 is of a gradient that is a million times longer, and must be as exact as the others.
    np.testing.assert_allclose(weights_of(gradients), expected, rtol=1e-9, atol=1e-300)


VECTORS = st.integers(1, 5).flatmap(
    lambda k: st.lists(st.lists(st.integers(-6, 6).map(float), min_size=4, max_size=4), min_size=k, max_size=k)
)


@settings(max_examples=150, deadline=None)
@given(VECTORS, st.integers(-6, 6))
def test_min_norm_weights_are_those_of_brute_force_over_all_faces(gradients, exponent):
    g = np.array(gradients) * 10.0**exponent
    w = weights_of(g.tolist())
    assert (w >= 0).all()
    assert w.sum() == pytest.approx(1, abs=1e-12)
    largest = max(np.abs(g).max(), 1e-12)
    # The point is unique, the weights are not where gradients depend on each other.
    np.testing.assert_allclose(w @ g, min_norm_point(g), atol=1e-6 * largest)


def test_no_objective_rises_along_the_min_norm_point_whatever_the_gradients_lengths():
    rng = np.random.default_rng(0)
    for k in (2, 3, 4, 6, 8):
        for _ in range(20):
            g = rng.normal(size=(k, 12)) * 10 ** rng.uniform(-6, 6, size=(k, 1))
            d = weights_of(g.tolist()) @ g
            # <g_i, d> >= |d|^2: the condition of an optimum, too.
            assert ((g @ d - d @ d) / np.linalg.norm(g, axis=1) / np.linalg.norm(d) > -1e-9).all()


@pytest.mark.parametrize("gram", [[[1.0, float("nan")], [0.0, 1.0]], [[1.0, 2.0]]])
def test_inner_products_that_are_none_are_refused(gram):
    with pytest.raises(EquipoiseError, match="Inner products must be a finite matrix"):
        min_norm_weights(torch.tensor(gram))


# Gradients given by hand: encoder of "a" in two tensors, of "b" in one, an own head of "a", a fused head.

SIZES = {"a": [2, 3, 1], "b": [2], "shared": [], "head": [2]}


def by_hand(**rows):
    """Gradients of named objectives; each row has the ten numbers of SIZES. A tensor of zeros counts as not reached."""
    groups = {owner: [nn.Parameter(torch.zeros(n)) for n in sizes] for owner, sizes in SIZES.items()}
    layout = Layout.of(groups)
    flat = torch.tensor(list(rows.values()), dtype=torch.float64)
    reached = torch.stack([(flat[:, part] != 0).any(dim=1) for part in layout.tensors], dim=1)
    return Gradients(flat, tuple(rows), layout, reached)


def combined(name, gradients, losses=None, **options):
    reports = {}
    ctx = SimpleNamespace(
        modalities=("a", "b"), report=reports.__setitem__, agreed=lambda t: t, losses=losses or {},
        generator=lambda purpose: torch.Generator().manual_seed(3),
    )  # fmt: skip
    return balancers.get(name, **options).combine(gradients, ctx).numpy(), reports


def test_mmpareto_in_conflict_is_the_min_norm_point_as_long_as_the_plain_sum():
    # One tensor in conflict: a = (2/7, 5/7), h = (3, 5 sqrt(3)) / 7; the plain sum (3, sqrt(3)) / 2 has norm sqrt(3).
    (x, _), (u, v) = CONFLICT
    g = by_hand(fused=[x, 0, 0, 0, 0, 0, 1, 2, 7, 7], a=[u, v, 0, 0, 0, 5, 0, 0, 0, 0], b=[0] * 6 + [3, 4, 0, 0])
    found, reports = combined("mmpareto", g)
    step = 1.5 * np.sqrt(3) * np.array([3, 5 * np.sqrt(3)]) / np.sqrt(84)
    np.testing.assert_allclose(found, [*step, 0, 0, 0, 5, 6, 9, 7, 7], rtol=1e-12)
    assert reports == pytest.approx(
        {
            "mmpareto_cosine_a": -1 / 2, "mmpareto_conflict_a": 1, "mmpareto_fused_share_a": 2 / 7,
            "mmpareto_norm_a": 1.5 * np.sqrt(3),
            "mmpareto_cosine_b": 11 / np.sqrt(125), "mmpareto_conflict_b": 0, "mmpareto_fused_share_b": 0.5,
            "mmpareto_norm_b": 1.5 * np.sqrt(52),
        }
    )  # fmt: skip


def test_mmpareto_rescales_each_tensor_by_itself():
    # As one vector the encoder of "a" is in conflict: (4, -1, 3, 0, 0) . (-1, 1, 0, 3, 0) = -5.
    fused, own = np.array([4.0, -1, 3, 0, 0]), np.array([-1.0, 1, 0, 3, 0])
    g = by_hand(fused=[*fused, 0, 1, 1, 1, 1], a=[*own, 0, 0, 0, 0, 0])
    found, reports = combined("mmpareto", g, gamma=2.0)
    parts = {0: slice(0, 2), 1: slice(2, 5)}
    expected = mmpareto_encoder({i: fused[s] for i, s in parts.items()}, {i: own[s] for i, s in parts.items()}, 2.0)
    np.testing.assert_allclose(found, [*expected[0], *expected[1], 0, 1, 1, 1, 1], rtol=1e-12)
    share = reports["mmpareto_fused_share_a"]
    assert share == pytest.approx((11 + 5) / (26 + 11 + 10))
    h = 2 * share * fused + 2 * (1 - share) * own
    factors = found[:5][h != 0] / h[h != 0]
    assert factors[0] == pytest.approx(factors[1])
    assert abs(factors[0] - factors[2]) > 0.1, "one factor a tensor, not one an encoder"


def test_mmpareto_takes_orthogonal_gradients_for_conflict_as_its_authors_do():
    found, reports = combined("mmpareto", by_hand(fused=[1, 0, *[0] * 8], a=[0, 2, *[0] * 8]), gamma=1.0)
    # a = (4/5, 1/5): h = (8/5, 4/5), of norm 1.79; the plain sum (1, 2) is longer.
    np.testing.assert_allclose(found[:2], np.sqrt(5) * np.array([2, 1]) / np.sqrt(5))
    assert reports["mmpareto_fused_share_a"] == pytest.approx(4 / 5)
    assert reports["mmpareto_conflict_a"] == 0


# Every method on gradients that leave little to combine

TWO = [1.0, -2, 3, 0.5, 1, 0, 0, 0, 2, 1]
PLAIN = {"mmpareto": {"gamma": 1.0}}


@pytest.mark.parametrize("name", each(METHODS))
def test_identical_objectives(name):
    found, _ = combined(name, by_hand(fused=TWO, a=TWO), **PLAIN.get(name, {}))
    many = {"mmpareto": 2, "pcgrad": 2, "mgda": 1, "jd": 1}[name]
    np.testing.assert_allclose(found[:5], many * np.array(TWO[:5]), rtol=1e-9)
    if name in ("pcgrad", "mgda", "jd"):
        found, _ = combined(name, by_hand(fused=TWO, a=TWO, b=TWO))
        np.testing.assert_allclose(found, (3 if name == "pcgrad" else 1) * np.array(TWO), rtol=1e-9)


@pytest.mark.parametrize("length", [1.0, 0.3, 1e-3])
@pytest.mark.parametrize("name", each(METHODS))
def test_opposite_objectives_stand_still_and_say_so(name, length):
    found, reports = combined(name, by_hand(fused=TWO, a=(-length * np.array(TWO)).tolist()))
    np.testing.assert_allclose(found[:5], 0, atol=1e-12)
    assert reports["mmpareto_norm_a" if name == "mmpareto" else f"{name}_norm"] == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("name", each(METHODS))
def test_a_gradient_of_zeros(name):
    found, reports = combined(
        name, by_hand(fused=TWO, a=[0.0] * 10), **({"parameters": "all"} if name in ("mgda", "jd") else {})
    )
    factor = {"mmpareto": 1.5, "pcgrad": 1, "mgda": 0, "jd": 0.5}[name]
    if name == "mmpareto":
        assert not reports["mmpareto_conflict_a"]
        factor = 1.0  # of nothing that both losses reach
    np.testing.assert_allclose(found, factor * np.array(TWO), atol=1e-12)
    for rows in ({"fused": [0.0] * 10, "a": [0.0] * 10}, {"fused": [0.0] * 10}, {"fused": TWO}):
        found, reports = combined(name, by_hand(**rows))
        assert np.isfinite(found).all()
        assert np.isfinite(list(reports.values())).all()
        np.testing.assert_allclose(found, rows["fused"], atol=1e-12)


def test_a_unimodal_gradient_of_zeros_leaves_mmpareto_the_fused_one():
    # Reached, but zero: a modality whose loss is at its minimum must not stop the encoder.
    g = by_hand(fused=TWO, a=TWO)
    g.flat[1] = 0
    found, reports = combined("mmpareto", g)
    np.testing.assert_allclose(found[:5], 1.5 * np.array(TWO[:5]))
    assert reports["mmpareto_fused_share_a"] == 0.5


def test_what_a_single_objective_reaches_keeps_its_own_gradient():
    (x, _), (u, v) = CONFLICT
    fused, own = [x, 0, 0, 0, 0, 0, 0, 0, 3, 0], [u, v, 0, 0, 0, 6, 0, 0, 0, 0]
    found, reports = combined("mgda", by_hand(fused=fused, a=own))
    np.testing.assert_allclose(found, [3 / 14, 5 * np.sqrt(3) / 14, 0, 0, 0, 6, 0, 0, 3, 0], rtol=1e-12)
    expected = {"mgda_weight_fused": 2 / 7, "mgda_weight_a": 5 / 7, "mgda_norm": np.sqrt(84) / 14}
    assert reports == pytest.approx(expected)
    found, _ = combined("mgda", by_hand(fused=fused, a=own), parameters="all")
    np.testing.assert_allclose(found, min_norm_point([fused, own]), atol=1e-12)


@pytest.mark.parametrize("normalization", ["none", "l2", "loss", "loss+"])
def test_mgda_normalization_is_for_the_weights_alone(normalization):
    # Orthogonal: w_i in proportion to (n_i / |g_i|)^2, with n_i = 1, |g_i|, L_i, or both.
    size, loss = np.array([1.0, 2.0, 4.0]), np.array([3.0, 0.5, 1.0])
    g = by_hand(fused=[1, 0, 0, *[0] * 7], a=[0, 2, 0, *[0] * 7], b=[0, 0, 4, *[0] * 7])
    n = {"none": 1, "l2": size, "loss": loss, "loss+": loss * size}[normalization]
    w = (n / size) ** 2 / ((n / size) ** 2).sum()
    found, _ = combined("mgda", g, dict(zip(g.names, loss.tolist())), normalization=normalization, parameters="all")
    np.testing.assert_allclose(found[:3], w * size, rtol=1e-9)
    zero = dict.fromkeys(g.names, 0.0)
    assert np.isfinite(combined("mgda", g, zero, normalization=normalization, parameters="all")[0]).all()


# The step as a whole, on a model: gradients by finite differences, combined in numpy


def step_of(name, batch, *, unimodal="heads", seed=3, **options):
    """What SGD with learning rate 1 subtracted, and the parameters it was taken at, {name: array}."""
    model = build_model(torch.float64, unimodal=unimodal)
    torch.manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.3 * torch.randn(p.shape, dtype=p.dtype))
    balancer = name if isinstance(name, balancers.Balancer) else balancers.get(name, **options)
    step = BalancedStep(model, Classification(CLASSES), balancer, torch.optim.SGD(model.parameters(), lr=1.0), seed=11)
    before = {n: p.detach().numpy().copy() for n, p in model.named_parameters()}
    result = step(batch)
    return {n: before[n] - p.detach().numpy() for n, p in model.named_parameters()}, before, result


def numeric(p, batch, kind):
    """{objective: {parameter: gradient}} by finite differences."""
    data = oracle.arrays(batch)
    found = {"fused": oracle.gradient(lambda q: oracle.joint_loss(q, data), p)}
    for m in oracle.unimodal_losses(p, data, kind):
        found[m] = oracle.gradient(lambda q, m=m: oracle.unimodal_losses(q, data, kind)[m], p)
    return found


def flat(gradient):
    return np.concatenate([g.ravel() for g in gradient.values()])


def expected_mmpareto(gradients, gamma):
    found = {n: sum(g[n] for g in gradients.values()) for n in gradients["fused"]}
    for m in set(gradients) - {"fused"}:
        mine = [n for n in found if n.startswith(f"encoders.{m}.")]
        found |= mmpareto_encoder({n: gradients["fused"][n] for n in mine}, {n: gradients[m][n] for n in mine}, gamma)
    return found


CASES = [(0, "heads"), (FULL, "heads"), (0, "split"), (FULL, "split")]


@pytest.fixture(scope="module")
def measured():
    """The batch, the parameters and every objective's gradient of each case: finite differences are made once."""
    found = {}
    for t, kind in CASES:
        batch = global_batch(t, torch.float64)
        _, p, _ = step_of("summed", batch, unimodal=kind)
        found[t, kind] = batch, p, numeric(p, batch, kind)
    return found


def assert_close(found, expected):
    for n, g in expected.items():
        np.testing.assert_allclose(found[n], g, rtol=1e-5, atol=1e-8, err_msg=n)


@pytest.mark.parametrize(("t", "kind"), CASES)
def test_mmpareto_step(measured, t, kind):
    batch, _, gradients = measured[t, kind]
    found, _, result = step_of("mmpareto", batch, unimodal=kind)
    assert_close(found, expected_mmpareto(gradients, 1.5))
    for m in set(gradients) - {"fused"}:
        names = [n for n in found if n.startswith(f"encoders.{m}.")]
        u, v = (np.concatenate([g[n].ravel() for n in names]) for g in (gradients["fused"], gradients[m]))
        cosine = u @ v / np.linalg.norm(u) / np.linalg.norm(v)
        assert result.statistics[f"mmpareto_cosine_{m}"] == pytest.approx(cosine, abs=1e-6)
        assert result.statistics[f"mmpareto_conflict_{m}"] == (cosine < 0)
    if kind == "heads" and t == 0:
        conflicts = {m: result.statistics[f"mmpareto_conflict_{m}"] for m in "abc"}
        assert set(conflicts.values()) == {0.0, 1.0}, "this case shows both roads"


def moved(optimizer, batches=(0, FULL), **options):
    """How far the last of some steps of MMPareto goes, {name: array}."""
    model = build_model(torch.float64, unimodal="heads")
    balancer = balancers.get("mmpareto", **options)
    step = BalancedStep(model, Classification(CLASSES), balancer, optimizer(model.parameters()), seed=11)
    for t in batches:
        before = {n: p.detach().numpy().copy() for n, p in model.named_parameters()}
        step(global_batch(t, torch.float64))
    return {n: p.detach().numpy() - before[n] for n, p in model.named_parameters()}


def test_scaling_the_update_is_scaling_the_gradient_where_the_optimiser_is_plain():
    def sgd(p):
        return torch.optim.SGD(p, lr=0.1)

    assert_close(moved(sgd, apply="update"), moved(sgd))


def test_adam_cancels_gamma_of_the_gradient_but_not_of_the_update():
    def adam(p):
        return torch.optim.Adam(p, lr=1e-3, eps=1e-15)

    one = moved(adam, gamma=1.0)
    assert_close(moved(adam, gamma=10.0), one)
    first = moved(adam, gamma=1.0, apply="update", batches=[0])
    for n, d in moved(adam, gamma=10.0, apply="update", batches=[0]).items():
        np.testing.assert_allclose(d, (10 if n.startswith("encoders.") else 1) * first[n], rtol=1e-9, err_msg=n)


class AccumulatedGradients(MMPareto):
    """As BalanceBenchmark has it: no zeroing between the backward passes, so each gradient that is read is their sum."""

    name = ""

    def combine(self, gradients, ctx):
        gradients.flat[:] = gradients.flat.sum(dim=0)
        gradients.flat[:, gradients.layout.owners["head"]] /= len(gradients.names)
        return super().combine(gradients, ctx)


def test_gradients_accumulated_without_zeroing_fail_the_oracle(measured):
    batch, _, gradients = measured[0, "heads"]
    found, _, result = step_of(AccumulatedGradients(), batch)
    plain = {n: sum(g[n] for g in gradients.values()) for n in gradients["fused"]}
    expected = expected_mmpareto(gradients, 1.5)
    for n, g in plain.items():
        if n.startswith("encoders."):
            np.testing.assert_allclose(found[n], 3 * g, rtol=1e-5, atol=1e-8)
    assert not any(result.statistics[f"mmpareto_conflict_{m}"] for m in "abc")
    with pytest.raises(AssertionError):
        assert_close(found, expected)


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize(("t", "kind"), CASES)
def test_pcgrad_step(measured, t, kind, reduction):
    batch, _, gradients = measured[t, kind]
    found, _, result = step_of("pcgrad", batch, unimodal=kind, reduction=reduction)
    k = len(gradients)
    orders = random_orders(k, torch.Generator().manual_seed(seed_of(11, "pcgrad", 0)))
    free = projected([flat(g) for g in gradients.values()], orders.tolist())
    np.testing.assert_allclose(flat(found), free.sum(axis=0) / (k if reduction == "mean" else 1), rtol=1e-5, atol=1e-8)
    assert result.statistics["pcgrad_norm"] == pytest.approx(np.linalg.norm(flat(found)))
    assert {f"pcgrad_weight_{n}" for n in gradients} <= set(result.statistics)


def shared_names(gradients):
    """Parameters that several objectives reach."""
    return [n for n in gradients["fused"] if sum(np.abs(g[n]).max() > 1e-12 for g in gradients.values()) > 1]


def expected_of_shared(gradients, combine, names=None):
    """{parameter: gradient}: `combine` of the matrix [k, P] over the named parameters, the plain sum elsewhere."""
    names = shared_names(gradients) if names is None else names
    found = {n: sum(g[n] for g in gradients.values()) for n in gradients["fused"]}
    vector = combine(np.array([flat({n: g[n] for n in names}) for g in gradients.values()]))
    for n in names:
        size = found[n].size
        found[n], vector = vector[:size].reshape(found[n].shape), vector[size:]
    return found


@pytest.mark.parametrize(("t", "kind"), CASES)
def test_mgda_step(measured, t, kind):
    batch, _, gradients = measured[t, kind]
    found, _, result = step_of("mgda", batch, unimodal=kind)
    assert_close(found, expected_of_shared(gradients, min_norm_point))
    weights = [result.statistics[f"mgda_weight_{n}"] for n in gradients]
    assert sum(weights) == pytest.approx(1)
    assert min(weights) >= 0
    everything, _, _ = step_of("mgda", batch, unimodal=kind, parameters="all")
    assert_close(everything, expected_of_shared(gradients, min_norm_point, list(gradients["fused"])))


def test_mgda_normalization_reads_the_losses_of_the_global_batch(measured):
    batch, p, gradients = measured[0, "split"]
    losses = {"fused": oracle.joint_loss(p, oracle.arrays(batch))}
    losses |= oracle.unimodal_losses(p, oracle.arrays(batch), "split")
    for scale in ("loss", "loss+"):

        def combine(g, scale=scale):
            n = np.array([losses[name] for name in gradients])
            n = n * np.linalg.norm(g, axis=1) if scale == "loss+" else n
            point = min_norm_point(g / n[:, None])
            # The weights: what the point is made of.
            return np.linalg.lstsq((g / n[:, None]).T, point, rcond=None)[0] @ g

        found, _, _ = step_of("mgda", batch, unimodal="split", normalization=scale)
        assert_close(found, expected_of_shared(gradients, combine))


@pytest.mark.parametrize("name", each(METHODS))
def test_one_modality_alone(name):
    torch.manual_seed(0)
    model = LateFusion({"a": MLP(7, (6,), 5)}, CLASSES, unimodal="heads")
    step = BalancedStep(
        model,
        Classification(CLASSES),
        balancers.get(name),
        torch.optim.SGD(model.parameters(), lr=0.1),
        autocast=torch.bfloat16,
    )
    batch = global_batch(0, torch.float32)
    batch |= {"inputs": {"a": batch["inputs"]["a"]}, "present": batch["present"][:, :1] | True}
    losses = [step(batch).losses for _ in range(5)]
    assert set(losses[0]) == {"fused", "a"}
    assert losses[-1]["fused"] < losses[0]["fused"]


def test_mmpareto_needs_encoders_of_their_own():
    with pytest.raises(EquipoiseError, match="'mmpareto' needs unimodal logits of kind 'split' or 'heads'"):
        balancers.get("mmpareto").check(build_model(torch.float32, unimodal="coalition"), Classification(CLASSES))


# TorchJD: as an oracle for the others, and through the same hook


@needs_torchjd
@pytest.mark.parametrize("k", [2, 3, 5])
def test_pcgrad_is_torchjd_s(k):
    rng = np.random.default_rng(k)
    for seed in range(20):
        g = torch.from_numpy(rng.normal(size=(k, 4)))
        torch.manual_seed(seed)
        theirs = aggregation.PCGrad()(g)
        torch.manual_seed(seed)
        orders = torch.stack([p[p != i] for i, p in enumerate(torch.randperm(k) for _ in range(k))])
        torch.testing.assert_close((remove_conflicts(g @ g.T, orders) @ g).sum(dim=0), theirs, rtol=1e-9, atol=1e-9)


@needs_torchjd
@pytest.mark.parametrize("k", [2, 3, 5])
def test_mgda_is_torchjd_s(k):
    rng = np.random.default_rng(k)
    theirs = aggregation.MGDA(epsilon=1e-6, max_iters=2000)
    for _ in range(10):
        g = torch.from_numpy(rng.normal(size=(k, 4 * k)))
        ours = min_norm_weights(g @ g.T) @ g
        assert float(ours.norm()) <= float(theirs(g).norm()) * (1 + 1e-12), "ours is exact, theirs iterates"
        torch.testing.assert_close(ours, theirs(g), rtol=0.02, atol=0.02)


@needs_torchjd
def test_mmpareto_s_direction_is_a_weighting_of_torchjd_s():
    rng = np.random.default_rng(4)
    seen = set()
    for _ in range(20):
        fused, own = rng.normal(size=(2, 2))
        g = torch.from_numpy(np.stack([fused, own]))
        gram = g @ g.T
        conflict = bool(gram[0, 1] <= 0)
        weights = aggregation.MGDAWeighting()(gram) if conflict else torch.full((2,), 0.5, dtype=torch.float64)
        direction = 2 * weights @ g
        found, _ = combined("mmpareto", by_hand(fused=[*fused, *[0] * 8], a=[*own, *[0] * 8]), gamma=1.0)
        length = max(float(direction.norm()), np.linalg.norm(fused + own))
        np.testing.assert_allclose(found[:2], direction / direction.norm() * length, rtol=1e-9)
        seen.add(conflict)
    assert seen == {True, False}


@needs_torchjd
@settings(max_examples=60, deadline=None)
@given(VECTORS, st.integers(0, 4))
def test_projections_onto_the_dual_cone_are_those_of_brute_force(gradients, which):
    g = torch.tensor(gradients, dtype=torch.float64)
    u = torch.eye(len(g), dtype=torch.float64)[which % len(g)]
    w = projected_weights(u, g @ g.T)
    assert bool((w >= u - 1e-12).all())
    np.testing.assert_allclose((w @ g).numpy(), projected_on_dual_cone(g.numpy(), u.numpy() @ g.numpy()), atol=1e-6)


def upgrad(g):
    return np.mean([projected_on_dual_cone(g, row) for row in g], axis=0)


def of_torchjd(name, **arguments):
    return lambda g: getattr(aggregation, name)(**arguments)(torch.from_numpy(g)).numpy()


AGGREGATORS = [
    ("UPGrad", {}, upgrad, 1e-5),
    ("DualProj", {}, lambda g: projected_on_dual_cone(g, g.mean(axis=0)), 1e-5),
    ("MGDA", {"epsilon": 1e-6}, min_norm_point, 0.02),
    ("AlignedMTL", {"scale_mode": "median"}, of_torchjd("AlignedMTL", scale_mode="median"), 1e-5),
    ("IMTLG", {}, of_torchjd("IMTLG"), 1e-5),
    ("ConFIG", {}, of_torchjd("ConFIG"), 1e-5),
    ("FairGrad", {"alpha": 1.0}, of_torchjd("FairGrad", alpha=1.0), 1e-4),
    pytest.param(
        "CAGrad", {"c": 0.4}, of_torchjd("CAGrad", c=0.4), 1e-5,
        marks=pytest.mark.skipif(find_spec("cvxpy") is None, reason="CAGrad needs torchjd[cagrad]"),
    ),
]  # fmt: skip


@needs_torchjd
@pytest.mark.parametrize(("aggregator", "arguments", "formula", "tolerance"), AGGREGATORS)
def test_jd_step(measured, aggregator, arguments, formula, tolerance):
    for t, kind in [(0, "heads"), (FULL, "split")]:
        batch, _, gradients = measured[t, kind]
        found, _, result = step_of("jd", batch, unimodal=kind, aggregator=aggregator, arguments=arguments)
        expected = expected_of_shared(gradients, formula)
        scale = np.linalg.norm(flat(expected))
        for n, g in expected.items():
            np.testing.assert_allclose(found[n], g, atol=tolerance * scale, err_msg=n)
        names = shared_names(gradients)
        assert result.statistics["jd_norm"] == pytest.approx(np.linalg.norm(flat({n: found[n] for n in names})))


@needs_torchjd
@pytest.mark.parametrize("aggregator", ["PCGrad", "GradDrop"])
def test_an_aggregator_s_chance_is_the_step_s(measured, aggregator):
    batch, _, _ = measured[0, "heads"]
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first, _, _ = step_of("jd", batch, seed=5, aggregator=aggregator)
    torch.manual_seed(2)
    again, _, _ = step_of("jd", batch, seed=5, aggregator=aggregator)
    assert_close(first, again)
    # The step leaves torch's own generator as it was.
    g = by_hand(fused=TWO, a=[-x for x in TWO])
    torch.set_rng_state(before)
    combined("jd", g, aggregator=aggregator)
    assert torch.equal(torch.get_rng_state(), before)


def test_without_torchjd_the_method_is_listed_and_refused_in_a_sentence(monkeypatch):
    assert "jd" in balancers.names()
    monkeypatch.setattr(jd_module, "find_spec", lambda name: None)
    balancer = balancers.get("jd", aggregator="AlignedMTL")
    with pytest.raises(
        EquipoiseError, match=r"TorchJD, which is not installed: pip install 'equipoise\[jd\]', or choose"
    ):
        step_of(balancer, global_batch(0, torch.float64))


@needs_torchjd
@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"aggregator": "UpGrad"}, "Option 'aggregator' of balancer 'jd': .*'UPGrad'"),
        ({"aggregator": "FairGrad"}, r"'FairGrad' of balancer 'jd' cannot be made with arguments=\{\}: .*'alpha'"),
        ({"aggregator": "MGDA", "arguments": {"epsilon": -1}}, r"'MGDA' .* cannot be made .*epsilon must be positive"),
        pytest.param(
            {"aggregator": "CAGrad", "arguments": {"c": 0.4}},
            r"'CAGrad' .* needs more than TorchJD: .*torchjd\[cagrad\]",
            marks=pytest.mark.skipif(find_spec("cvxpy") is not None, reason="cvxpy is installed"),
        ),
        ({"aggregator": "IMTLG", "arguments": {"c": 1}}, "'IMTLG' of balancer 'jd' cannot be made with arguments.*'c'"),
    ],
)
def test_options_of_jd_that_make_no_aggregator(options, sentence):
    with pytest.raises(EquipoiseError, match=sentence):
        step_of("jd", global_batch(0, torch.float64), **options)


# What the cards say, seen on digits


def digits_steps(name, steps=100, **options):
    """(gradients of each objective by autograd, what the method made of them, the report) along training on two columns of
    the image and the other six.
    """
    x, y = torch.tensor(load_digits().images).double() / 16, torch.tensor(load_digits().target)
    torch.manual_seed(0)
    parts = {"left": MLP((8, 2), (16,), 8), "right": MLP((8, 6), (16,), 8)}
    model = LateFusion(parts, 10, unimodal="heads").double()
    step = BalancedStep(
        model, Classification(10), balancers.get(name, **options), torch.optim.SGD(model.parameters(), lr=0.5), seed=0
    )
    for t in range(steps):
        ids = (torch.arange(16) + 16 * t) % len(y)
        present = torch.ones(16, 2, dtype=torch.bool)
        inputs = {"left": x[ids, :, :2], "right": x[ids, :, 2:]}
        batch = {"sample_id": ids, "copy": 0 * ids, "inputs": inputs, "present": present, "target": y[ids]}
        out = model(inputs, present)
        losses = {"fused": out.logits, **out.unimodal_logits}
        rows = {}
        for n, z in losses.items():
            loss = nn.functional.cross_entropy(z, y[ids])
            grads = torch.autograd.grad(loss, list(model.parameters()), retain_graph=True, allow_unused=True)
            rows[n] = {
                key: torch.zeros_like(p) if g is None else g
                for (key, p), g in zip(model.named_parameters(), grads, strict=True)
            }
        result = step(batch)
        yield rows, {n: p.grad.clone() for n, p in model.named_parameters()}, result.statistics


def test_mmpareto_s_encoders_follow_the_min_norm_point_in_conflict_on_digits():
    conflicts = 0
    for rows, made, report in digits_steps("mmpareto"):
        for m in ("left", "right"):
            names = [n for n in made if n.startswith(f"encoders.{m}.")]
            u, v = (np.concatenate([rows[r][n].numpy().ravel() for n in names]) for r in ("fused", m))
            conflict = u @ v < 0
            conflicts += conflict
            assert report[f"mmpareto_conflict_{m}"] == conflict
            point = min_norm_point([u, v]) if conflict else (u + v) / 2
            at = 0
            for n in names:
                size = made[n].numel()
                g, h = made[n].numpy().ravel(), point[at : at + size]
                plain = np.linalg.norm((u + v)[at : at + size])
                at += size
                # Along the point, at 1.5 times no less than the length of the plain sum.
                assert g @ h == pytest.approx(np.linalg.norm(g) * np.linalg.norm(h), rel=1e-9)
                assert np.linalg.norm(g) >= 1.5 * plain * (1 - 1e-9)
    assert conflicts > 10, "some steps on digits are in conflict"


@pytest.mark.parametrize("name", each(["mgda", "jd"]))
def test_no_objective_opposes_the_step_on_digits(name):
    for rows, made, _ in digits_steps(name):
        names = [n for n in made if n.startswith("encoders.")]
        d = flat({n: made[n].numpy() for n in names})
        for row in rows.values():
            g = flat({n: row[n].numpy() for n in names})
            assert g @ d >= -1e-9 * np.linalg.norm(g) * np.linalg.norm(d)


def test_the_plain_sum_does_oppose_an_objective_on_digits():
    # What the two tests above are about: without the methods it happens.
    opposed = 0
    for rows, made, _ in digits_steps("summed", steps=200):
        for m in ("left", "right"):
            names = [n for n in made if n.startswith(f"encoders.{m}.")]
            for row in ("fused", m):
                opposed += sum(float((rows[row][n] * made[n]).sum()) for n in names) < 0
    assert opposed > 0
