"""GMD: every vector of the specification, an independent walk over the gradients themselves, planted faults."""

from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from gmd_cases import gradient
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import balancers as oracle
from oracles.gmd import projected
from scipy.stats import chisquare
from torch import nn
from world_cases import CLASSES, build_model, global_batch

from equipoise import balancers
from equipoise.balancers import Gradients, StepContext, remove_conflicts
from equipoise.balancers.conflicts import random_orders, walk
from equipoise.balancers.gradients import Layout
from equipoise.models import MLP, Classification, EquipoiseError, LateFusion, Segmentation
from equipoise.pipelines.config import load_config
from equipoise.pipelines.light import train_light


def calibrated(gradients, orders):
    g = torch.tensor(gradients, dtype=torch.float64)
    return remove_conflicts(g @ g.T, torch.tensor(orders)) @ g


ASC = {2: [[1], [0]], 3: [[1, 2], [0, 2], [0, 1]]}
DESC = {3: [[2, 1], [2, 0], [1, 0]]}


@pytest.mark.parametrize(
    ("gradients", "orders", "expected"),
    [
        pytest.param([[1, 0], [-1, 1]], ASC[2], [[1 / 2, 1 / 2], [0, 1]], id="TV1"),
        pytest.param([[1, 0], [1, 1]], ASC[2], [[1, 0], [1, 1]], id="TV2"),
        pytest.param([[10, 0], [-0.6, 0.8]], ASC[2], [[6.4, 4.8], [0, 0.8]], id="TV3"),
        pytest.param([[1, 0, 0], [-1, 1, 0], [-1, 0, 2]], ASC[3], [[0.4, 0.5, 0.2], [0, 1, 0], [0, 0, 2]], id="TV4a"),
        pytest.param([[1, 0, 0], [-1, 1, 0], [-1, 0, 2]], DESC[3], [[0.4, 0.4, 0.4], [0, 1, 0], [0, 0, 2]], id="TV4b"),
        pytest.param(
            [[1, 0], [-1, 3], [-4, -1]],
            ASC[3],
            [[-3 / 170, 12 / 170], [-12 / 17, 48 / 17], [-0.3, -0.1]],
            id="TV5a",
        ),
        pytest.param(
            [[1, 0], [-1, 3], [-4, -1]],
            [[1, 2], [2, 0], [1, 0]],
            [[-3 / 170, 12 / 170], [0, 3], [0, -1]],
            id="TV5b",
        ),
        pytest.param([[1, 0], [0, 0], [-1, 1]], ASC[3], [[1 / 2, 1 / 2], [0, 0], [0, 1]], id="TV8"),
        pytest.param([[1, 0], [-2, 0]], ASC[2], [[0, 0], [0, 0]], id="TV8 opposite"),
        pytest.param([[1, 2], [1, 2]], ASC[2], [[1, 2], [1, 2]], id="identical"),
        pytest.param([[3, 4]], np.zeros((1, 0), dtype=int), [[3, 4]], id="one"),
    ],
)
def test_vectors_of_the_specification(gradients, orders, expected):
    np.testing.assert_allclose(calibrated(gradients, orders), expected, atol=1e-12)
    np.testing.assert_allclose(projected(gradients, orders), expected, atol=1e-12)


@pytest.mark.parametrize(
    ("gradients", "orders", "expected"),
    [
        ([[10, 0], [-0.6, 0.8]], ASC[2], [[1, 6], [0.06, 1]]),
        ([[1, 0, 0], [-1, 1, 0], [-1, 0, 2]], ASC[3], [[1, 0.5, 0.1], [1, 1, 0], [1, 0, 1]]),
        ([[1, 0, 0], [-1, 1, 0], [-1, 0, 2]], DESC[3], [[1, 0.4, 0.2], [1, 1, 0], [1, 0, 1]]),
    ],
    ids=["TV3", "TV4a", "TV4b"],
)
def test_rows_are_coefficients_of_the_originals(gradients, orders, expected):
    g = torch.tensor(gradients, dtype=torch.float64)
    np.testing.assert_allclose(remove_conflicts(g @ g.T, torch.tensor(orders)), expected, atol=1e-12)


