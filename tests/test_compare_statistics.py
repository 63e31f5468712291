"""The statistics of a comparison against closed forms and other routes, and how often whole families call what is not there."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower
from statsmodels.stats.weightstats import DescrStatsW

from equipoise import EquipoiseError
from equipoise.pipelines.comparing import families
from equipoise.pipelines.comparing.families import Pattern, rates
from equipoise.pipelines.comparing.statistics import LEVEL, Difference, Spread, detectable, family, holm, paired

NAN = math.nan
SEEDS = st.integers(2, 8)
SHARE = st.integers(0, 200).map(lambda k: k / 200)


def columns(n: int) -> st.SearchStrategy[list[float]]:
    return st.lists(SHARE, min_size=n, max_size=n)


def test_a_paired_difference_is_students_t_by_hand_and_by_statsmodels() -> None:
    a, b = [0.91, 0.93, 0.90, 0.95], [0.90, 0.90, 0.91, 0.91]
    d = Difference.of(a, b)
    differences = np.array(a) - b
    mean, deviation = differences.mean(), differences.std(ddof=1)
    half = stats.t.isf(0.025, 3) * deviation / 2
    assert (d.mean, d.deviation, d.n) == pytest.approx((mean, deviation, 4))
    assert (d.low, d.high) == pytest.approx((mean - half, mean + half))
    assert d.p == pytest.approx(2 * stats.t.sf(mean / deviation * 2, 3))
    other = DescrStatsW(differences)
    assert (d.low, d.high) == pytest.approx(other.tconfint_mean())
    assert d.p == pytest.approx(other.ttest_mean()[1])


@given(SEEDS.flatmap(lambda n: st.tuples(columns(n), columns(n))), st.integers(-50, 50).map(lambda k: k / 100))
def test_a_constant_moves_mean_and_interval_and_not_the_deviation(
    pair: tuple[list[float], list[float]], c: float
) -> None:
    a, b = np.array(pair[0]), np.array(pair[1])
    before, after = Difference.of(a, b), Difference.of(a + c, b)
    for x, y in ((before.mean, after.mean), (before.low, after.low), (before.high, after.high)):
        assert y == pytest.approx(x + c, abs=1e-9)
    assert after.deviation == pytest.approx(before.deviation, abs=1e-9)


@given(SEEDS.flatmap(lambda n: st.tuples(columns(n), columns(n), st.permutations(range(n)))))
def test_sides_and_order_of_seeds(drawn: tuple[list[float], list[float], list[int]]) -> None:
    """The other way round is minus; seeds in another order, together, are the same."""
    a, b, order = np.array(drawn[0]), np.array(drawn[1]), drawn[2]
    d, back, mixed = Difference.of(a, b), Difference.of(b, a), Difference.of(a[order], b[order])
    assert (back.mean, back.low, back.high, back.p) == pytest.approx((-d.mean, -d.high, -d.low, d.p), abs=1e-9)
    assert (mixed.mean, mixed.low, mixed.high, mixed.p) == pytest.approx((d.mean, d.low, d.high, d.p), abs=1e-9)


def test_no_deviation_one_seed_and_no_seed() -> None:
    same = Difference.of([0.9] * 5, [0.9] * 5)
    assert (same.mean, same.low, same.high, same.p, same.deviation) == (0, 0, 0, 1, 0)
    one = Difference.of([0.9], [0.8])
    assert one.n == 1
    assert math.isnan(one.p)
    assert math.isnan(one.low)
    assert math.isnan(one.deviation)
    assert one.verdict == "one seed"
    none = Difference.of([], [])
    assert math.isnan(none.mean)
    assert none.verdict == "not run"
    holes = Difference.of([0.9, NAN, 0.7, 0.95], [0.8, 0.8, NAN, 0.9])
    assert holes == Difference.of([0.9, 0.95], [0.8, 0.9])
    assert Spread.of([NAN, 0.5]).n == 1
    assert math.isnan(Spread.of([NAN]).mean)


def test_equal_differences_say_no_more_than_their_signs() -> None:
    """One test row of 270 more in every seed, in the float32 of the metrics: t would be 1e5 by rounding alone."""
    b = np.array([261, 260, 263, 258, 262])
    rounded = [(np.float32(k) / np.float32(270)).astype(float) for k in (b + 1, b)]
    assert stats.ttest_rel(*rounded).pvalue < 1e-15
    d = Difference.of(*rounded)
    assert d.p == stats.wilcoxon([1.0] * 5, method="exact").pvalue == 2**-4
    assert d.mean == pytest.approx(1 / 270, rel=1e-4)
    assert d.low == d.mean == d.high
    assert d.deviation == 0
    assert Difference.of(b + 1.0, b).p == 2**-4, "also where nothing is rounded"
    assert Difference.of(1000.0 * b + 1, 1000.0 * b).p == 2**-4, "and in other units"
    assert 0 < Difference.of([2.0, 2, 2, 2, 3], [1.0] * 5).p < 0.01, "but an outlying row is a deviation"


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
@settings(max_examples=50)
def test_holm_by_its_definition(ps: list[float]) -> None:
    """adjusted p(k) = max over j <= k of (m - j) p(j), at most 1."""
    order = np.argsort(ps, kind="stable")
    steps = (len(ps) - np.arange(len(ps))) * np.array(ps)[order]
    expected = [0.0] * len(ps)
    for k, i in enumerate(order):
        expected[i] = min(1.0, max(steps[: k + 1]))
    assert holm(ps) == pytest.approx(expected)


@pytest.mark.parametrize("tests", [1, 2, 40])
def test_holm_is_statsmodels(tests: int) -> None:
    ps = np.random.default_rng(tests).random(tests) ** 4
    assert holm(ps) == pytest.approx(multipletests(ps, method="holm")[1])
    assert ((holm(ps) <= LEVEL) == multipletests(ps, alpha=LEVEL, method="holm")[0]).all()


def test_holm_counts_only_what_was_tested() -> None:
    found = holm([0.01, NAN, 0.04, NAN])
    assert found[[0, 2]] == pytest.approx([0.02, 0.04])
    assert np.isnan(found[[1, 3]]).all()
    assert np.isnan(holm([NAN])).all()
    assert holm([]).shape == (0,)


def test_a_verdict_is_the_corrected_one() -> None:
    """One test among 30: by itself it would be called."""
    rng = np.random.default_rng(0)
    b = rng.normal(0.9, 0.01, (30, 5))
    a = b + rng.normal(0, 0.01, b.shape)
    a[0] = b[0] + [0.004, 0.018, 0.008, 0.022, 0.016]
    a[1] = b[1] - [0.050, 0.051, 0.050, 0.052, 0.050]
    found = family(a, b)
    assert found[0].alone
    assert found[0].low > 0
    assert found[0].verdict == "not distinguishable"
    assert found[1].verdict == "lower"
    assert family(b, a)[1].verdict == "higher"
    assert found[1].adjusted == pytest.approx(30 * found[1].p)
    assert family(a[:1], b[:1])[0].verdict == "higher", "alone in its family"


@given(st.permutations(range(6)), st.integers(0, 99))
@settings(max_examples=25)
def test_a_family_does_not_depend_on_the_order_of_methods(order: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(6, 5)), rng.normal(size=(6, 5))
    found, mixed = family(a, b), family(a[order], b[order])
    assert [found[i] for i in order] == mixed


@pytest.mark.parametrize("n", [3, 5, 10, 30])
def test_what_can_be_found_is_statsmodels_power(n: int) -> None:
    size = detectable(n)
    assert size == pytest.approx(TTestPower().solve_power(nobs=n, alpha=LEVEL, power=0.8), rel=1e-4)
    assert math.isnan(detectable(1))
    assert detectable(n, LEVEL / 100) > size > detectable(n + 1)


@pytest.mark.parametrize(("n", "tests"), [(2, 100), (5, 1), (5, 150), (10, 1000)])
def test_what_can_be_found_is_found_in_four_of_five(n: int, tests: int) -> None:
    """By drawing: at the levels of a family statsmodels' root finder stops early, and gives 4.16 for 6.31."""
    level = LEVEL / tests
    drawn = np.random.default_rng(1).normal(size=(100_000, n)) + detectable(n, level)
    assert (paired(drawn, np.zeros(n)).p <= level).mean() == pytest.approx(0.8, abs=0.005)


