"""Plans, counted by hand; and the controls, which must match the sample rule's totals."""

from fractions import Fraction

import numpy as np
import pytest

from equipoise.models.errors import EquipoiseError
from equipoise.valuation import Plan, Resampler, Values, bits, copies, from_bits, get, members, names, shapley
from equipoise.valuation.modality import lowest, probability

N = 400


def values(num_rows=N, num_modalities=2, graded=False, seed=0, absent=False, chunks=5, ids=None):
    """A sweep of random scores, cut into chunks."""
    rng = np.random.default_rng(seed)
    score = rng.random((num_rows, 2**num_modalities - 1)).astype(np.float32)
    score = score if graded else score < 0.5
    pattern = rng.integers(1, 2**num_modalities, num_rows) if absent else np.full(num_rows, 2**num_modalities - 1)
    present = from_bits(pattern, num_modalities)
    known = (members(num_modalities) & present[:, None, :]).any(axis=2)
    score = np.where(known, score, np.nan if graded else False)
    score = score.astype(np.float32 if graded else bool)
    ids = np.arange(num_rows) if ids is None else ids
    parts = np.array_split(np.arange(len(ids)), chunks)
    return [Values(ids[p], score[ids[p]], present[ids[p]]) for p in parts]


def merged(chunks):
    return np.concatenate([c.score for c in chunks]), np.concatenate([c.present for c in chunks])


def test_registry_names_and_sentences():
    assert set(names()) >= {"modality", "more_steps", "none", "random_copies", "sample"}
    with pytest.raises(EquipoiseError, match="Unknown resampler 'samples': did you mean 'sample'"):
        get("samples")
    with pytest.raises(EquipoiseError, match="Unknown option of resampler 'sample': 'warm_up': did you mean 'warmup'"):
        get("sample", warm_up=3)
    with pytest.raises(EquipoiseError, match="Unknown option of resampler 'none': 'warmup'"):
        get("none", warmup=3)
    with pytest.raises(
        EquipoiseError, match=r"Option 'part_ratio' of resampler 'modality' cannot be 1.5: .* less than or equal"
    ):
        get("modality", part_ratio=1.5)
    with pytest.raises(EquipoiseError, match="Option 'rule' of resampler 'sample' cannot be 'cubes'"):
        get("sample", rule="cubes")


def test_a_subclass_registers_itself():
    class Twice(Resampler):
        name = "twice_for_test"

    assert isinstance(get("twice_for_test"), Twice)
    from equipoise.valuation import resampler

    del resampler._registry["twice_for_test"]


def test_defaults_are_those_of_the_method():
    assert get("sample").options.model_dump() == {
        "warmup": 5,
        "every": 1,
        "max_entries": None,
        "rule": "auto",
        "scale": 2.0,
        "cap": 3,
        "smoothing": 0.0,
    }
    options = get("modality").options
    assert (options.alpha, options.func, options.part_ratio, options.warmup) == (1.0, "linear", 0.2, 5)
    assert not get("none").needs_values


@pytest.mark.parametrize(
    ("options", "lag", "sweeps", "sources"),
    [
        ({}, 0, [4, 5, 6, 7, 8, 9], {4: None, 5: 4, 6: 5, 9: 8}),
        ({"every": 2}, 0, [4, 6, 8], {4: None, 5: 4, 6: 4, 7: 6, 8: 6, 9: 8}),
        ({"warmup": 0, "every": 3}, 0, [0, 3, 6, 9], {0: None, 1: 0, 2: 0, 3: 0, 4: 3}),
        ({"warmup": 2}, 1, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9], {1: None, 2: 0, 3: 1}),
        ({"warmup": 0, "every": 2}, 1, [0, 2, 4, 6, 8], {0: None, 1: None, 2: 0, 3: 0, 4: 2}),
    ],
)
@pytest.mark.parametrize("name", ["sample", "modality", "random_copies", "more_steps"])
def test_warmup_every_and_lag(name, options, lag, sweeps, sources):
    resampler = get(name, **options)
    assert [e for e in range(10) if resampler.wants_values(e, lag)] == sweeps
    for epoch, source in sources.items():
        assert resampler.values_epoch(epoch, lag) == source


