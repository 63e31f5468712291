"""The smallest vector in the convex hull of gradients: by hand, by brute force, and along it no objective rises."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles.pareto import min_norm_point
from pareto_cases import CONFLICT, VECTORS

from equipoise.balancers import min_norm_weights
from equipoise.models import EquipoiseError


def weights_of(gradients):
    g = torch.tensor(gradients, dtype=torch.float64)
    return min_norm_weights(g @ g.T).numpy()


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
