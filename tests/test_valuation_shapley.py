"""Contributions and copies against their definitions and the vectors of the method's specification."""

import doctest
import sys
from collections import Counter
from fractions import Fraction
from itertools import combinations, product
from math import factorial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import valuation as oracle

import equipoise.valuation
from equipoise.models.errors import EquipoiseError
from equipoise.valuation import bits, coalition_name, copies, from_bits, linear_copies, members, shapley


def all_tables(num_modalities):
    width = 2**num_modalities - 1
    return (np.arange(2**width)[:, None] >> np.arange(width) & 1).astype(bool)


def right(num_modalities, *coalitions):
    """The 0/1 table in which only the listed coalitions ("01" = modalities 0 and 1) are right."""
    row = np.zeros((1, 2**num_modalities - 1), bool)
    for coalition in coalitions:
        row[0, sum(1 << int(m) for m in coalition) - 1] = True
    return row


def assert_exact(score, present):
    found, counts = shapley(score, present), copies(shapley(score, present), present)
    for i, (row, there) in enumerate(zip(score.tolist(), present.tolist())):
        phi = oracle.shapley(row, there)
        assert [None if np.isnan(x) else x for x in found[i].tolist()] == [None if f is None else float(f) for f in phi]
        assert counts[i].tolist() == [oracle.bins(f) for f in phi]


@pytest.mark.parametrize("num_modalities", [1, 2, 3])
def test_every_table_and_availability_exactly(num_modalities):
    score = all_tables(num_modalities)
    for pattern in range(1, 2**num_modalities):
        present = np.repeat(from_bits(np.array([pattern]), num_modalities), len(score), axis=0)
        assert_exact(score, present)


@pytest.mark.parametrize("num_modalities", [4, 5])
def test_random_tables_exactly(num_modalities):
    rng = np.random.default_rng(num_modalities)
    score = rng.random((2000, 2**num_modalities - 1)) < rng.random((2000, 1))
    present = np.ones((2000, num_modalities), bool)
    present[1000:] = from_bits(rng.integers(1, 2**num_modalities, 1000), num_modalities)
    assert_exact(score, present)


def test_rows_of_all_availabilities_in_one_call():
    rng = np.random.default_rng(0)
    score, present = rng.random((500, 7)) < 0.5, from_bits(rng.integers(1, 8, 500), 3)
    assert_exact(score, present)


def test_vectors_7_1_two_modalities():
    expected = [[0, 0], [1, -1], [-1, 1], [0, 0], [2, 2], [3, 1], [1, 3], [2, 2]]
    np.testing.assert_array_equal(2 * shapley(all_tables(2)), expected)
    table = {  # (all, a, v right): copies (a, v), as the closed form of section 1.3 lists them
        (0, 0, 0): (2, 2),
        (0, 0, 1): (3, 1),
        (0, 1, 0): (1, 3),
        (0, 1, 1): (2, 2),
        (1, 0, 0): (0, 0),
        (1, 0, 1): (1, 0),
        (1, 1, 0): (0, 1),
        (1, 1, 1): (0, 0),
    }
    for (together, a, v), counts in table.items():
        assert copies(shapley(np.array([[a, v, together]], bool))).tolist() == [list(counts)]


THIRDS = [
    (["012"], "1 1 1", [0, 0, 0]),
    (["0", "012"], "4/3 5/6 5/6", [0, 1, 1]),
    (["0", "01", "02", "012"], "2 1/2 1/2", [0, 1, 1]),
    (["0", "1", "2", "01", "02", "12", "012"], "1 1 1", [0, 0, 0]),
    (["01", "02", "12", "012"], "1 1 1", [0, 0, 0]),
    (["0"], "1/3 -1/6 -1/6", [2, 3, 3]),
    (["01"], "1/3 1/3 -2/3", [2, 2, 3]),
    (["01", "012"], "4/3 4/3 1/3", [0, 0, 2]),
    (["0", "1", "2"], "0 0 0", [2, 2, 2]),
    (["0", "1", "01", "012"], "3/2 3/2 0", [0, 0, 2]),
]


