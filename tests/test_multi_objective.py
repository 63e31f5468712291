"""MMPareto, PCGrad, MGDA and TorchJD's aggregators where there is little to combine, and along training on digits."""

import numpy as np
import pytest
import torch
from pareto_cases import METHODS, TWO, by_hand, combined, digits_steps, each, flat
from world_cases import CLASSES, global_batch

from equipoise import balancers
from equipoise.balancers import BalancedStep
from equipoise.models import MLP, Classification, LateFusion

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
