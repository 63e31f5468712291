"""Values on disk: a round trip, other readers, and every way in which a store can be the wrong one."""

import os
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from equipoise.models.errors import EquipoiseError
from equipoise.valuation import (
    StoreInfo,
    bits,
    chunk_path,
    copies,
    from_bits,
    iter_chunks,
    members,
    missing_chunks,
    read_values,
    shapley,
    store_schema,
    values_of,
    write_chunk,
)

NAMES = tuple("abcdefghij")


def info(num_modalities=2, graded=False, **changes):
    base = StoreInfo(NAMES[:num_modalities], "classification", graded, "feature", "m0", "d0", "train", 4)
    return replace(base, **changes)


def rows(n, num_modalities, graded=False, seed=0, start=0):
    """sample_id, source_id, score, present of n rows as a sweep leaves them."""
    rng = np.random.default_rng(seed)
    present = from_bits(rng.integers(1, 2**num_modalities, n), num_modalities)
    known = (members(num_modalities) & present[:, None, :]).any(axis=2)
    score = rng.random((n, 2**num_modalities - 1)).astype(np.float32)
    score = np.where(known, score, np.nan) if graded else (score < 0.5) & known
    ids = rng.permutation(n) + start
    return ids, [f"clip/{i}" for i in ids], score, present


@pytest.mark.parametrize("graded", [False, True])
@pytest.mark.parametrize("num_modalities", [1, 2, 3, 4, 8, 9])
def test_round_trip(tmp_path, num_modalities, graded):
    what = info(num_modalities, graded)
    chunks = [
        rows(n, num_modalities, graded, seed, start) for seed, (n, start) in enumerate([(20, 0), (5, 20), (0, 25)])
    ]
    for index, chunk in enumerate(chunks):
        write_chunk(tmp_path, index, what, *chunk)
    for chunk, values in zip(chunks, iter_chunks(tmp_path, what), strict=True):
        ids, _, score, present = chunk
        np.testing.assert_array_equal(values.sample_id, ids)
        np.testing.assert_array_equal(values.score, score)
        np.testing.assert_array_equal(values.present, present)
        assert values.graded == graded
    table = read_values(tmp_path, what)
    assert table.schema.equals(store_schema(what))
    assert table.schema.metadata == store_schema(what).metadata
    assert table["sample_id"].to_pylist() == list(range(25))
    assert table["source_id"].to_pylist() == [f"clip/{i}" for i in range(25)]
    together = values_of(table)
    order = np.argsort(np.concatenate([c[0] for c in chunks]))
    score, present = (np.concatenate([c[k] for c in chunks])[order] for k in (2, 3))
    np.testing.assert_array_equal(together.score, score)
    np.testing.assert_array_equal(together.benefit, score[np.arange(25), bits(present) - 1])
    phi = shapley(score, present)
    for m, name in enumerate(what.modalities):
        np.testing.assert_array_equal(table[f"contribution_{name}"].to_numpy(), phi[:, m])
        expected = np.zeros(25) if graded else copies(phi)[:, m]
        np.testing.assert_array_equal(table[f"copies_{name}"].to_numpy(), expected)
    np.testing.assert_array_equal(together.contributions, phi)


def test_column_types_are_those_of_the_architecture():
    assert store_schema(info(3)).field("coalitions").type == pa.uint8()
    assert store_schema(info(4)).field("coalitions").type == pa.binary(2)
    assert store_schema(info(10)).field("coalitions").type == pa.binary(128)
    assert store_schema(info(8)).field("present").type == pa.uint8()
    assert store_schema(info(9)).field("present").type == pa.uint16()


def test_bit_of_a_coalition_is_its_id_minus_one(tmp_path):
    score = np.zeros((2, 15), bool)
    score[0, 0] = score[1, 8] = True  # coalition 1; coalition 9, the second byte's lowest bit
    write_chunk(tmp_path, 0, info(4), np.arange(2), ["x", "y"], score, np.ones((2, 4), bool))
    assert read_values(tmp_path)["coalitions"].to_pylist() == [b"\x01\x00", b"\x00\x01"]
    write_chunk(tmp_path / "3", 0, info(3), np.arange(2), ["x", "y"], score[:, 2:9], np.ones((2, 3), bool))
    assert read_values(tmp_path / "3")["coalitions"].to_pylist() == [0, 64]