def test_self_in_the_walk_changes_the_answer():
    # TV5c: what the released code's walk gives, order 2, 3, 1 for every objective, itself included.
    g = torch.tensor([[1, 0], [-1, 3], [-4, -1]], dtype=torch.float64)
    found = walk(g @ g.T, torch.tensor([[1, 2, 0]] * 3)) @ g
    np.testing.assert_allclose(found, [[0, 12 / 170], [0, 3], [0, -1]], atol=1e-12)


@pytest.mark.parametrize("degrees", [100, 120, 150, 170])
def test_an_obtuse_angle_becomes_its_supplement(degrees):
    # TV12
    t = np.deg2rad(degrees)
    a, b = calibrated([[1.0, 0.0], [2 * np.cos(t), 2 * np.sin(t)]], ASC[2]).numpy()
    angle = np.rad2deg(np.arccos(a @ b / np.linalg.norm(a) / np.linalg.norm(b)))
    assert angle == pytest.approx(180 - degrees, abs=1e-9)


VECTORS = st.integers(1, 6).flatmap(
    lambda k: st.lists(
        st.lists(st.integers(-9, 9).map(float), min_size=4, max_size=4), min_size=k, max_size=k
    )
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(VECTORS, st.integers(0, 2**31), st.floats(1e-3, 1e3))
def test_gram_walk_is_the_walk_over_vectors(gradients, seed, scale):
    k = len(gradients)
    orders = random_orders(k, torch.Generator().manual_seed(seed))
    found = calibrated(gradients, orders.tolist() if k > 1 else np.zeros((1, 0), dtype=int))
    explicit = projected(gradients, orders.tolist())
    # A product that is zero but for rounding may be taken for a conflict by one and not by the other: either way the removed
    # part is of the size of that rounding.
    np.testing.assert_allclose(found, explicit, atol=1e-6)
    scaled = calibrated((scale * np.array(gradients)).tolist(), orders.tolist() if k > 1 else np.zeros((1, 0), int))
    np.testing.assert_allclose(scaled, scale * found, rtol=1e-6, atol=1e-6 * scale)
    g = np.array(gradients)
    if (g @ g.T >= 0).all():
        np.testing.assert_array_equal(found, g)


def test_every_order_of_the_others_is_equally_likely():
    generator = torch.Generator().manual_seed(0)
    seen = Counter(tuple(random_orders(4, generator)[2].tolist()) for _ in range(1200))
    assert set(seen) == {(a, b, c) for a in (0, 1, 3) for b in (0, 1, 3) for c in (0, 1, 3) if len({a, b, c}) == 3}
    assert chisquare(list(seen.values())).pvalue > 1e-3


@pytest.mark.parametrize(
    ("gram", "orders", "sentence"),
    [
        (torch.ones(2, 3), torch.zeros(2, 1), r"square matrix of finite inner products \[k, k\], found \(2, 3\)"),
        (torch.tensor([[1.0, np.nan], [0, 1]]), torch.tensor([[1], [0]]), r"found \(2, 2\) with NaN or Inf"),
        (torch.eye(2), torch.tensor([[0], [1]]), r"row i a permutation of all objectives but i, found \[\[0\], \[1\]\]"),
        (torch.eye(3), torch.tensor([[1], [0], [0]]), r"orders must be int \[3, 2\]"),
    ],
)  # fmt: skip
def test_bad_arguments_are_named(gram, orders, sentence):
    with pytest.raises(EquipoiseError, match=sentence):
        remove_conflicts(gram, orders)


# How gradients are put together.


def by_hand(**options):
    """TV6: coordinates [shared, shared, only of a, only of b] of two gradients, put together by the balancer."""
    groups = {"a": [nn.Parameter(torch.zeros(1))], "b": [nn.Parameter(torch.zeros(1))],
              "shared": [nn.Parameter(torch.zeros(2))], "head": []}  # fmt: skip
    every = options.pop("reached", [[True, False, True], [False, True, True]])
    flat = torch.tensor([[2, 0, 1, 0], [0, 3, -1, 1]], dtype=torch.float64)
    found = Gradients(flat, ("a", "b"), Layout.of(groups), torch.tensor(every))
    ctx = SimpleNamespace(
        modalities=("a", "b"), generator=lambda purpose: torch.Generator().manual_seed(0), agreed=lambda t: t,
        report=lambda name, value: None, calibrated=None,
    )  # fmt: skip
    a, b, *shared = balancers.get("gmd", **options).combine(found, ctx).tolist()
    return [*shared, a, b]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [0.25, 0.75, 2, 2.25]),
        ({"reduction": "sum"}, [0.5, 1.5, 4, 4.5]),
        ({"reduction": "sum", "specific": "plain"}, [0.5, 1.5, 2, 3]),
        ({"specific": "plain"}, [0.25, 0.75, 1, 1.5]),
        ({"project": False}, [0, 0.5, 1, 1.5]),
        ({"compat": "official"}, [0.054545, 0.545455, 2.4, 3.272727]),
        # What several GPUs made of it there: gradients that are not there came back as zeros, so that all counts as shared.
        ({"compat": "official", "reached": [[True] * 3] * 2}, [0.054545, 0.545455, 1.2, 1.636364]),
    ],
    ids=str,
)
def test_shared_and_specific_parameters(options, expected):
    np.testing.assert_allclose(by_hand(**options), expected, atol=1e-6)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_gradients_of_two_workers_are_reduced_before_conflicts_are_sought(gloo, reduction):
    # TV7: on worker A the gradients are in conflict, over both they are not. Projected first, (1.025, 0.575).
    parts = [[{"a": (1, 0), "b": (-3, 1)}], [{"a": (1, 0), "b": (3, 1)}]]
    for found in gloo.run("gmd_cases", "gradient_of_part", 2, parts):
        np.testing.assert_allclose(found, (0.5, 0.5), atol=1e-12)
    np.testing.assert_allclose(gradient(parts[0]), np.mean([(0.1, 0.3), (0, 1)], axis=0), atol=1e-12)
    alone = [projected([part[0]["a"], part[0]["b"]], ASC[2]).mean(axis=0) for part in parts]
    np.testing.assert_allclose(np.mean(alone, axis=0), (1.025, 0.575), atol=1e-12)
    whole = gradient(parts[0] + parts[1], reduction=reduction)
    np.testing.assert_allclose(whole, (0.5, 0.5) if reduction == "mean" else (1, 1), atol=1e-12)


