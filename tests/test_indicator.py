"""The gradient indicator against the gradients themselves, and a monitor that changes nothing."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monitor_cases import steps
from oracles import balancers as oracle
from torch import nn
from world_cases import CLASSES, build_model, global_batch

from equipoise import balancers
from equipoise.balancers import Gradients, remove_conflicts
from equipoise.balancers.conflicts import random_orders
from equipoise.balancers.finite import check_objectives
from equipoise.balancers.gradients import Layout
from equipoise.balancers.indicator import EVERY, PAIRED, indicate, region_grams, towards
from equipoise.models import Classification, EquipoiseError
from equipoise.models.fusion import FUSIONS
from equipoise.pipelines.config import load_config


def gradients_of(rows, reached=None, names="abcdef", sizes=None):
    flat = torch.tensor(rows, dtype=torch.float64)
    sizes = sizes or [1] * flat.shape[1]
    reached = torch.ones(len(rows), len(sizes)) if reached is None else torch.tensor(reached)
    layout = Layout.of({"shared": [nn.Parameter(torch.zeros(n)) for n in sizes]})
    return Gradients(flat, tuple(names[: len(rows)]), layout, reached.bool())


def of(rows, calibrated=None, **how):
    found = gradients_of(rows, **how)
    return indicate(region_grams(found), found.names, calibrated)


@pytest.mark.parametrize("degrees", [0, 60, 90, 100, 120, 150, 170, 180])
def test_angles_by_hand(degrees):
    # TV12's vectors: one of length 1, one of length 2.
    t = math.radians(degrees)
    found = of([[1.0, 0.0], [2 * math.cos(t), 2 * math.sin(t)]])
    assert found.angles[0, 1].item() == pytest.approx(degrees, abs=1e-5)
    assert found.norms.tolist() == pytest.approx([1, 2])
    assert found.dominance == pytest.approx(2)
    assert found.conflicts == (degrees > 90)
    # The plain sum, seen from the first: 1 + 2 cos t.
    assert found.along[0].item() == pytest.approx(1 + 2 * math.cos(t), abs=1e-12)


def test_three_gradients_by_hand():
    found = of([[3.0, 4.0], [-3.0, 0.0], [0.0, 1.0]])
    assert found.numbers("g") == pytest.approx(
        {
            "g/norm/a": 5, "g/norm/b": 3, "g/norm/c": 1, "g/along/a": 4, "g/along/b": 0, "g/along/c": 5,
            "g/cosine/a/b": -0.6, "g/cosine/a/c": 0.8, "g/cosine/b/c": 0,
            "g/conflicts": 1 / 3, "g/dominance": 5,
        }
    )  # fmt: skip
    np.testing.assert_allclose(found.along, [(25 - 9 + 4) / 5, (-9 + 9 + 0) / 3, (4 + 0 + 1) / 1])


@pytest.mark.parametrize(("degrees", "after"), [(60, 60), (100, 80), (120, 60), (150, 30), (170, 10)])
def test_angles_after_by_hand(degrees, after):
    # TV12: an obtuse angle of two becomes its supplement.
    t = math.radians(degrees)
    rows = [[1.0, 0.0], [2 * math.cos(t), 2 * math.sin(t)]]
    g = torch.tensor(rows, dtype=torch.float64)
    found = of(rows, remove_conflicts(g @ g.T, torch.tensor([[1], [0]])))
    assert found.angles[0, 1].item() == pytest.approx(after, abs=1e-5)
    assert found.conflicts == 0


def test_products_are_those_of_the_mean_gradients():
    # TV7: two workers, the same gradient of the first objective, opposite ones of the second along it.
    a, b = [[1.0, 0.0], [-3.0, 1.0]], [[1.0, 0.0], [3.0, 1.0]]
    mean = ((np.array(a) + np.array(b)) / 2).tolist()
    np.testing.assert_allclose(of(mean).products, np.eye(2))
    local = (of(a).products + of(b).products) / 2  # the planted fault
    np.testing.assert_allclose(local, np.diag([1, 10]))


def test_pairs_of_many_objectives_are_summed_up():
    names = [f"o{i}" for i in range(PAIRED + 1)]
    numbers = of(np.eye(len(names)).tolist(), names=names).numbers("g")
    assert not [n for n in numbers if "cosine" in n]
    assert {n.split("/")[1] for n in numbers} == {"norm", "along", "conflicts", "dominance"}
    assert [n for n in of(np.eye(PAIRED).tolist(), names=names).numbers("g") if "cosine" in n]


def test_a_pair_is_compared_over_what_both_reach():
    # Columns: a and b, a alone, b alone, c alone, a and c.
    rows = [[1.0, 9, 0, 0, 2], [-1, 0, 7, 0, 0], [0, 0, 0, 5, -3]]
    reached = [[1, 1, 0, 0, 1], [1, 0, 1, 0, 0], [0, 0, 0, 1, 1]]
    found = of(rows, reached=reached)
    assert found.cosines[0, 1] == -1
    assert found.cosines[0, 2] == -1
    assert math.isnan(found.cosines[1, 2])
    assert found.conflicts == 1  # of the two pairs that have an angle
    np.testing.assert_allclose(found.norms**2, [1 + 81 + 4, 1 + 49, 25 + 9])


def test_zero_gradients_have_no_angle():
    found = of([[1.0, 0.0], [0.0, 0.0], [-1.0, 0.5]])
    assert math.isnan(found.cosines[0, 1])
    assert math.isnan(found.along[1])
    assert found.conflicts == 1
    assert found.dominance == math.inf
    nothing = of([[0.0], [0.0]])
    assert math.isnan(nothing.dominance)
    assert math.isnan(nothing.conflicts)


def test_tiny_gradients_keep_their_angle():
    assert of([[1e-120, 0.0], [-1e-120, 1e-120]]).cosines[0, 1].item() == pytest.approx(-(0.5**0.5))


ROWS = st.integers(2, 5).flatmap(
    lambda k: st.lists(st.lists(st.integers(-5, 5).map(float), min_size=6, max_size=6), min_size=k, max_size=k)
)


@settings(max_examples=60, deadline=None)
@given(ROWS, st.integers(0, 2**31), st.data())
def test_calibrated_gradients_are_seen_as_if_they_were_there(rows, seed, data):
    k = len(rows)
    reached = [[data.draw(st.booleans()) for _ in range(3)] for _ in range(k)]
    rows = np.array(rows) * np.repeat(reached, 2, axis=1)
    g = torch.from_numpy(rows)
    c = remove_conflicts(g @ g.T, random_orders(k, torch.Generator().manual_seed(seed)))
    found = of(rows.tolist(), c, reached=reached, sizes=[2, 2, 2])
    there = (c @ g).numpy()
    for i in range(k):
        for j in range(k):
            both = np.repeat(np.logical_and(reached[i], reached[j]), 2)
            product = there[i, both] @ there[j, both]
            assert found.products[i, j].item() == pytest.approx(product, abs=1e-9)
            scale = np.linalg.norm(there[i, both]) * np.linalg.norm(there[j, both])
            if scale > 1e-6:
                assert found.cosines[i, j].item() == pytest.approx(product / scale, abs=1e-6)
    angles = found.angles[~found.angles.isnan()]
    assert bool(((angles >= 0) & (angles <= 180)).all())


def test_the_step_seen_from_each_objective():
    found = gradients_of([[1.0, 0, 0], [0, -2, 0]], reached=[[1, 0, 1], [0, 1, 1]])
    said = towards(found, torch.tensor([3.0, 4, 0], dtype=torch.float64))
    assert said == pytest.approx({"gradient/towards/a": 1.0, "gradient/towards/b": -1.0, "gradient/opposed": 1.0})
    said = towards(found, torch.tensor([3.0, 0, 4], dtype=torch.float64))
    assert said["gradient/towards/a"] == pytest.approx(0.6)


def test_the_monitor_sees_the_gradients_of_every_set():
    # Against finite differences: norms over all parameters, cosines over head and the encoders of both.
    data = global_batch(0, torch.float64)
    model = build_model(torch.float64)
    p = {n: v.detach().numpy().copy() for n, v in model.named_parameters()}
    arrays = oracle.arrays(data)
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor = balancers.Monitor(every=3)
    step = balancers.BalancedStep(model, Classification(CLASSES), balancers.get("joint"), sgd, monitor=monitor)
    seen = step(data).statistics
    sets = ["a+b+c", "a+b", "a+c", "b+c", "a", "b", "c"]
    assert [k for k in seen if k.startswith("monitor/norm/")] == [f"monitor/norm/{s}" for s in sets]
    found = {s: oracle.gradient(lambda q, s=s: oracle.subset_loss(q, arrays, s.split("+")), p) for s in sets}
    norms = {s: math.sqrt(sum((v**2).sum() for v in g.values())) for s, g in found.items()}
    for s in sets:
        assert seen[f"monitor/norm/{s}"] == pytest.approx(norms[s], rel=1e-6)
    conflicts = 0
    for i, a in enumerate(sets):
        for b in sets[i + 1 :]:
            left = {m for m in data["inputs"] if m not in a.split("+") or m not in b.split("+")}
            both = [n for n in p if not left & set(n.split("."))]
            lengths = [math.sqrt(sum((found[s][n] ** 2).sum() for n in both)) for s in (a, b)]
            cosine = sum((found[a][n] * found[b][n]).sum() for n in both) / math.prod(lengths)
            assert seen[f"monitor/cosine/{a}/{b}"] == pytest.approx(cosine, abs=1e-6)
            conflicts += cosine < 0
    assert seen["monitor/conflicts"] == pytest.approx(conflicts / 21)
    assert seen["monitor/dominance"] == pytest.approx(max(norms.values()) / min(norms.values()), rel=1e-6)
    assert not [k for k in step(data).statistics if k.startswith("monitor/")]


@pytest.mark.parametrize("noise", [False, True])
@pytest.mark.parametrize("name", ["joint", "gmd"])
@pytest.mark.filterwarnings("ignore:The model has")
def test_a_monitored_run_is_the_same_run(name, noise):
    seen, plain = (steps(0, 1, None, name, every, noise=noise) for every in (2, None))
    assert [bool(s) for s in seen["seen"]] == [True, False, True, False, True, False, True]
    for what in ("parameters", "buffers"):
        for a, b in zip(seen[what], plain[what], strict=True):
            np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(seen["state"], plain["state"])


@pytest.mark.parametrize(("name", "micro"), [("joint", 1), ("gmd", 2)])
def test_the_monitor_sees_the_global_batch(gloo, name, micro):
    # TV7's point: what one worker's rows say of an angle is another number.
    [alone] = gloo.run("monitor_cases", "steps", 1, name, 3)
    plain = gloo.run("monitor_cases", "steps", 2, name, None, micro)
    for world in (2, 4):
        for found in gloo.run("monitor_cases", "steps", world, name, 3, micro):
            for ours, theirs in zip(found["seen"], alone["seen"], strict=True):
                assert ours == pytest.approx(theirs, rel=1e-9, abs=1e-9, nan_ok=True)
            if world == 2:
                for a, b in zip(found["parameters"], plain[0]["parameters"], strict=True):
                    np.testing.assert_array_equal(a, b)


def test_more_than_three_modalities_are_looked_at_alone_and_together():
    from equipoise.models import MLP, LateFusion

    names = "abcd"
    model = LateFusion({m: MLP(2, (2,), 2) for m in names}, 2)
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor = balancers.Monitor(every=1)
    step = balancers.BalancedStep(model, Classification(2), balancers.get("joint"), sgd, monitor=monitor)
    batch = {
        "sample_id": torch.arange(4), "copy": torch.zeros(4, dtype=torch.int16),
        "inputs": {m: torch.randn(4, 2) for m in names}, "present": torch.ones(4, 4, dtype=torch.bool),
        "target": torch.tensor([0, 1, 0, 1]),
    }  # fmt: skip
    seen = [k.split("/")[-1] for k in step(batch).statistics if k.startswith("monitor/norm/")]
    assert seen == ["a+b+c+d", "a", "b", "c", "d"]


@pytest.mark.parametrize("every", [None, 4])
def test_gradients_are_looked_at_now_and_then_also_after_a_resume(every):
    def build():
        model = build_model(torch.float64)
        sgd = torch.optim.SGD(model.parameters(), lr=0.1)
        monitor = every and balancers.Monitor(every=every)
        return balancers.BalancedStep(model, Classification(CLASSES), balancers.get("gmd"), sgd, monitor=monitor)

    step, seen = build(), []
    for t in range(13):
        if t == 7:
            state, weights = step.state_dict(), step.model.state_dict()
            step = build()
            step.model.load_state_dict(weights)
            step.load_state_dict(state)
        said = step(global_batch(t, torch.float64)).statistics
        kinds = {"/".join(n.split("/")[:2]) for n in said if "/" in n}
        assert not kinds or {"gradient/norm", "gradient/after", "gradient/towards"} <= kinds
        assert bool(every and kinds) == ("monitor/norm" in kinds)
        seen += [t] if kinds else []
    assert seen == list(range(0, 13, every or EVERY))


def test_a_gradient_is_refused_for_what_is_in_it_not_for_its_length():
    flat = torch.tensor([[1e30, 1e30], [1.0, math.nan]])
    check_objectives(flat[:1], ["long"], "step 3 of epoch 0")
    with pytest.raises(EquipoiseError, match=r"gradient of the objective 'odd' is not finite in step 3 of epoch 0"):
        check_objectives(flat, ["long", "odd"], "step 3 of epoch 0")


@pytest.mark.parametrize("name", balancers.names())
def test_methods_that_keep_gradients_apart_say_how_they_lie(name):
    balancer = balancers.get(name)
    how = (
        {"fusion": balancer.fusions[0], "absence": FUSIONS[balancer.fusions[0]].absences[0]} if balancer.fusions else {}
    )
    model = build_model(torch.float64, unimodal=balancer.accepts[0], **how)
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    result = balancers.BalancedStep(model, Classification(CLASSES), balancer, sgd)(global_batch(0, torch.float64))
    said = {k for k in result.statistics if k.startswith("gradient/")}
    if not balancer.separate:
        assert not said
        return
    for loss in result.losses:
        assert {f"gradient/norm/{loss}", f"gradient/towards/{loss}"} <= said
    assert {"gradient/conflicts", "gradient/dominance", "gradient/opposed"} <= said
    if name in ("gmd", "pcgrad"):
        assert "gradient/after/conflicts" in said


def test_an_interval_below_one_is_refused():
    with pytest.raises(EquipoiseError, match=r"Option 'every' of Monitor: .* greater than or equal to 1, found 0"):
        balancers.Monitor(every=0)
    with pytest.raises(EquipoiseError, match=r"Option 'every' of Monitor: .* greater than or equal to 1, found 0"):
        load_config({"data": "d", "out": "o", "balancer": "joint", "max_steps": 1, "monitor": {"every": 0}})
