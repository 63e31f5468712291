"""The Reader: any rows in any order, and nothing decoded that is not kept."""

import pickle
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from equipoise.datasets.prepare import prepare
from equipoise.datasets.reading import Reader
from equipoise.models.errors import EquipoiseError
from equipoise.models.modality import Modality

MODALITIES = [
    Modality(name="vector", shape=(3,), transform="standardize"),
    Modality(name="motion", kind="sequence", max_length=4),
    Modality(name="caption", kind="text", max_length=3),
]


class Rows:
    def iter_rows(self):
        rng = np.random.default_rng(0)
        for i in range(200):
            yield {
                "source_id": f"row-{i}",
                "target": i % 4,
                "vector": rng.normal(size=3) if i % 3 else None,
                "motion": rng.normal(size=1 + i % 6) if i % 7 else None,
                "caption": f"word{i % 5} again",
            }


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    out = tmp_path_factory.mktemp("reading") / "data"
    prepare(Rows(), out, modalities=MODALITIES, chunk_rows=8, shard_rows=32)
    return out


@pytest.fixture(scope="module")
def train(root):
    """All train rows, read chunk by chunk."""
    reader = Reader(root)
    chunks = [reader.read_chunk("train", c) for c in range(reader.manifest.num_chunks("train"))]
    return {name: np.concatenate([c[name] for c in chunks]) for name in chunks[0]}


def test_types_and_shapes(train):
    n = len(train["sample_id"])
    assert {name: (v.dtype.str, v.shape) for name, v in train.items()} == {
        "sample_id": ("<i8", (n,)),
        "target": ("<i8", (n,)),
        "present": ("|b1", (n, 3)),
        "vector": ("<f4", (n, 3)),
        "motion": ("<f4", (n, 4)),
        "motion_length": ("<i8", (n,)),
        "caption": ("<i8", (n, 3)),
        "caption_length": ("<i8", (n,)),
    }
    assert all(np.isfinite(v).all() for v in train.values())
    assert not train["present"].all()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_rows_in_any_order_with_anything_left_out(root, train, data):
    ids = data.draw(st.lists(st.integers(0, len(train["sample_id"]) - 1), max_size=40))
    keep = np.array([data.draw(st.lists(st.booleans(), min_size=3, max_size=3)) for _ in ids], bool).reshape(-1, 3)
    reader = Reader(root)
    found = reader.read("train", np.asarray(ids, np.int64), keep)
    at = np.asarray(ids, np.int64)
    present = train["present"][at] & keep
    np.testing.assert_array_equal(found["sample_id"], at)
    np.testing.assert_array_equal(found["target"], train["target"][at])
    np.testing.assert_array_equal(found["present"], present)
    for bit, m in enumerate(MODALITIES):
        shown = present[:, bit]
        np.testing.assert_array_equal(found[m.name][shown], train[m.name][at][shown])
        assert not found[m.name][~shown].any()
        if m.has_length:
            np.testing.assert_array_equal(found[f"{m.name}_length"], train[f"{m.name}_length"][at] * shown)
        # Once for each row that shows it, however often that row is asked for.
        assert reader.decoded[m.name] == len(set(at[shown].tolist()))


def test_a_modality_that_nobody_keeps_is_not_read_from_the_file(root, monkeypatch):
    read = []
    original = pq.ParquetFile.read_row_group

    def spy(self, i, columns=None, **kwargs):
        read.append(tuple(columns))
        return original(self, i, columns=columns, **kwargs)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", spy)
    reader = Reader(root)
    reader.read("train", [0, 1, 2], [True, False, False])
    assert read == [("sample_id", "present", "target", "vector")]
    assert reader.decoded["motion"] == reader.decoded["caption"] == 0
    read.clear()
    reader.read("train", np.array([3, 40, 3]), np.zeros((3, 3), bool))
    assert read == [("sample_id", "present", "target")] * 2  # two row groups, of two shards
    assert sum(reader.decoded.values()) <= 3


def test_source_ids_belong_to_their_rows(root, train):
    reader = Reader(root)
    ids = [i for c in range(reader.manifest.num_chunks("train")) for i in reader.source_ids("train", c)]
    assert [int(i[4:]) % 4 for i in ids] == train["target"].tolist()


def test_it_can_be_pickled_and_keeps_few_files_open(root, train):
    reader = Reader(root)
    reader.read("train", np.arange(50))
    copy = pickle.loads(pickle.dumps(reader))
    assert sum(copy.decoded.values()) == 0
    np.testing.assert_array_equal(copy.read("train", [5])["caption"], train["caption"][[5]])
    for split in ("train", "validation", "test"):
        reader.read(split, np.arange(reader.manifest.splits[split].rows))
    reader.read("train", [0])
    assert len(reader._files) <= 8