def test_none_wants_nothing_and_is_plain():
    resampler = get("none")
    assert not any(resampler.wants_values(e) for e in range(20))
    plan = resampler.plan(9, None, 7, 2, seed=0)
    assert plan.num_entries == 7
    assert plan.copies.shape == (7, 2)


@pytest.mark.parametrize("name", ["sample", "modality", "random_copies", "more_steps"])
def test_warmup_is_plain_and_missing_values_are_an_error(name):
    assert get(name).plan(4, values(), N, 2, seed=0).num_entries == N
    with pytest.raises(EquipoiseError, match="made of the sweep after epoch 4, and there are no values"):
        get(name).plan(5, None, N, 2, seed=0)


@pytest.mark.parametrize("num_modalities", [2, 3])
def test_sample_plan_is_the_bins_by_sample_id(num_modalities):
    shuffled = np.random.default_rng(3).permutation(N)
    sweep = values(num_modalities=num_modalities, absent=True, ids=shuffled)
    score, present = merged(values(num_modalities=num_modalities, absent=True))
    plan = get("sample").plan(5, iter(sweep), N, num_modalities, seed=0)
    np.testing.assert_array_equal(plan.copies, copies(shapley(score, present)))
    assert not plan.repeats.any()


def test_epoch_length_at_two_modalities():
    sweep = values()
    score, _ = merged(sweep)
    plan = get("sample").plan(5, sweep, N, 2, seed=0)
    wrong, single = ~score[:, 2], score[:, 2] & (score[:, 0] ^ score[:, 1])
    assert plan.num_entries == N + 4 * wrong.sum() + single.sum()


def test_linear_rule_is_the_bins_at_two_modalities_and_not_at_three():
    for m, equal in ((2, True), (3, False)):
        sweep = values(num_modalities=m)
        bins, linear = (get("sample", rule=rule).plan(5, sweep, N, m, seed=0).copies for rule in ("bins", "linear"))
        assert np.array_equal(bins, linear) == equal


def test_graded_values_take_the_linear_rule_below_their_mean():
    sweep = values(graded=True, absent=True)
    with pytest.raises(EquipoiseError, match="rule='bins' is for benefits of 0 or 1"):
        get("sample", rule="bins").plan(5, sweep, N, 2, seed=0)
    score, present = merged(sweep)
    tau = score[np.arange(N), bits(present) - 1].astype(float).mean()
    expected = np.nan_to_num(2 * np.clip(tau - shapley(score, present), 0, None))
    plans = [get("sample").plan(5, sweep, N, 2, seed=s).copies for s in range(200)]
    assert all((np.abs(p - expected) < 1)[expected < 2].all() for p in plans)
    assert np.abs(np.mean(plans, axis=0) - np.minimum(expected, 3)).max() < 0.2  # the fraction is kept on average
    assert any((plans[0] != p).any() for p in plans[1:])
    assert (get("sample").plan(6, sweep, N, 2, seed=0).copies != plans[0]).any(), "rounded anew in each epoch"
    assert not plans[0][~present].any()


