"""Graded benefits: what contributions add up to, what the store costs, and copies worked out by hand."""

import itertools

import numpy as np
import pytest
import torch

from equipoise.models import (
    MLP,
    Classification,
    DenseFusion,
    EarlyFusion,
    LateFusion,
    MultiLabel,
    Patches,
    Regression,
    Segmentation,
    UNet,
    rowhash,
)
from equipoise.models.errors import EquipoiseError
from equipoise.valuation import (
    StoreInfo,
    Values,
    bits,
    copies,
    from_bits,
    get,
    linear_copies,
    members,
    read_values,
    shapley,
    store_schema,
    sweep,
    values_of,
    write_chunk,
)

NAMES = ("a", "b", "c", "d")
SIDE = 4
TASKS = {
    "classification": Classification(3),
    "labels": MultiLabel(7),
    "exact": MultiLabel(2, benefit="exact"),
    "tolerance": Regression(2, tolerance=1.0),
    "sign": Regression(1, benefit="sign"),
    "segmentation": Segmentation(["WT", "TC", "ET"]),
}
every = pytest.mark.parametrize("name", TASKS)
sizes = pytest.mark.parametrize("count", [2, 3, 4])


def model_of(task, count, seed=0):
    torch.manual_seed(seed)
    if task.dense:
        encoders = {m: UNet(1, out_features=4, hidden=2, depth=1, dims=2) for m in NAMES[:count]}
        return DenseFusion(encoders, task.num_outputs, "gated", dim=4)
    return LateFusion({m: MLP(5, (6,), 6) for m in NAMES[:count]}, task.num_outputs, "gated", dim=4)


def batch_of(task, count, rows=29, absent=True, seed=0):
    rng = np.random.default_rng([seed, count])
    pattern = rng.integers(1, 2**count, rows) if absent else np.full(rows, 2**count - 1)
    shape = (rows, 1, SIDE, SIDE) if task.dense else (rows, 5)
    target = {
        "classification": lambda: rng.integers(0, task.num_outputs, rows),
        "multilabel": lambda: rng.integers(0, 2, (rows, task.num_outputs)).astype(np.uint8),
        "regression": lambda: rng.normal(size=(rows, task.num_outputs)).astype(np.float32),
        "segmentation": lambda: rng.integers(0, 2, (rows, task.num_outputs, SIDE, SIDE)).astype(np.uint8),
    }[task.name]()
    return {
        "sample_id": torch.arange(rows),
        "copy": torch.zeros(rows, dtype=torch.int16),
        "inputs": {m: torch.from_numpy(rng.normal(size=shape).astype(np.float32)) for m in NAMES[:count]},
        "present": torch.from_numpy(from_bits(pattern, count)),
        "target": torch.from_numpy(target),
    }


@torch.no_grad()
def naive(model, batch, task):
    """Full passes, coalition by coalition and row by row of the definition: float64, NaN where nothing is present."""
    count = len(model.modalities)
    out = np.full((len(batch["target"]), 2**count - 1), np.nan)
    model.eval()
    for c, inside in enumerate(members(count)):
        both = batch["present"] & torch.from_numpy(inside)
        there = both.any(dim=1)
        logits = model(batch["inputs"], torch.where(there[:, None], both, batch["present"])).logits
        out[there.numpy(), c] = task.benefit(logits, batch["target"]).double().numpy()[there.numpy()]
    return out


def by_orders(score, present):
    """Contributions as the mean, over all orders of the present modalities, of what each adds to v(C) = |C| score(C)."""
    phi = np.full(present.shape, np.nan)
    for i, row in enumerate(present):
        players = np.flatnonzero(row)
        orders = list(itertools.permutations(players))
        phi[i, players] = 0
        for order in orders:
            coalition, before = 0, 0.0
            for size, m in enumerate(order, start=1):
                coalition |= 1 << int(m)
                value = size * float(score[i, coalition - 1])
                phi[i, m] += (value - before) / len(orders)
                before = value
    return phi


@every
@sizes
def test_a_sweep_is_the_naive_one_and_contributions_are_efficient(name, count):
    task = TASKS[name]
    model, batch = model_of(task, count), batch_of(task, count)
    score = sweep(model, batch, task).numpy()
    expected = naive(model, batch, task)
    present = batch["present"].numpy()
    if task.graded:
        assert score.dtype == np.float64
        np.testing.assert_array_equal(score, expected)
        assert len(np.unique(score[~np.isnan(score)])) > 2, "graded, not right or wrong"
    else:
        assert score.dtype == np.bool_
        np.testing.assert_array_equal(score, np.nan_to_num(expected) == 1)
    phi = shapley(score, present)
    np.testing.assert_array_equal(np.isnan(phi), ~present)
    np.testing.assert_allclose(phi, by_orders(score, present), atol=1e-12)
    whole = expected[np.arange(len(present)), bits(present) - 1]
    np.testing.assert_allclose(np.nansum(phi, axis=1), present.sum(axis=1) * whole, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["labels", "tolerance"])
