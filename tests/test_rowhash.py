"""The hash behind every random choice about a row."""

import numpy as np
import pytest
import torch
from oracles import rowhash as oracle
from scipy.stats import chisquare, kstest
from world_cases import build_model, global_batch, take

from equipoise.balancers.context import StepContext
from equipoise.models import Classification
from equipoise.models.rowhash import seed_of, uniform, words

N = 20_000
IDS = np.arange(N)
#: What `StepContext.random` hashes: (seed, purpose, modality, epoch, sample_id, copy).
KEY = (0, "modality_dropout", "audio", 3)


def test_known_values_do_not_change():
    # A plan, a mask or a resumed run made with another release depends on them.
    assert oracle.splitmix(oracle.GOLDEN) == 0xE220A8397B1DCDAF, "SplitMix64's first number from seed 0, as published"
    assert words(0).item() == oracle.word(0) == 0xA706DD2F4D197E6F
    assert words(*KEY, 7, 1).item() == oracle.word(*KEY, 7, 1) == 0x64AAF18443DB598C
    assert uniform(*KEY, 7, 1).item() == oracle.uniform(*KEY, 7, 1) == 0.39323338965537624
    assert seed_of(0, "ogm_ge", 12) == oracle.word(0, "ogm_ge", 12) >> 1 == 1789743697974020998


def test_it_is_the_stated_formula_row_by_row():
    ids = np.array([0, 1, 2, 2**31, 2**40 + 5, 2**62])
    copies = np.array([0, 1, -1, 3, 0, 32767], np.int16)
    expected = [oracle.uniform(5, "x", "b", 2, int(i), int(c)) for i, c in zip(ids, copies)]
    assert uniform(5, "x", "b", 2, ids, copies).tolist() == expected


@pytest.mark.parametrize(
    "key",
    [
        (*KEY, IDS, 0),
        (*KEY, 5, IDS % 30_000),  # copies of one sample
        (0, "p", "", IDS, 1, 0),  # epochs of one sample
        (IDS, "p", "", 0, 1, 0),  # seeds
        (*KEY, IDS * 2**32, 0),
        (*KEY, 2**62 - IDS, 0),
    ],
    ids=["sample_id", "copy", "epoch", "seed", "far apart", "large"],
)
def test_counters_give_uniform_numbers(key):
    u = uniform(*key)
    assert u.dtype == np.float64
    assert u.min() >= 0
    assert u.max() < 1
    assert len(np.unique(u)) == N
    assert kstest(u, "uniform").pvalue > 1e-3
    # Neighbours, and the bits beyond the first few, are as good.
    assert kstest((u[1:] - u[:-1]) % 1, "uniform").pvalue > 1e-3
    assert kstest(u * 2**20 % 1, "uniform").pvalue > 1e-3


@pytest.mark.parametrize(
    "other",
    [
        (0, "round_up", "audio", 3, IDS, 0),
        (0, "modality_dropout", "video", 3, IDS, 0),
        (0, "modality_dropout", "audio", 4, IDS, 0),
        (1, "modality_dropout", "audio", 3, IDS, 0),
        (*KEY, IDS, 1),
        (*KEY, IDS + 1, 0),
    ],
    ids=["purpose", "modality", "epoch", "seed", "copy", "next sample"],
)
def test_purposes_are_independent(other):
    a, b = uniform(*KEY, IDS, 0), uniform(*other)
    assert abs(np.corrcoef(a, b)[0, 1]) < 4 / np.sqrt(N)
    cells = np.histogram2d(a, b, bins=8, range=[[0, 1], [0, 1]])[0]
    assert chisquare(cells.ravel()).pvalue > 1e-3
    assert kstest((a - b) % 1, "uniform").pvalue > 1e-3


def test_keys_are_read_part_by_part():
    keys = [(1, 2), (2, 1), (1, 2, 0), (0, 1, 2), ("12",), ("1", "2"), (12,), (1, "2"), ("a", ""), ("", "a"), ("a",)]
    assert len({words(*key).item() for key in keys}) == len(keys)


def test_a_row_s_numbers_do_not_depend_on_its_batch():
    whole = uniform(*KEY, IDS, 0)
    order = np.random.default_rng(0).permutation(N)
    np.testing.assert_array_equal(uniform(*KEY, IDS[order], 0), whole[order])
    np.testing.assert_array_equal(np.concatenate([uniform(*KEY, part, 0) for part in np.array_split(IDS, 7)]), whole)
    assert [uniform(*KEY, i, 0).item() for i in range(50)] == whole[:50].tolist()
    # Nor on the integers' width.
    np.testing.assert_array_equal(uniform(*KEY, IDS.astype(np.int32), np.int16(0)), whole)


def test_a_step_s_random_numbers_are_those_of_the_key():
    batch = global_batch(0, torch.float64)
    batch["copy"][:] = torch.arange(12) % 3

    def random(rows):
        ctx = StepContext(
            build_model(torch.float64), Classification(5), take(batch, rows), seed=9, epoch=4, step=77, group=None
        )
        return ctx.random("purpose", "b").tolist()

    assert random(slice(0, 12)) == [oracle.uniform(9, "purpose", "b", 4, i, i % 3) for i in range(12)]
    assert random(slice(5, 9)) == random(slice(0, 12))[5:9]


def test_only_integers_and_strings_make_a_key():
    with pytest.raises(TypeError, match="made of integers and strings, not float64"):
        uniform(0.5)