def test_smoothing_averages_over_sweeps_and_keeps_equal_values_in_their_bins():
    resampler = get("sample", smoothing=0.57)
    assert resampler.keeps_state
    assert not get("sample").keeps_state
    first, second = values(seed=1, absent=True), values(seed=1, absent=True)
    one = resampler.state(first, N, 2)
    same = resampler.state(second, N, 2, one)
    np.testing.assert_array_equal(same, one)
    plan = resampler.plan(5, second, N, 2, seed=0, state=same)
    np.testing.assert_array_equal(plan.copies, get("sample").plan(5, second, N, 2, seed=0).copies)

    # By hand: contributions 1.5, 0.5 (only modality 0 right alone), then -0.5, 0.5 (only modality 1 right, not together).
    row = lambda *score: [Values(np.arange(1), np.array([score], bool), np.ones((1, 2), bool))]  # noqa: E731
    resampler = get("sample", smoothing=0.75)
    before = resampler.state(row(1, 0, 1), 1, 2)
    after = resampler.state(row(0, 1, 0), 1, 2, before)
    assert after.tolist() == [[1.0, 0.5]]
    assert resampler.plan(6, row(0, 1, 0), 1, 2, seed=0, state=after).copies.tolist() == [[0, 1]]
    # .6 * 1.5 - .4 * .5 = .7 lies on no grid of Shapley values and has its bin all the same.
    resampler = get("sample", smoothing=0.6)
    after = resampler.state(row(0, 1, 0), 1, 2, before)
    assert resampler.plan(6, row(0, 1, 0), 1, 2, seed=0, state=after).copies.tolist() == [[1, 1]]
    with pytest.raises(EquipoiseError, match="give plan\\(\\) the state of this sweep"):
        resampler.plan(6, row(0, 1, 0), 1, 2, seed=0)


def test_plans_are_pure_functions_of_values_seed_and_epoch():
    for name in ("sample", "modality", "random_copies", "more_steps"):
        resampler = get(name, max_entries=N + 50)
        make = lambda seed, epoch: resampler.plan(epoch, values(), N, 2, seed=seed)  # noqa: E731, B023
        same = [make(1, 5), make(1, 5)]
        np.testing.assert_array_equal(same[0].copies, same[1].copies)
        np.testing.assert_array_equal(same[0].repeats, same[1].repeats)
        others = [make(2, 5), make(1, 6)]
        assert all((p.copies != same[0].copies).any() or (p.repeats != same[0].repeats).any() for p in others)


@pytest.mark.parametrize("name", ["sample", "random_copies", "more_steps"])
@pytest.mark.parametrize("room", [0, 1, 100, 10**6])
def test_max_entries_bounds_the_epoch(name, room):
    full = get("sample").plan(5, values(), N, 2, seed=0)
    plan = get(name, max_entries=N + room).plan(5, values(), N, 2, seed=0)
    assert plan.num_entries == min(N + room, full.num_entries)
    if name == "sample":
        assert (plan.copies <= full.copies).all()
        assert not plan.repeats.any()
    with pytest.raises(EquipoiseError, match="max_entries=399 is less than the 400 rows"):
        get(name, max_entries=N - 1).plan(5, values(), N, 2, seed=0)