#: Two sets whose seeds share test rows and one of folds; methods agree on nine rows of ten and more.
PATTERNS = (
    Pattern((0.97,), 270, row=0.75, row_seed=0.1, seed=0.002, training=0.004),
    Pattern((0.8, 0.65), 200, row=0.65, row_seed=0.12, seed=0.005, training=0.01),
    Pattern((0.8,), 250, row=0.0, row_seed=0.8, seed=0.05, training=0.03),
)


@pytest.mark.parametrize("share", [0.5, 0.85, 0.98])
@pytest.mark.parametrize("r", [0.0, 0.3, 0.9])
def test_agreement_is_the_bivariate_normal(share: float, r: float) -> None:
    h = stats.norm.ppf(share)
    expected = stats.multivariate_normal([0, 0], [[1, r], [r, 1]]).cdf([h, h])
    assert families.agreement(share, r) == pytest.approx(expected, abs=1e-6)
    assert families.correlation(share, families.agreement(share, r)) == pytest.approx(r, abs=1e-6)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_rows_have_the_correlations_that_were_put_in(pattern: Pattern) -> None:
    """Drawn rows: their shares, and how often two methods, and two seeds, are right on the same row."""
    right = pattern.right(methods=6, seeds=20, rng=np.random.default_rng(0), families=20)
    assert right.mean((0, 2, 3, 4)) == pytest.approx(pattern.shares, abs=0.015)
    x = right[:, 0].astype(float)
    share = pattern.shares[0]
    same_seed = (x[:, 0] * x[:, 1]).mean()
    other_seed = (x[:, 0, ::2] * x[:, 1, 1::2]).mean()
    within = pattern.row + pattern.row_seed + pattern.seed
    assert same_seed == pytest.approx(families.agreement(share, within), abs=0.015)
    assert other_seed == pytest.approx(families.agreement(share, pattern.row), abs=0.015)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_fit_gives_the_correlations_back(pattern: Pattern) -> None:
    rng, found = np.random.default_rng(0), []
    for _ in range(40):
        right = pattern.right(methods=20, seeds=10, rng=rng)[0]
        got = families.fit(right[0], right.mean(-1), same_rows=pattern.row > 0)
        found.append((got.row, got.row + got.row_seed + got.seed, got.seed, got.training))
    row, within, seed, training = np.mean(found, 0)
    assert row == pytest.approx(pattern.row, abs=0.05)
    assert within == pytest.approx(pattern.row + pattern.row_seed + pattern.seed, abs=0.05)
    assert seed == pytest.approx(pattern.seed, rel=0.5)
    assert training == pytest.approx(pattern.training, rel=0.3)