def test_tensors_of_a_sweep_are_taken_as_they_are(tmp_path):
    score = torch.tensor([[True, False, True]])
    write_chunk(tmp_path, 0, info(), torch.tensor([7]), ["x"], score, torch.tensor([[True, True]]))
    assert read_values(tmp_path).to_pylist() == [
        {
            "sample_id": 7,
            "source_id": "x",
            "coalitions": 5,
            "present": 3,
            "contribution_a": 1.5,
            "contribution_b": 0.5,
            "copies_a": 0,
            "copies_b": 1,
        }
    ]


def test_graded_contributions_are_those_of_the_scores_as_stored(tmp_path):
    """Scores are kept in single precision: a reader who values them again gets the column, bit for bit."""
    score = np.random.default_rng(0).random((50, 3))
    write_chunk(tmp_path, 0, info(graded=True), np.arange(50), ["x"] * 50, score, np.ones((50, 2), bool))
    table = read_values(tmp_path)
    np.testing.assert_array_equal(values_of(table).contributions[:, 1], table["contribution_b"].to_numpy())


@pytest.mark.parametrize("graded", [False, True])
@pytest.mark.parametrize("num_modalities", [2, 4])
def test_pandas_and_duckdb_read_it_without_us(tmp_path, num_modalities, graded):
    for index in range(2):
        write_chunk(tmp_path, index, info(num_modalities, graded), *rows(10, num_modalities, graded, index, 10 * index))
    frame = pd.read_parquet(tmp_path).sort_values("sample_id")
    assert frame["sample_id"].tolist() == list(range(20))
    query = f"select avg(contribution_a), sum(copies_b), count(coalitions) from '{tmp_path}/*.parquet' where present & 1 = 1"
    mean, total, count = duckdb.sql(query).fetchall()[0]
    some = frame[frame["present"] & 1 == 1]
    assert mean == pytest.approx(some["contribution_a"].mean())
    assert (total, count) == (some["copies_b"].sum(), len(some))


def test_missing_chunks_are_those_without_a_file_of_this_sweep(tmp_path, caplog):
    assert missing_chunks(tmp_path / "nothing", range(3), info()) == [0, 1, 2]
    for index in (0, 1, 3):
        write_chunk(tmp_path, index, info(), *rows(4, 2, start=4 * index))
    write_chunk(tmp_path, 2, info(model_hash="m1"), *rows(4, 2, start=8))
    chunk_path(tmp_path, 3).write_bytes(b"PAR1 half a file")
    assert missing_chunks(tmp_path, range(6), info()) == [2, 3, 4, 5]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["chunk-00000.parquet", "chunk-00001.parquet"]
    assert "model_hash 'm1'" in caplog.text
    assert missing_chunks(tmp_path, [1, 0], info()) == []


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"model_hash": "m1"}, r"a store of another model: model_hash 'm0', expected 'm1'"),
        ({"manifest_hash": "d1"}, r"a store of other data: manifest_hash 'd0', expected 'd1'"),
        ({"modalities": ("a", "c")}, r"a store of other modalities: modalities \('a', 'b'\), expected \('a', 'c'\)"),
        ({"benefit": "dice"}, r"a store of another benefit: benefit 'classification', expected 'dice'"),
        ({"graded": True}, r"another kind of benefit: graded False, expected True"),
        ({"absence": "input"}, r"another way of leaving modalities out: absence 'feature', expected 'input'"),
        ({"split": "val"}, r"a store of another split: split 'train', expected 'val'"),
        ({"epoch": 5}, r"a store of another epoch: epoch 4, expected 5"),
    ],
)
def test_a_store_of_something_else_says_what_differs(tmp_path, changes, sentence):
    write_chunk(tmp_path, 0, info(), *rows(4, 2))
    for expect in (changes, replace(info(), **changes)):
        with pytest.raises(EquipoiseError, match=sentence):
            read_values(tmp_path, expect)
        with pytest.raises(EquipoiseError, match=sentence):
            list(iter_chunks(tmp_path, expect))