@pytest.mark.parametrize(("coalitions", "phi", "counts"), THIRDS)
def test_vectors_7_2_three_modalities(coalitions, phi, counts):
    found = shapley(right(3, *coalitions))
    assert found.tolist() == [[float(Fraction(x)) for x in phi.split()]]
    assert copies(found).tolist() == [counts]


def test_vectors_7_2_over_all_tables():
    score = all_tables(3)
    phi = shapley(score)
    sixths = {0: (0, 0, 0), 1: (2, -1, -1), 4: (2, 2, -4), 64: (6, 6, 6), 65: (8, 5, 5)}
    sixths |= {75: (6, 6, 6), 69: (10, 7, 1), 116: (6, 6, 6), 127: (6, 6, 6)}
    for index, expected in sixths.items():
        assert np.rint(6 * phi[index]).tolist() == list(expected)
    histogram = Counter(np.rint(6 * phi).astype(int).ravel().tolist())
    assert sorted(histogram) == list(range(-6, 13))
    assert (histogram[6], histogram[3], histogram[-6], histogram[12]) == (27, 36, 3, 3)
    per_sample, together = copies(phi).sum(axis=1), score[:, 6]
    assert Counter(per_sample[~together].tolist()) == {5: 3, 6: 25, 7: 27, 8: 9}
    assert Counter(per_sample[together].tolist()) == {0: 4, 1: 21, 2: 33, 3: 6}


def test_vectors_7_3_four_modalities_and_ranges():
    assert shapley(right(4, "0123")).tolist() == [[1, 1, 1, 1]]
    dictator = ["0" + "".join(rest) for k in range(4) for rest in combinations("123", k)]
    assert shapley(right(4, *dictator)).tolist() == [[2.5, 0.5, 0.5, 0.5]]
    assert copies(shapley(right(4, *dictator))).tolist() == [[0, 1, 1, 1]]
    for m in range(2, 7):
        with_0, rest = [], []
        for k in range(m):
            for others in combinations("12345"[: m - 1], k):
                with_0.append("0" + "".join(others))
                rest.append("".join(others))
        assert shapley(right(m, *with_0))[0, 0] == (m + 1) / 2
        assert shapley(right(m, *rest[1:]))[0, 0] == -(m - 1) / 2


def test_vectors_7_4_six_samples():
    rows = [(1, 1, 0), (1, 1, 1), (0, 0, 0), (0, 1, 0), (1, 0, 1), (1, 0, 0)]  # (all, a, v) right
    score = np.array([(a, v, together) for together, a, v in rows], bool)
    phi = shapley(score)
    assert phi.tolist() == [[1.5, 0.5], [1, 1], [0, 0], [0.5, -0.5], [0.5, 1.5], [1, 1]]
    assert [Fraction(int(x), 12) for x in (2 * phi).sum(axis=0)] == [Fraction(3, 4), Fraction(7, 12)]
    # (sample, dropped) in the reference's order: copies of a drop v (2), copies of v drop a (1)
    counts = copies(phi).tolist()
    appended = [(i, 2 - m) for i, row in enumerate(counts) for m in (0, 1) for _ in range(row[m])]
    assert appended == [(0, 1), (2, 2), (2, 2), (2, 1), (2, 1), (3, 2), (3, 1), (3, 1), (3, 1), (4, 2)]


