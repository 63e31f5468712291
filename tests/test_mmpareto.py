"""MMPareto: gradients by hand, a step by finite differences, TorchJD's weights, a planted fault, steps on digits."""

import numpy as np
import pytest
import torch
from oracles.pareto import min_norm_point, mmpareto_encoder
from pareto_cases import (
    CASES,
    CONFLICT,
    FULL,
    TWO,
    aggregation,
    assert_close,
    by_hand,
    combined,
    digits_steps,
    measured,
    needs_torchjd,
    step_of,
)
from world_cases import CLASSES, build_model, global_batch

from equipoise import balancers
from equipoise.balancers import BalancedStep
from equipoise.balancers.mmpareto import MMPareto
from equipoise.models import Classification, EquipoiseError


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


def test_a_unimodal_gradient_of_zeros_leaves_mmpareto_the_fused_one():
    # Reached, but zero: a modality whose loss is at its minimum must not stop the encoder.
    g = by_hand(fused=TWO, a=TWO)
    g.flat[1] = 0
    found, reports = combined("mmpareto", g)
    np.testing.assert_allclose(found[:5], 1.5 * np.array(TWO[:5]))
    assert reports["mmpareto_fused_share_a"] == 0.5


def expected_mmpareto(gradients, gamma):
    found = {n: sum(g[n] for g in gradients.values()) for n in gradients["fused"]}
    for m in set(gradients) - {"fused"}:
        mine = [n for n in found if n.startswith(f"encoders.{m}.")]
        found |= mmpareto_encoder({n: gradients["fused"][n] for n in mine}, {n: gradients[m][n] for n in mine}, gamma)
    return found


@pytest.mark.parametrize(("t", "kind"), CASES)
def test_mmpareto_step(t, kind):
    batch, _, gradients = measured(t, kind)
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


def test_gradients_accumulated_without_zeroing_fail_the_oracle():
    batch, _, gradients = measured(0, "heads")
    found, _, result = step_of(AccumulatedGradients(), batch)
    plain = {n: sum(g[n] for g in gradients.values()) for n in gradients["fused"]}
    expected = expected_mmpareto(gradients, 1.5)
    for n, g in plain.items():
        if n.startswith("encoders."):
            np.testing.assert_allclose(found[n], 3 * g, rtol=1e-5, atol=1e-8)
    assert not any(result.statistics[f"mmpareto_conflict_{m}"] for m in "abc")
    with pytest.raises(AssertionError):
        assert_close(found, expected)


def test_mmpareto_needs_encoders_of_their_own():
    with pytest.raises(EquipoiseError, match="'mmpareto' needs unimodal logits of kind 'split' or 'heads'"):
        balancers.get("mmpareto").check(build_model(torch.float32, unimodal="coalition"), Classification(CLASSES))


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