def test_workers_with_unequal_rows_weigh_by_their_rows(gloo):
    # TV10: three rows of mean (1, 0) and one row (-3, 4); the mean of the workers' means would be (-1, 2).
    parts = [[{"a": (0, 0)}, {"a": (1, 0)}, {"a": (2, 0)}], [{"a": (-3, 4)}]]
    for found in gloo.run("gmd_cases", "gradient_of_part", 2, parts):
        np.testing.assert_allclose(found, (0, 1), atol=1e-12)


def test_a_row_counts_for_the_sets_it_has():
    # Three objectives' gradients by hand: {a}: mean of (1, 0) and (3, 0); {b}: (0, 2); no conflict, mean over two.
    found = gradient([{"a": (1, 0)}, {"a": (3, 0), "b": (0, 2)}])
    np.testing.assert_allclose(found, (1, 1))


def test_losses_of_the_subsets_of_a_dice_by_hand():
    # TV9: two maps of logits, opposite; fused they are 0, so p = 1/2 everywhere.
    task, t = Segmentation(["tumour"]), torch.tensor([[[1.0, 0.0]]])
    z = torch.log(torch.tensor([[[3.0, 1 / 3]]]))
    for logits, loss in ((z, 1 / 6), (-z, 1 / 2), ((z - z) / 2, 1 / 3)):
        assert task.losses(logits, t).item() == pytest.approx(loss)