@pytest.mark.parametrize("num_modalities", [2, 3, 4, 5])
def test_graded_efficiency_and_agreement_with_the_definition(num_modalities):
    rng = np.random.default_rng(7)
    score = rng.random((200, 2**num_modalities - 1))
    present = from_bits(rng.integers(1, 2**num_modalities, 200), num_modalities)
    score[~(members(num_modalities) & present[:, None, :]).any(axis=2)] = np.nan  # as a sweep leaves it
    phi, pattern = shapley(score, present), bits(present)
    expected = present.sum(axis=1) * score[np.arange(200), pattern - 1]
    assert np.abs(np.nansum(phi, axis=1) - expected).max() < 1e-12
    for row, there, found in zip(score[:20].tolist(), present[:20].tolist(), phi[:20]):
        exact = oracle.shapley([0 if x != x else Fraction(x) for x in row], there)
        np.testing.assert_allclose(found, [np.nan if f is None else float(f) for f in exact], rtol=0, atol=1e-12)


def test_ten_modalities():
    rng = np.random.default_rng(1)
    phi = shapley(rng.random((50, 1023)) < 0.5)
    k = phi * factorial(10)
    np.testing.assert_allclose(k, np.rint(k), atol=1e-7, rtol=0)
    assert copies(phi).max() <= 3
    dictator = members(10)[:, [3]].T
    assert shapley(dictator).tolist() == [[0.5] * 3 + [5.5] + [0.5] * 6]


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 4), st.data())
def test_relabelling_modalities_permutes_contributions(num_modalities, data):
    width = 2**num_modalities - 1
    row = np.array([data.draw(st.lists(st.booleans(), min_size=width, max_size=width))])
    order = np.array(data.draw(st.permutations(range(num_modalities))))
    relabelled = np.empty_like(row)
    for c, inside in enumerate(members(num_modalities)):
        relabelled[0, sum(1 << int(order[m]) for m in np.flatnonzero(inside)) - 1] = row[0, c]
    np.testing.assert_array_equal(shapley(relabelled)[:, order], shapley(row))


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 4), st.data())
def test_an_absent_modality_is_no_player(num_modalities, data):
    """Scores of coalitions with an absent modality are never read, and the rest is the game of the present ones."""
    width = 2**num_modalities - 1
    row = np.array([data.draw(st.lists(st.floats(0, 1), min_size=width, max_size=width))])
    gone = data.draw(st.integers(0, num_modalities - 1))
    present = np.arange(num_modalities)[None] != gone
    inside = members(num_modalities)
    smaller = shapley(row[:, ~inside[:, gone]])
    row[:, inside[:, gone]] = np.nan
    phi = shapley(row, present)
    assert np.isnan(phi[0, gone])
    np.testing.assert_array_equal(np.delete(phi, gone, axis=1), smaller)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.booleans(), min_size=7, max_size=7))
def test_a_dummy_earns_what_it_adds_to_the_size(row):
    """Where modality 2 never changes the score, its marginals are the scores it joins: 1/3 [v'(0) + ...] by definition."""
    row[3], row[4], row[5], row[6] = False, row[0], row[1], row[2]
    phi = shapley(np.array([row]))[0]
    s0, s1, s01 = row[0], row[1], row[2]
    assert phi[2] == float(Fraction(s0 + s1, 6) + Fraction(s01, 3))
    assert phi[0] - phi[1] == pytest.approx(1.5 * (s0 - s1), abs=1e-12)


def test_one_modality_present_of_two():
    """ARCHITECTURE: right -> (1, NaN), wrong -> (0, NaN) with copies (2, 0)."""
    phi = shapley(np.array([[True, False, False], [False, False, False]]), np.array([[True, False]] * 2))
    np.testing.assert_array_equal(phi, [[1, np.nan], [0, np.nan]])
    assert copies(phi).tolist() == [[0, 0], [2, 0]]


def test_torch_tensors_and_float_types():
    score = torch.tensor([[True, False, True]])
    assert shapley(score, torch.tensor([[True, True]])).tolist() == [[1.5, 0.5]]
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        assert shapley(score.to(dtype)).tolist() == [[1.5, 0.5]]


def test_no_rows():
    assert shapley(np.zeros((0, 3), bool)).shape == (0, 2)