def test_only_what_is_asked_for_is_checked(tmp_path):
    write_chunk(tmp_path, 0, info(), *rows(4, 2))
    assert len(read_values(tmp_path, {"epoch": 4, "modalities": ["a", "b"]})) == 4
    with pytest.raises(EquipoiseError, match="Unknown store field 'model': did you mean 'model_hash'"):
        read_values(tmp_path, {"model": "m0"})


def test_mixed_doubled_empty_and_foreign_stores(tmp_path):
    with pytest.raises(EquipoiseError, match="There are no values in"):
        read_values(tmp_path)
    write_chunk(tmp_path, 0, info(), *rows(4, 2))
    write_chunk(tmp_path, 1, info(epoch=5), *rows(4, 2, start=4))
    with pytest.raises(
        EquipoiseError, match=r"mixes files .* chunk-00001.parquet has epoch 5, chunk-00000.parquet has 4"
    ):
        read_values(tmp_path)
    write_chunk(tmp_path, 1, info(), *rows(4, 2, start=2))
    with pytest.raises(EquipoiseError, match=r"sample_id 2 more than once \(2 rows too many\)"):
        read_values(tmp_path)
    pq.write_table(pa.table({"x": [1]}), chunk_path(tmp_path, 1))
    with pytest.raises(EquipoiseError, match="is not a store of values"):
        read_values(tmp_path)
    extra = pa.table({"x": [1]}).replace_schema_metadata(store_schema(info()).metadata)
    pq.write_table(extra, chunk_path(tmp_path, 1))
    with pytest.raises(EquipoiseError, match="is not as a store writes it"):
        read_values(tmp_path)
    chunk_path(tmp_path, 1).write_bytes(b"nothing")
    with pytest.raises(EquipoiseError, match="cannot be read as Parquet"):
        read_values(tmp_path)
    pq.write_table(
        pa.table({}).replace_schema_metadata({"equipoise": '{"schema_version": 99}'}), chunk_path(tmp_path, 1)
    )
    with pytest.raises(EquipoiseError, match="schema version 99, this one reads 1"):
        read_values(tmp_path)


def test_every_file_goes_through_the_opener(tmp_path):
    for index in range(2):
        write_chunk(tmp_path, index, info(), *rows(4, 2, start=4 * index))
    opened = []

    def opener(path):
        opened.append(path.name)
        return pq.ParquetFile(path)

    read_values(tmp_path, info(), opener)
    list(iter_chunks(tmp_path, None, opener))
    missing_chunks(tmp_path, range(2), info(), opener)
    assert opened == ["chunk-00000.parquet", "chunk-00001.parquet"] * 3


def test_chunks_that_do_not_fit_are_refused(tmp_path):
    ids, sources, score, present = rows(4, 2)
    with pytest.raises(EquipoiseError, match=r"4 sample ids .* shape \[3, 3\] and 4 source ids"):
        write_chunk(tmp_path, 0, info(), ids, sources, score[:3], present)
    with pytest.raises(EquipoiseError, match="0/1 benefits cannot hold scores of type float64"):
        write_chunk(tmp_path, 0, info(), ids, sources, score.astype(float), present)
    with pytest.raises(EquipoiseError, match="not for 11"):
        info(2, modalities=tuple("abcdefghijk"))
    assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_the_old_chunk_and_no_other_file(tmp_path, monkeypatch):
    write_chunk(tmp_path, 0, info(), *rows(4, 2))

    def broken(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", broken)
    with pytest.raises(OSError, match="disk full"):
        write_chunk(tmp_path, 0, info(epoch=5), *rows(4, 2))
    assert [p.name for p in tmp_path.iterdir()] == ["chunk-00000.parquet"]
    assert read_values(tmp_path, info()).num_rows == 4


def test_a_process_killed_before_the_move_leaves_no_chunk(tmp_path):
    program = f"""
        import os, signal, numpy as np
        from equipoise.valuation import StoreInfo, write_chunk
        os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        info = StoreInfo(("a", "b"), "classification", False, "feature", "m0", "d0", "train", 4)
        write_chunk({str(tmp_path)!r}, 0, info, np.arange(1), ["x"], np.ones((1, 3), bool), np.ones((1, 2), bool))
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert not chunk_path(tmp_path, 0).exists()
    assert missing_chunks(tmp_path, [0], info()) == [0]
    with pytest.raises(EquipoiseError, match="There are no values"):
        read_values(tmp_path)