def test_max_entries_keeps_a_fair_subset():
    full = get("sample").plan(5, values(), N, 2, seed=0).copies.astype(int)
    kept = [get("sample", max_entries=N + full.sum() // 4).plan(5, values(), N, 2, seed=s).copies for s in range(300)]
    share = np.mean(kept, axis=0)[full > 0] / full[full > 0]
    assert 0.24 < share.mean() < 0.26
    assert 0.1 < share.min() < share.max() < 0.4


@pytest.mark.parametrize("options", [{}, {"max_entries": 600}])
def test_random_copies_totals_are_the_sample_rules_per_modality_and_availability(options):
    sweep = values(num_modalities=3, absent=True)
    sample, control = (get(n, **options).plan(5, sweep, N, 3, seed=0) for n in ("sample", "random_copies"))
    assert (sample.copies != control.copies).any()
    present = merged(sweep)[1]
    for pattern in np.unique(bits(present)):
        rows = bits(present) == pattern
        assert sorted(control.copies[rows].tolist()) == sorted(sample.copies[rows].tolist())
    assert not control.copies[~present].any()


@pytest.mark.parametrize("options", [{}, {"max_entries": 600}])
def test_more_steps_total_is_the_sample_rules_and_spread_evenly(options):
    sample, control = (get(n, **options).plan(5, values(), N, 2, seed=0) for n in ("sample", "more_steps"))
    assert not control.copies.any()
    assert control.num_entries == sample.num_entries
    assert int(control.repeats.max()) - int(control.repeats.min()) <= 1


TABLE_7_5 = [  # means, alpha, {func: (p, copies of 1000)}
    (("1.43", "0.57"), 1, {"linear": (0.573333, 573), "tanh": (0.517803, 517), "power": (0.434121, 434)}),
    (("1.06", "0.89"), 1, {"linear": (0.113333, 113), "tanh": (0.112851, 112), "power": (0.038154, 38)}),
    (("1.5", "0.5"), 1, {"linear": (0.666667, 666), "tanh": (0.582783, 582), "power": (0.544331, 544)}),
    (("1.5", "0.5"), 2, {"linear": (1, 1000), "tanh": (0.870062, 870), "power": (1, 1000)}),  # clipped, see section 8
    (("1.3", "0.7"), 1, {"linear": (0.4, 400)}),
]


@pytest.mark.parametrize(("means", "alpha", "expected"), TABLE_7_5)
def test_vectors_7_5_modality_level(means, alpha, expected):
    low, gap = lowest({m: Fraction(mean) for m, mean in enumerate(means)})
    assert low == 1
    for func, (p, count) in expected.items():
        found = probability(gap, 2, alpha, func)
        assert float(found) == pytest.approx(p, abs=5e-7)
        assert int(found * 1000) == count


def test_vectors_7_5_on_an_integer_and_the_number_valued():
    low, gap = lowest({0: Fraction("0.2"), 1: Fraction("0.8")})
    assert (low, int(probability(gap, 2) * 15)) == (0, 6)
    assert int(probability(Fraction(1, 2), 2) * 300) == 100  # p = 1/3, whose float is below it
    assert len(get("modality").valued_ids(14799, 0, 0)) == 2959
    assert len(get("modality", part_ratio=0.29).valued_ids(100, 0, 0)) == 29  # .29 * 100 < 29 in floats
    assert len(get("modality").valued_ids(3, 0, 0)) == 1
    assert get("sample").valued_ids(14799, 0, 0) is None


def accuracy_gap(right_0, right_1, num_rows, seen):
    """Values of `seen` rows of which modality 0 alone gets right_0 in ten right, modality 1 right_1; together all."""
    turn = np.arange(len(seen)) % 10
    score = np.column_stack([turn < right_0, turn < right_1, np.ones(len(seen), bool)])
    return [Values(seen, score, np.ones((len(seen), 2), bool))]


def test_modality_plan_end_to_end():
    resampler = get("modality")
    ids = resampler.valued_ids(1000, 4, 0)
    assert len(np.unique(ids)) == 200
    plan = resampler.plan(5, accuracy_gap(9, 3, 1000, ids), 1000, 2, seed=0)
    # Accuracies .9 and .3: the means differ by .6 and p = 2/3 * .6 = .4 exactly, an integer number of copies.
    assert plan.copies.sum(axis=0).tolist() == [0, 400]
    assert plan.copies.max() == 1
    assert resampler.plan(5, accuracy_gap(3, 3, 1000, ids), 1000, 2, seed=0).num_entries == 1000
    assert get("modality", max_entries=1100).plan(5, accuracy_gap(9, 3, 1000, ids), 1000, 2, seed=0).num_entries == 1100
    twice = get("modality", alpha=2).plan(5, accuracy_gap(2, 10, 1000, ids), 1000, 2, seed=0)
    assert twice.copies.sum(axis=0).tolist() == [1000, 0]


def test_modality_valued_ids_change_with_seed_and_epoch():
    draws = {tuple(get("modality").valued_ids(1000, e, s)) for e in range(3) for s in range(3)}
    assert len(draws) == 9


def test_modality_at_three_modalities_with_absent_ones():
    rng = np.random.default_rng(0)
    present = from_bits(rng.integers(1, 8, 600), 3)
    resampler = get("modality", part_ratio=0.5)
    ids = resampler.valued_ids(600, 4, 0)
    score = np.zeros((600, 7), bool)
    score[:, [0, 1, 2, 4, 5, 6]] = True  # only modality 2 alone is wrong
    score &= (members(3) & present[:, None, :]).any(axis=2)
    score[bits(present) == 4, :] = False
    chunk = Values(ids, score[ids], present[ids])
    plan = resampler.plan(5, [chunk], 600, 3, seed=0, present=present)
    phi = shapley(score[ids], present[ids])
    means = np.nanmean(phi, axis=0)
    assert means.argmin() == 2
    p = 0.5 * ((means[0] + means[1]) / 2 - means[2])
    copied = np.flatnonzero(plan.copies[:, 2])
    assert plan.copies[:, :2].sum() == 0
    assert abs(len(copied) - int(p * 600)) <= 1
    assert present[copied, 2].all()
    assert (present[copied].sum(axis=1) > 1).all()
    with pytest.raises(EquipoiseError, match="give it `present` of all rows"):
        resampler.plan(5, [chunk], 600, 3, seed=0)


@pytest.mark.parametrize("there", [[[True, False]], [[True, True, False]]])
def test_a_modality_that_no_valued_row_has_is_not_compared(there):
    present = np.repeat(np.array(there), 20, axis=0)
    m = present.shape[1]
    score = np.zeros((20, 2**m - 1), bool)
    score[:, 0] = True
    plan = get("modality").plan(5, [Values(np.arange(20), score, present)], 20, m, seed=0, present=present)
    assert plan.copies.sum(axis=0).tolist() == ([0, 0] if m == 2 else [0, 10, 0])  # M = 3: p = 1/2 * (1/2 + 1/2)


def test_modality_graded():
    ids = np.arange(0, 100, 2)
    chunk = Values(ids, np.tile(np.float32([0.75, 0.25, 1]), (50, 1)), np.ones((50, 2), bool))
    plan = get("modality", part_ratio=0.5).plan(5, [chunk], 100, 2, seed=0)
    assert plan.copies.sum(axis=0).tolist() == [0, 33]  # p = 2/3 * 0.5


def test_unfinished_doubled_and_foreign_values_are_refused():
    sweep = values()
    with pytest.raises(EquipoiseError, match="80 of the 400 rows have no values, the first is sample_id 80"):
        get("sample").plan(5, sweep[:1] + sweep[2:], N, 2, seed=0)
    for name in ("sample", "modality"):
        with pytest.raises(EquipoiseError, match="a sample more than once"):
            get(name).plan(5, [*sweep, sweep[0]], N, 2, seed=0)
        with pytest.raises(EquipoiseError, match="split has rows 0 to 398"):
            get(name).plan(5, sweep, N - 1, 2, seed=0)
        with pytest.raises(EquipoiseError, match="of 2 modalities, expected 3"):
            get(name).plan(5, sweep, N, 3, seed=0)
    with pytest.raises(EquipoiseError, match="no values of any row"):
        get("modality").plan(5, [], N, 2, seed=0)


@pytest.mark.parametrize("mmap", [True, False])
def test_plan_file_round_trip(tmp_path, mmap):
    plan = get("more_steps").plan(5, values(), N, 2, seed=0)
    plan.copies[3] = 1, 2
    plan.save(tmp_path / "plans" / "5.npy")
    assert [p.name for p in (tmp_path / "plans").iterdir()] == ["5.npy"]
    assert np.load(tmp_path / "plans" / "5.npy").shape == (N, 3)
    back = Plan.load(tmp_path / "plans" / "5.npy", mmap=mmap)
    np.testing.assert_array_equal(back.copies, plan.copies)
    np.testing.assert_array_equal(back.repeats, plan.repeats)
    assert back.num_entries == plan.num_entries


def test_what_is_not_a_plan_is_refused(tmp_path):
    path = tmp_path / "5.npy"
    for array in (np.zeros((3, 3)), np.zeros(3, np.uint8), np.array([{}], object)):
        np.save(path, array, allow_pickle=True)
        with pytest.raises(EquipoiseError, match="is not a resampling plan"):
            Plan.load(path)
    path.write_bytes(b"")
    with pytest.raises(EquipoiseError, match="is not a resampling plan"):
        Plan.load(path)
