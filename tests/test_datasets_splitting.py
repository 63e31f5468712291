"""Splits that keep test fixed while seeds divide the rest."""

import numpy as np
import pytest

from equipoise.datasets.prepare import prepare
from equipoise.datasets.sources.splitting import stratified, stratified_groups
from equipoise.models.errors import EquipoiseError

TARGET = np.repeat(np.arange(5), [200, 160, 120, 80, 40])
GROUPS = np.arange(600) // 8


def split(kind, seed, test_seed=None):
    if kind == "rows":
        return stratified(TARGET, seed, test_seed)
    return stratified_groups(TARGET, GROUPS, seed, test_seed=test_seed)


@pytest.mark.parametrize("kind", ["rows", "groups"])
def test_with_a_test_seed_test_is_the_same_for_all_seeds_and_the_rest_is_not(kind):
    drawn = [split(kind, seed, test_seed=3) for seed in range(4)]
    for one in drawn:
        np.testing.assert_array_equal(one == "test", split(kind, 3) == "test")
        shares = [np.mean(one == name) for name in ("train", "validation", "test")]
        np.testing.assert_allclose(shares, [0.7, 0.15, 0.15], atol=0.03)
        for label in range(5):
            assert np.mean(one[label == TARGET] == "validation") == pytest.approx(0.15, abs=0.06)
    assert len({one.tobytes() for one in drawn}) == 4


def test_groups_stay_whole():
    for seed in range(4):
        one = split("groups", seed, test_seed=0)
        assert all(len(set(one[group == GROUPS])) == 1 for group in np.unique(GROUPS))


@pytest.mark.parametrize("bad", [-1, 1.5, "0", True])
def test_a_test_seed_that_is_none_is_refused(tmp_path, bad):
    with pytest.raises(EquipoiseError) as refused:
        prepare("digits", tmp_path / "digits", test_seed=bad)
    assert f"test_seed must be an integer of 0 or more, found {bad!r}." in str(refused.value)


def test_a_test_seed_is_refused_where_the_fold_fixes_test(tmp_path):
    pytest.importorskip("multiviewstacking")
    with pytest.raises(EquipoiseError) as refused:
        prepare("htad", tmp_path / "htad", held_out="runs", test_seed=0)
    assert "test_seed has no meaning with held_out='runs'" in str(refused.value)