def test_a_sweep_of_early_fusion_is_the_naive_one(name):
    task = TASKS[name]
    torch.manual_seed(0)
    model = EarlyFusion({m: Patches(5, 2, 8) for m in NAMES[:3]}, task.num_outputs, dim=8, depth=1, heads=2)
    batch = batch_of(task, 3)
    expected = naive(model, batch, task)
    found = sweep(model, batch, task).numpy()
    np.testing.assert_array_equal(found, expected if task.graded else np.nan_to_num(expected) == 1)


def info(task, count):
    return StoreInfo(NAMES[:count], task.benefit_name, task.graded, "feature", "m0", "d0", "train", "1")


@every
@sizes
def test_what_the_store_keeps_and_costs(tmp_path, name, count):
    task = TASKS[name]
    batch = batch_of(task, count)
    score, present = sweep(model_of(task, count), batch, task), batch["present"]
    ids = batch["sample_id"].numpy()
    for chunk, part in enumerate((slice(0, 1), slice(1, 20), slice(20, 29))):
        names = [f"s{i}" for i in ids[part]]
        write_chunk(tmp_path, chunk, info(task, count), ids[part], names, score[part], present[part])
    table = read_values(tmp_path, info(task, count))
    assert table.schema.equals(store_schema(info(task, count)))
    back = values_of(table)
    np.testing.assert_array_equal(back.sample_id, ids)
    np.testing.assert_array_equal(back.present, present)
    np.testing.assert_array_equal(back.score, score.float().numpy() if task.graded else score.numpy())
    # As stored: contributions are exactly those of the stored scores, and close to those of the float64 ones. Each score is off
    # by 2^-25 at most (half an ulp below 1), and phi is the mean over orders of s score(C + i) - (s - 1) score(C).
    stored = np.column_stack([table[f"contribution_{m}"].to_numpy() for m in NAMES[:count]])
    np.testing.assert_array_equal(stored, back.contributions)
    np.testing.assert_array_equal(stored, shapley(back.score, back.present))
    exact = shapley(score, present)
    bound = (2 * count - 1) * 2.0**-25 if task.graded else 0
    assert np.nanmax(np.abs(stored - exact)) <= bound
    parts = present.sum(dim=1).numpy()
    np.testing.assert_allclose(np.nansum(stored, axis=1), parts * back.benefit, rtol=0, atol=1e-12)
    kept = np.column_stack([table[f"copies_{m}"].to_numpy() for m in NAMES[:count]])
    np.testing.assert_array_equal(kept, 0 if task.graded else copies(exact, present.numpy()))


def test_at_two_modalities_the_linear_rule_with_tau_one_is_the_bins_for_all_tables():
    # a, b, ab right -> (phi_a, phi_b) by hand: phi_a = (v(ab) + v(a) - v(b)) / 2, v(ab) = 2 [ab].
    table = np.array(list(itertools.product([0, 1], repeat=3)), bool)
    by_hand = {
        (0, 0, 0): ((0, 0), (2, 2)),
        (0, 0, 1): ((1, 1), (0, 0)),
        (0, 1, 0): ((-0.5, 0.5), (3, 1)),
        (0, 1, 1): ((0.5, 1.5), (1, 0)),
        (1, 0, 0): ((0.5, -0.5), (1, 3)),
        (1, 0, 1): ((1.5, 0.5), (0, 1)),
        (1, 1, 0): ((0, 0), (2, 2)),
        (1, 1, 1): ((1, 1), (0, 0)),
    }
    phi = shapley(table)
    np.testing.assert_array_equal(phi, [by_hand[tuple(map(int, row))][0] for row in table])
    counts = [by_hand[tuple(map(int, row))][1] for row in table]
    np.testing.assert_array_equal(copies(phi), counts)
    for u in (0.0, 0.25, 0.5, np.nextafter(1, 0)):
        np.testing.assert_array_equal(linear_copies(phi, np.full(phi.shape, u), tau=1.0), counts)


# Scores are eighths, so that every contribution is exact. Columns a, b, ab, of samples with both (0-3), one (4, 5).
SCORE = np.array(
    [
        [0.500, 0.250, 0.750],
        [1.000, 0.000, 0.500],
        [0.000, 1.000, 0.250],
        [0.125, 0.125, 1.000],
        [0.250, np.nan, np.nan],
        [np.nan, 0.500, np.nan],
    ]
)
PRESENT = np.array([[1, 1], [1, 1], [1, 1], [1, 1], [1, 0], [0, 1]], bool)
# phi_a = score(ab) + (score(a) - score(b)) / 2;  alone: the score itself.
PHI = np.array([[0.875, 0.625], [1.0, 0.0], [-0.25, 0.75], [1.0, 1.0], [0.25, np.nan], [np.nan, 0.5]])
TAU = (0.750 + 0.500 + 0.250 + 1.000 + 0.250 + 0.500) / 6  # 3.25 / 6 = 0.541667
# 2 max(0, tau - phi): 1.0833 below 0.0; 1.5833 below -0.25; 0.5833 below 0.25; 0.0833 below 0.5; nothing above tau.
WANTED = np.array([[0, 0], [0, 13 / 12], [19 / 12, 0], [0, 0], [7 / 12, 0], [0, 1 / 12]])