def test_bad_tables_are_refused_in_a_sentence():
    with pytest.raises(EquipoiseError, match=r"2\*\*M - 1.*found shape \(4, 5\)"):
        shapley(np.zeros((4, 5), bool))
    with pytest.raises(EquipoiseError, match="Row 1 of the score table has no modality present"):
        shapley(np.zeros((2, 3), bool), np.array([[True, True], [False, False]]))
    with pytest.raises(EquipoiseError, match=r"Row 2 .* not a number"):
        shapley(np.array([[0.5, 0.5, 0.5], [1, 1, 1], [np.nan, 0, 0]]))
    with pytest.raises(EquipoiseError, match="for 1 to 10 of them, not for 11"):
        members(11)
    with pytest.raises(EquipoiseError, match=r"present must be bool \[2, 2\], found bool \[1, 2\]"):
        shapley(np.zeros((2, 3), bool), np.ones((1, 2), bool))


def test_coalition_order_and_names():
    assert [coalition_name(c, ["a", "b", "c"]) for c in range(1, 8)] == ["a", "b", "a+b", "c", "a+c", "b+c", "a+b+c"]
    assert bits(members(3)).tolist() == list(range(1, 8))
    with pytest.raises(EquipoiseError, match="Coalition 4 does not exist"):
        coalition_name(4, ["a", "b"])


def test_bins_are_closed_where_five_modalities_reach_their_edges():
    phi = np.full((1, 5), 1.0)
    phi[0, :4] = 48 / 120, -12 / 120, 47 / 120, -13 / 120
    assert copies(phi).tolist() == [[1, 2, 2, 3, 0]]
    assert copies(np.array([[0.999, 0.4, -0.1, -0.1001]]), exact=False).tolist() == [[1, 1, 2, 3]]


def test_bins_refuse_graded_contributions():
    with pytest.raises(EquipoiseError, match=r"0.7 .* use the linear rule"):
        copies(np.array([[0.7, 0.5]]))
    with pytest.raises(EquipoiseError, match=r"Row 0 has no contribution \(NaN\) for modality 1"):
        copies(np.array([[1.0, np.nan]]), np.array([[True, True]]))


@pytest.mark.parametrize("u", [0.0, 0.5, np.nextafter(1, 0)])
def test_linear_rule_gives_the_bins_back_at_two_modalities(u):
    """For the u next to 1 a plain floor(2 + u) is 3."""
    for pattern in (1, 2, 3):
        present = np.repeat(from_bits(np.array([pattern]), 2), 8, axis=0)
        phi = shapley(all_tables(2), present)
        np.testing.assert_array_equal(linear_copies(phi, np.full(phi.shape, u)), copies(phi))


def test_linear_rule_rounds_up_in_proportion_and_is_capped():
    u = np.linspace(0, 1, 1000, endpoint=False)[:, None]
    assert linear_copies(np.full((1000, 1), 0.35), u).sum() == 1300  # 2 (1 - .35) = 1.3
    assert linear_copies(np.array([[-1.0, -1.0, 2.0]]), np.zeros((1, 3))).tolist() == [[3, 3, 0]]
    assert linear_copies(np.array([[-1.0, 0.25]]), np.zeros((1, 2)), tau=0.75, scale=4, cap=9).tolist() == [[7, 2]]
    with pytest.raises(EquipoiseError, match=r"u must be numbers in \[0, 1\)"):
        linear_copies(np.zeros((1, 2)), np.ones((1, 2)))


def test_the_mean_gap_is_the_accuracy_gap_at_two_modalities():
    score = np.array(list(product([False, True], repeat=3)))
    phi = shapley(score)
    np.testing.assert_array_equal(phi[:, 0] - phi[:, 1], score[:, 0].astype(float) - score[:, 1])


def test_the_tutorial_runs():
    for module in (equipoise.valuation, sys.modules["equipoise.valuation.shapley"]):
        found = doctest.testmod(module)
        assert (found.failed, found.attempted > 0) == (0, True)