def test_a_pattern_of_too_much_variance_is_refused() -> None:
    with pytest.raises(EquipoiseError, match="variances of a pattern must be at least 0 and at most 1 in all"):
        Pattern((0.9,), 100, row=0.9, row_seed=0.2)


@pytest.mark.parametrize("seeds", [5, 10])
def test_families_of_one_method_are_called_at_most_at_the_level(seeds: int) -> None:
    """What the tests promise, and that they find what they say they can: a test that calls nothing would pass the first."""
    found = rates(PATTERNS, methods=10, seeds=seeds, families=300, rng=np.random.default_rng(seeds))
    assert found.tests == 27
    assert found.standard_error == pytest.approx(math.sqrt(0.05 * 0.95 / 300))
    assert found.error <= found.bound
    assert 0.75 <= found.planted <= 0.88


def rows_as_repetitions(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The test of two shares over all rows of all seeds: rows of one training taken for repetitions of the method."""
    n = 250 * a.shape[-1]
    p, q = a.mean(-1), b.mean(-1)
    pooled = np.clip((p + q) / 2, 1e-3, 1 - 1e-3)
    return 2 * stats.norm.sf(abs(p - q) / np.sqrt(2 * pooled * (1 - pooled) / n))


def rounding_as_deviation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Student's t as it comes: 0 where a row's difference is the same in all seeds."""
    d = a - b
    with np.errstate(divide="ignore", invalid="ignore"):
        t = d.mean(-1) / (d.std(-1, ddof=1) / math.sqrt(d.shape[-1]))
    return np.where(np.isnan(t), 1.0, 2 * stats.t.sf(abs(t), d.shape[-1] - 1))


def test_planted_faults_are_seen_in_the_families() -> None:
    def run(patterns: tuple[Pattern, ...], methods: int = 10, **fault: object) -> families.Rates:
        return rates(patterns, methods, 5, 300, np.random.default_rng(0), **fault)  # type: ignore[arg-type]

    uncorrected = run(PATTERNS, correction=lambda p: p)
    assert uncorrected.error > 0.5
    noisy = Pattern((0.7,), 250, row=0.2, row_seed=0.1, seed=0.02, training=0.15)
    assert run((noisy,), test=rows_as_repetitions).error > 0.5 >= run((noisy,)).error * 5
    fickle = (Pattern((0.8,), 250, row=0.0, row_seed=0.7, seed=0.2, training=0.005),)
    unpaired = run(fickle, test=lambda a, b: stats.ttest_ind(a, b, axis=-1).pvalue)
    assert unpaired.planted < 0.1 < 0.75 < run(fickle).planted, "no pairing: what seeds share counts as noise"
    close = (Pattern((0.97,), 270, row=0.84, row_seed=0.15),) * 5
    naive, ours = run(close, 24, test=rounding_as_deviation), run(close, 24)
    assert naive.error > naive.bound >= ours.error, "methods that agree on all but a row or two"