# The sets of available modalities.


def context(modalities, step=0, seed=0):
    model = SimpleNamespace(modalities=tuple(modalities))
    return StepContext(model, None, {}, seed=seed, epoch=0, step=step, group=None)


@pytest.mark.parametrize(("m", "number", "sizes"), [(2, 3, 4), (3, 7, 12), (4, 15, 32)])
def test_all_sets_larger_ones_first(m, number, sizes):
    # TV11
    method = balancers.get("gmd")
    found = list(method.subsets(context("abcd"[:m])).values())
    assert len(set(found)) == number == method.backward_passes(m)
    assert sum(map(len, found)) == sizes
    assert [len(s) for s in found] == sorted((len(s) for s in found), reverse=True)


def test_drawn_sets_hold_all_modalities_and_the_others_equally_often():
    method, seen = balancers.get("gmd", subsets=4), Counter()
    for step in range(700):
        found = method.subsets(context("abc", step))
        assert next(iter(found.values())) == ("a", "b", "c")
        assert len(found) == 4
        seen.update(list(found)[1:])
    assert len(seen) == 6
    assert chisquare(list(seen.values())).pvalue > 1e-3
    assert method.subsets(context("abc", 3)) == method.subsets(context("abc", 3))
    assert any(method.subsets(context("abc", t)) != method.subsets(context("abc", t, seed=1)) for t in range(9))
    assert balancers.get("gmd", subsets=99).subsets(context("ab")).keys() == {"a+b", "a", "b"}


@pytest.mark.parametrize("value", [0, True, 2.5, "some"])
def test_a_number_of_sets_that_is_none_is_named(value):
    with pytest.raises(EquipoiseError, match=rf"subsets must be 'all' or a number of sets >= 1, found {value!r}"):
        balancers.get("gmd", subsets=value)


def test_compat_leaves_nothing_to_choose():
    with pytest.raises(EquipoiseError, match=r"compat='official' fixes .*: leave project, reduction and specific out"):
        balancers.get("gmd", compat="official", reduction="sum")


def test_a_hundred_passes_are_not_taken_unawares():
    names = tuple("abcdefg")
    model = LateFusion({m: MLP(2, (2,), 2) for m in names}, 3)
    with pytest.raises(EquipoiseError, match=r"all sets of 7 modalities goes backward 127 times .*: give subsets=5"):
        balancers.get("gmd").check(model, Classification(3))
    balancers.get("gmd", subsets=127).check(model, Classification(3))
    balancers.get("gmd", subsets=5).check(model, Classification(3))


def test_a_model_that_shares_nothing_has_no_conflicts_to_remove():
    model = build_model(torch.float64, unimodal="split", fusion="average", absence="drop")
    for options in ({}, {"specific": "plain"}):
        with pytest.raises(
            EquipoiseError, match=r"no modality owns, and this model has none, .* or take project=False"
        ):
            balancers.get("gmd", **options).check(model, Classification(CLASSES))
    for options in ({"project": False}, {"compat": "official"}):
        balancers.get("gmd", **options).check(model, Classification(CLASSES))


# The whole step.


@pytest.mark.parametrize("fusion", ["concat", "attention"])
def test_a_set_goes_backward_through_its_own_encoders_only(fusion):
    # Zeros of the others would be work for nothing, and "official" would take the encoders for shared: a mean, no sum.
    model = build_model(torch.float64, fusion=fusion, unimodal="coalition")
    passes = Counter()
    for m in model.modalities:
        next(model.encoders[m].parameters()).register_hook(lambda g, m=m: passes.update([m]))
    data = global_batch(0, torch.float64)
    step = balancers.BalancedStep(
        model, Classification(CLASSES), balancers.get("gmd"), torch.optim.SGD(model.parameters())
    )
    gradients = step.gradients([data])
    assert passes == dict.fromkeys(model.modalities, 4), "of seven sets, each modality is in four"
    for name, reached in zip(gradients.names, gradients.reached, strict=True):
        for m in model.modalities:
            first = [part.start for part in gradients.layout.tensors].index(gradients.layout.owners[m].start)
            assert bool(reached[first]) == (m in name.split("+"))


