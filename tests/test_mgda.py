"""MGDA: gradients by hand, steps by finite differences and brute force, TorchJD's."""

import numpy as np
import pytest
import torch
from oracles import balancers as oracle
from oracles.pareto import min_norm_point
from pareto_cases import (
    CASES,
    CONFLICT,
    aggregation,
    assert_close,
    by_hand,
    combined,
    expected_of_shared,
    measured,
    needs_torchjd,
    step_of,
)

from equipoise.balancers import min_norm_weights


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


@pytest.mark.parametrize(("t", "kind"), CASES)
def test_mgda_step(t, kind):
    batch, _, gradients = measured(t, kind)
    found, _, result = step_of("mgda", batch, unimodal=kind)
    assert_close(found, expected_of_shared(gradients, min_norm_point))
    weights = [result.statistics[f"mgda_weight_{n}"] for n in gradients]
    assert sum(weights) == pytest.approx(1)
    assert min(weights) >= 0
    everything, _, _ = step_of("mgda", batch, unimodal=kind, parameters="all")
    assert_close(everything, expected_of_shared(gradients, min_norm_point, list(gradients["fused"])))


def test_mgda_normalization_reads_the_losses_of_the_global_batch():
    batch, p, gradients = measured(0, "split")
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
