"""The entry list: nothing lost, nothing doubled, the same for any number of workers."""

from collections import Counter

import numpy as np
import pytest

from equipoise.models.errors import EquipoiseError
from equipoise.valuation import EntryList, Plan, Values, check_batch_size, get


def random_plan(num_rows, num_modalities, seed=0):
    rng = np.random.default_rng(seed)
    copies = rng.integers(0, 4, (num_rows, num_modalities)).astype(np.uint8)
    return Plan(copies, rng.integers(0, 3, num_rows).astype(np.uint8))


def make(num_rows=101, num_modalities=2, plan="random", batch_size=16, chunk_rows=7, seed=3, epoch=2, window=3):
    plan = random_plan(num_rows, num_modalities) if isinstance(plan, str) else plan
    return EntryList(plan, num_rows, num_modalities, chunk_rows, seed, epoch, batch_size, window)


def whole(entries):
    return np.concatenate([entries.window(w)[1] for w in range(entries.num_windows)])


SHAPES = [
    (1, 1, 1),
    (2, 2, 3),
    (5, 7, 16),
    (64, 8, 16),
    (100, 7, 16),
    (101, 7, 16),
    (101, 200, 13),
    (97, 1, 101),
    (30, 10, 1),
]


@pytest.mark.parametrize("num_modalities", [1, 2, 5])
@pytest.mark.parametrize(("num_rows", "chunk_rows", "batch_size"), SHAPES)
def test_nothing_is_lost_or_doubled(num_rows, chunk_rows, batch_size, num_modalities):
    plan = random_plan(num_rows, num_modalities)
    entries = make(num_rows, num_modalities, plan, batch_size, chunk_rows)
    listed = whole(entries)
    assert len(listed) == entries.total == entries.steps * batch_size == plan.num_entries + entries.padding
    assert 0 <= entries.padding < batch_size
    everything = 2**num_modalities - 1
    seen = {i: {} for i in range(num_rows)}
    for i, copy, keep in listed.tolist():
        assert copy not in seen[i], "(sample_id, copy) is unique"
        seen[i][copy] = keep
    padding = 0
    for i, kept in seen.items():
        expected = [everything]
        for m in range(num_modalities):
            expected += [1 << m] * int(plan.copies[i, m])
        expected += [everything] * int(plan.repeats[i])
        found = [kept[copy] for copy in range(len(kept))]
        assert found[: len(expected)] == expected
        assert set(found[len(expected) :]) <= {everything}
        padding += len(found) - len(expected)
    assert padding == entries.padding


def test_no_plan_is_a_plain_epoch():
    plain, none = make(plan=Plan.plain(101, 2)), make(plan=None)
    np.testing.assert_array_equal(whole(plain), whole(none))
    assert plain.digest() == none.digest()
    assert sorted(whole(none)["sample_id"][whole(none)["copy"] == 0]) == list(range(101))