@pytest.mark.parametrize("number", [0, 5], ids=["some absent", "one absent everywhere"])
def test_a_step_is_the_walk_over_finite_differences(number, monkeypatch):
    data = global_batch(number, torch.float64)
    model = build_model(torch.float64)
    with torch.no_grad():  # a classifier that is wrong at once: gradients of the head then oppose each other
        model.fusion.head.weight.mul_(8)
    before = {n: p.detach().numpy().copy() for n, p in model.named_parameters()}
    drawn = []

    def recorded(k, generator):
        drawn.append(random_orders(k, generator))
        return drawn[-1]

    monkeypatch.setattr("equipoise.balancers.gmd.random_orders", recorded)
    sgd = torch.optim.SGD(model.parameters(), lr=1.0)
    result = balancers.BalancedStep(model, Classification(CLASSES), balancers.get("gmd"), sgd, seed=4)(data)
    arrays = oracle.arrays(data)
    gradients, names = [], []
    for name in result.losses:
        subset = name.split("+")
        # A set that no row has would be NaN, which nothing equals.
        assert result.losses[name] == pytest.approx(oracle.subset_loss(before, arrays, subset), abs=1e-12)
        found = oracle.gradient(lambda p, s=subset: oracle.subset_loss(p, arrays, s), before)
        gradients.append(np.concatenate([g.ravel() for g in found.values()]))
        names.append(name)
    assert len(names) == (7 if number == 0 else 3)
    shared = np.concatenate([np.full(v.size, n.startswith("fusion.")) for n, v in before.items()])
    g = np.array(gradients)
    heads = projected(g[:, shared], drawn[0].tolist())
    conflicts = (g[:, shared] @ g[:, shared].T < 0).sum()
    assert conflicts > 0, "nothing is shown where nothing is in conflict"
    # w by least squares from the projected gradients themselves: the mean of them is w^T G over the head.
    w = np.linalg.lstsq(g[:, shared].T, heads.mean(axis=0), rcond=None)[0]
    np.testing.assert_allclose([result.statistics[f"gmd_weight_{n}"] for n in names], w, atol=1e-5)
    moved = np.concatenate([(before[n] - p.detach().numpy()).ravel() for n, p in model.named_parameters()])
    np.testing.assert_allclose(moved[shared], heads.mean(axis=0), atol=1e-7)
    np.testing.assert_allclose(moved[~shared], w @ g[:, ~shared], atol=1e-5)


def test_without_conflict_removal_it_is_the_mean_of_the_losses():
    data = global_batch(0, torch.float64)
    moved = {}
    for options in ({"project": False}, {"project": False, "reduction": "sum"}):
        model = build_model(torch.float64)
        before = {n: p.detach().clone() for n, p in model.named_parameters()}
        sgd = torch.optim.SGD(model.parameters(), lr=1.0)
        balancers.BalancedStep(model, Classification(CLASSES), balancers.get("gmd", **options), sgd)(data)
        moved[options.get("reduction", "mean")] = {n: before[n] - p.detach() for n, p in model.named_parameters()}
    for n in moved["mean"]:
        torch.testing.assert_close(moved["sum"][n], 7 * moved["mean"][n])


def test_on_digits_each_half_alone_becomes_good_and_both_stay_so(data):
    found = {}
    for name in ("joint", "gmd"):
        config = {"data": data, "out": "unused", "balancer": name, "max_steps": 200, "batch_size": 100}
        matrix = train_light(load_config({**config, "optimizer": {"lr": 0.01}})).matrix["test"]
        found[name] = np.array([matrix[c]["accuracy"] for c in (1, 2, 3)])
    assert found["gmd"].min() > 0.75
    assert found["joint"].min() < 0.7
    assert found["gmd"][2] > found["joint"][2] - 0.02
