"""PCGrad: a step by finite differences, and TorchJD's with the same orders."""

import numpy as np
import pytest
import torch
from oracles.gmd import projected
from pareto_cases import CASES, aggregation, flat, measured, needs_torchjd, step_of

from equipoise.balancers import remove_conflicts
from equipoise.balancers.conflicts import random_orders
from equipoise.models.rowhash import seed_of


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize(("t", "kind"), CASES)
def test_pcgrad_step(t, kind, reduction):
    batch, _, gradients = measured(t, kind)
    found, _, result = step_of("pcgrad", batch, unimodal=kind, reduction=reduction)
    k = len(gradients)
    orders = random_orders(k, torch.Generator().manual_seed(seed_of(11, "pcgrad", 0)))
    free = projected([flat(g) for g in gradients.values()], orders.tolist())
    np.testing.assert_allclose(flat(found), free.sum(axis=0) / (k if reduction == "mean" else 1), rtol=1e-5, atol=1e-8)
    assert result.statistics["pcgrad_norm"] == pytest.approx(np.linalg.norm(flat(found)))
    assert {f"pcgrad_weight_{n}" for n in gradients} <= set(result.statistics)


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