def test_pickled_it_notices_another_data_set(root, tmp_path):
    shutil.copytree(root, tmp_path / "data")
    stored = pickle.dumps(Reader(tmp_path / "data"))
    prepare(Rows(), tmp_path / "data", modalities=MODALITIES, seed=9, overwrite=True)
    with pytest.raises(EquipoiseError, match=r"data is not the data set that was asked for: its hash is"):
        pickle.loads(stored)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("train", [0, 999]), r"Split 'train' has the sample ids 0..\d+, not 999"),
        (("train", [-1]), r"not -1"),
        (("train", [0.5]), r"sample_ids must be integers of shape \[n\], found float64"),
        (("train", [[0]]), r"found int64 \(1, 1\)"),
        (("tests", [0]), r"Unknown split 'tests': did you mean 'test'"),
        (
            ("train", [0, 1], np.ones((1, 3), bool)),
            r"keep must be bool of shape \[2, 3\] \(rows, modalities vector, motion, cap",
        ),
        (("train", [0], [1, 0, 1]), r"keep must be bool .* found int64"),
    ],
)
def test_wrong_questions_are_answered_in_a_sentence(root, arguments, sentence):
    with pytest.raises(EquipoiseError, match=sentence):
        Reader(root).read(*arguments)


def test_no_rows_are_no_trouble(root):
    found = Reader(root).read("train", [])
    assert found["vector"].shape == (0, 3)
    assert found["present"].shape == (0, 3)


def rewrite(path, edit, row_group_size=8):
    table = edit(pq.read_table(path))
    pq.write_table(table, path, row_group_size=row_group_size)


def replace(table, name, values):
    place = table.schema.get_field_index(name)
    return table.set_column(place, table.schema.field(place), pa.array(values, table.schema.field(place).type))


FAULTS = {
    "fewer rows": (
        lambda t: t.slice(0, 20),
        {},
        r"train-00000.parquet holds 20 rows in 3 row groups, the manifest says 32 in 4",
    ),
    "other chunks": (lambda t: t, {"row_group_size": 16}, r"holds 32 rows in 2 row groups, the manifest says 32 in 4"),
    "other ids": (lambda t: replace(t, "sample_id", range(1, 33)), {}, r"does not hold the sample ids 0..7 of chunk 0"),
    "column gone": (lambda t: t.drop_columns("motion"), {}, r"lacks the column 'motion' of type large_binary"),
    "column of another type": (
        lambda t: t.set_column(4, "target", t["target"].cast(pa.int32())),
        {},
        r"column 'target' must be int64, found int32",
    ),
    "null that is present": (
        lambda t: replace(t, "present", [7] * 32),
        {},
        r"modality '\w+': a value marked as present is null",
    ),
    "bytes cut": (
        lambda t: replace(t, "vector", [v and v[:-4] for v in t["vector"].to_pylist()]),
        {},
        r"'vector' has 8 bytes, 12 a row",
    ),
    "not finite": (
        lambda t: replace(t, "vector", [v and v[:-4] + b"\xff" * 4 for v in t["vector"].to_pylist()]),
        {},
        r"'vector': a decoded value is not finite",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_shard_that_is_not_the_one_prepared_is_named(root, tmp_path, fault):
    edit, options, sentence = FAULTS[fault]
    shutil.copytree(root, tmp_path / "data")
    rewrite(tmp_path / "data" / "train-00000.parquet", edit, **options)
    reader = Reader(tmp_path / "data")
    with pytest.raises(EquipoiseError, match=sentence):
        reader.read_chunk("train", 0)
    with pytest.raises(EquipoiseError, match=r"train-00000.parquet is missing or was changed since it was prepared"):
        reader.manifest.verify(tmp_path / "data")


def test_a_missing_or_damaged_shard_is_named(root, tmp_path):
    shutil.copytree(root, tmp_path / "data")
    path = tmp_path / "data" / "train-00000.parquet"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(EquipoiseError, match=r"train-00000.parquet is not a Parquet file, or it was cut short"):
        Reader(tmp_path / "data").read("train", [0])
    path.write_bytes(whole[:4] + b"\xff" * 300 + whole[304:])
    with pytest.raises(EquipoiseError, match=r"train-00000.parquet is damaged"):
        Reader(tmp_path / "data").read("train", [0])
    path.unlink()
    with pytest.raises(EquipoiseError, match=r"No Parquet file at .*train-00000.parquet"):
        Reader(tmp_path / "data").read("train", [0])


def test_planted_objects_in_a_shard_are_refused(root, tmp_path):
    pytest.importorskip("ray.data")
    from ray.data._internal.object_extensions.arrow import ArrowPythonObjectType

    shutil.copytree(root, tmp_path / "data")
    path = tmp_path / "data" / "train-00000.parquet"
    table = pq.read_table(path)
    objects = pa.ExtensionArray.from_storage(ArrowPythonObjectType(), table["vector"].combine_chunks())
    pq.write_table(table.set_column(5, "vector", objects), path, row_group_size=8)
    with pytest.raises(EquipoiseError, match=r"'vector' \(ray.data.arrow_pickled_object\)"):
        Reader(tmp_path / "data").read("train", [0])