def graded_values(repeat=1):
    n = len(SCORE) * repeat
    score, present = np.tile(SCORE, (repeat, 1)).astype(np.float32), np.tile(PRESENT, (repeat, 1))
    return [Values(ids, score[ids], present[ids]) for ids in np.array_split(np.arange(n), 3)]


def test_copies_of_a_graded_table_by_hand():
    np.testing.assert_array_equal(shapley(SCORE, PRESENT), PHI)
    for u, expected in (
        (0.0, [[0, 0], [0, 1], [1, 0], [0, 0], [0, 0], [0, 0]]),
        (0.5, [[0, 0], [0, 1], [2, 0], [0, 0], [1, 0], [0, 0]]),
        (0.92, [[0, 0], [0, 2], [2, 0], [0, 0], [1, 0], [0, 1]]),
    ):
        found = linear_copies(PHI, np.full(PHI.shape, u), tau=TAU)
        np.testing.assert_array_equal(found, expected)
        np.testing.assert_array_equal(
            linear_copies(PHI, np.full(PHI.shape, u), tau=TAU, cap=1), np.minimum(expected, 1)
        )
    # The sample resampler: the same, with each row's own u; ids and cells are in no order of chunks.
    ids, modalities = np.ogrid[: len(SCORE), :2]
    for epoch, seed in itertools.product((3, 4), range(20)):
        u = rowhash.uniform(seed, "copies", modalities, epoch, ids)
        plan = get("sample", warmup=1).plan(epoch, graded_values()[::-1], len(SCORE), 2, seed=seed)
        np.testing.assert_array_equal(plan.copies, np.floor(WANTED + u).astype(int) * PRESENT)
        assert not plan.repeats.any()


def test_copies_keep_the_fraction_over_many_rows():
    repeat = 3000
    plan = get("sample", warmup=1).plan(3, graded_values(repeat), len(SCORE) * repeat, 2, seed=5)
    found = plan.copies.reshape(repeat, *SCORE.shape[:1], 2).mean(axis=0)
    # A fraction's deviation over 3,000 rows is at most 0.5 / sqrt(3000) = 0.009.
    np.testing.assert_allclose(found, WANTED, atol=0.04)


def test_random_copies_deal_the_same_rows_of_copies_within_an_availability():
    repeat = 50
    n = len(SCORE) * repeat
    sample = get("sample", warmup=1).plan(3, graded_values(repeat), n, 2, seed=1).copies
    dealt = get("random_copies", warmup=1).plan(3, graded_values(repeat), n, 2, seed=1).copies
    assert (sample != dealt).any()
    pattern = np.tile(bits(PRESENT), repeat)
    for availability in (1, 2, 3):
        mine = pattern == availability
        assert sorted(map(tuple, dealt[mine])) == sorted(map(tuple, sample[mine]))
    assert not dealt[~np.tile(PRESENT, (repeat, 1))].any()


def test_modality_level_learns_the_lower_mean_again():
    # Means over those that have it: a (0.875 + 1 - 0.25 + 1 + 0.25) / 5 = 0.575, b (0.625 + 0 + 0.75 + 1 + 0.5) / 5 = 0.575.
    np.testing.assert_allclose(np.nanmean(PHI, axis=0), [0.575, 0.575])
    # Without the last row, b's mean is 2.375 / 4 = 0.59375: a is lower by 0.01875, p = alpha * gap * 2 / 3.
    score, present = np.delete(SCORE, 5, axis=0), np.delete(PRESENT, 5, axis=0)
    repeat = 64
    n = 5 * repeat
    tables = np.tile(score, (repeat, 1)).astype(np.float32), np.tile(present, (repeat, 1))
    values = [Values(np.arange(n), *tables)]
    alpha = 20.0
    plan = get("modality", warmup=1, alpha=alpha, part_ratio=1.0).plan(3, values, n, 2, seed=0, present=tables[1])
    assert plan.copies[:, 1].sum() == 0
    assert plan.copies[:, 0].sum() == 80  # 20 * 0.01875 * 2 / 3 of 320
    assert not plan.copies[np.tile(np.arange(5) == 4, repeat)].any(), "alone, a sample is its own copy"


def test_graded_and_right_or_wrong_stores_do_not_mix(tmp_path):
    task = TASKS["labels"]
    there = np.ones((2, 2), bool)
    with pytest.raises(EquipoiseError) as error:
        write_chunk(tmp_path, 0, info(task, 2), np.arange(2), ["x", "y"], np.ones((2, 3), bool), there)
    assert "a store of graded benefits cannot hold scores of type bool" in str(error.value)