def test_windows_hold_whole_chunks_and_are_shuffled():
    entries = make(num_rows=700, chunk_rows=10, window=8, plan=random_plan(700, 2))
    assert entries.num_windows == 9  # 70 chunks
    order = []
    for w in range(entries.num_windows):
        offset, listed = entries.window(w)
        assert offset == len(np.concatenate([entries.window(v)[1] for v in range(w)])) if w else offset == 0
        chunks = np.unique(listed["sample_id"] // 10)
        assert len(chunks) in (7, 8)
        rows = np.unique(listed["sample_id"])
        assert len(rows) == 10 * len(chunks)
        assert (np.diff(listed["sample_id"]) != 0).mean() > 0.9, "copies of a sample do not lie side by side"
        order += chunks.tolist()
    assert sorted(order) == list(range(70))
    assert order != sorted(order)


def test_padding_comes_from_the_last_window_each_row_once_before_any_twice():
    entries = make(num_rows=21, chunk_rows=7, window=1, plan=None, batch_size=64)
    assert entries.padding == 43
    _, last = entries.window(entries.num_windows - 1)
    counts = Counter(last["sample_id"].tolist())
    assert len(counts) == 7
    assert set(counts.values()) == {7, 8}  # 43 = 6 * 7 + 1, and the originals
    assert len(np.concatenate([entries.window(w)[1] for w in range(2)])) == 14


def test_last_window_is_no_sliver():
    """9 chunks in windows of at most 8 are 5 + 4, so that one small chunk need not hold all of the padding."""
    entries = make(num_rows=81, chunk_rows=10, window=8, plan=None, batch_size=1)
    assert [len(entries.window(w)[1]) // 10 for w in range(entries.num_windows)] in ([5, 3], [4, 4])


@pytest.mark.parametrize("batch_size", [4, 7, 16, 61])
def test_slices_of_all_workers_are_the_same_global_batches(batch_size):
    entries = make(batch_size=batch_size)
    reference = whole(entries).reshape(entries.steps, batch_size)
    for world in (1, 2, 3, 4):
        ranks = []
        for rank in range(world):
            mine = np.concatenate([entries.rank_entries(w, rank, world) for w in range(entries.num_windows)])
            ranks.append(mine.reshape(entries.steps, entries.local_batch_size(rank, world)))
        np.testing.assert_array_equal(np.concatenate(ranks, axis=1), reference)
        sizes = [entries.local_batch_size(rank, world) for rank in range(world)]
        assert sum(sizes) == batch_size
        assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("start", [0, 1, 5, 11, 1000])
def test_a_resume_is_the_tail(start):
    entries = make()
    for world in (1, 3):
        for rank in range(world):
            mine = [entries.rank_entries(w, rank, world) for w in range(entries.num_windows)]
            tail = [entries.rank_entries(w, rank, world, start) for w in range(entries.num_windows)]
            skipped = start * entries.local_batch_size(rank, world)
            np.testing.assert_array_equal(np.concatenate(tail), np.concatenate(mine)[skipped:])


def test_last_step_says_which_windows_a_resume_can_skip():
    for batch_size in (4, 16, 61):
        entries = make(batch_size=batch_size)
        for w in range(entries.num_windows):
            last = entries.last_step(w)
            assert len(entries.rank_entries(w, 0, 1, last)) > 0
            assert len(entries.rank_entries(w, 0, 1, last + 1)) == 0


def test_order_depends_on_seed_and_epoch_and_nothing_else():
    first = whole(make(plan=None))
    np.testing.assert_array_equal(first, whole(make(plan=None)))
    for other in (make(plan=None, seed=4), make(plan=None, epoch=3)):
        assert (whole(other) != first).any()


def test_digest_names_the_list():
    digests = [
        make().digest(),
        make(seed=4).digest(),
        make(epoch=3).digest(),
        make(batch_size=8).digest(),
        make(chunk_rows=8).digest(),
        make(window=4).digest(),
        make(plan=None).digest(),
        make(plan=random_plan(101, 2, seed=1)).digest(),
    ]
    assert len(set(digests)) == len(digests)
    assert make().digest() == digests[0]


def test_a_plan_from_a_file_gives_the_same_list(tmp_path):
    random_plan(101, 2).save(tmp_path / "plan.npy")
    loaded = make(plan=Plan.load(tmp_path / "plan.npy"))
    assert loaded.digest() == make().digest()
    np.testing.assert_array_equal(whole(loaded), whole(make()))


def test_epoch_length_is_n_times_1_plus_4_err_plus_q():
    score = np.random.default_rng(0).random((500, 3)) < 0.6
    values = [Values(np.arange(500), score, np.ones((500, 2), bool))]
    plan = get("sample", warmup=1).plan(1, values, 500, 2, seed=0)
    entries = EntryList(plan, 500, 2, 64, 0, 1, 32)
    err, q = (~score[:, 2]).mean(), (score[:, 2] & (score[:, 0] ^ score[:, 1])).mean()
    assert entries.total == round(500 * (1 + 4 * err + q)) + entries.padding


def test_entries_take_twelve_bytes():
    assert make().window(0)[1].dtype.itemsize == 12


def test_impossible_sizes_are_refused_in_a_sentence():
    with pytest.raises(
        EquipoiseError, match="batch_size=3 is the size of the global batch and cannot be shared by 4 workers"
    ):
        check_batch_size(3, 100, 4)
    with pytest.raises(EquipoiseError, match="A split of 2 rows cannot be shared by 4 workers"):
        check_batch_size(8, 2, 4)
    with pytest.raises(EquipoiseError, match="cannot be shared by 20 workers"):
        make().rank_entries(0, 0, 20)
    with pytest.raises(EquipoiseError, match=r"The plan is for \[50, 2\] .* has \[101, 2\]"):
        make(plan=random_plan(50, 2))
    with pytest.raises(EquipoiseError, match="99999 entries of padding from 1 rows: choose a smaller batch_size"):
        make(num_rows=1, plan=None, batch_size=100000)
    with pytest.raises(EquipoiseError, match="chunk_rows=0"):
        make(chunk_rows=0)
