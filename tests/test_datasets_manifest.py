"""The manifest: what it refuses, and what its hash pins."""

import json

import pyarrow as pa
import pytest

from equipoise.datasets.manifest import Manifest, Shard, Split, TaskSpec
from equipoise.models.errors import EquipoiseError
from equipoise.models.modality import Modality


def split(name, *rows):
    return Split(
        rows=sum(rows),
        shards=tuple(Shard(file=f"{name}-{i:05d}.parquet", rows=n, sha256="0" * 64) for i, n in enumerate(rows)),
    )


def manifest(**changes):
    fields = {
        "name": "toy",
        "task": TaskSpec(num_classes=3, labels=("a", "b", "c")),
        "modalities": (
            Modality(name="sound", shape=(4,), transform="standardize"),
            Modality(name="words", kind="text", max_length=5),
        ),
        "fitted": {
            "sound": {"mean": [0.1, 1e-17, -0.0, 3.0], "deviation": [1.0, 2.0, 3.0, 4.0]},
            "words": {"tokenizer": "{}"},
        },
        "splits": {"train": split("train", 8, 8, 3), "validation": split("validation", 4), "test": split("test", 8)},
        "chunk_rows": 4,
        "shard_rows": 8,
        "seed": 3,
    }
    return Manifest(**(fields | changes))


def test_saved_and_loaded_it_is_the_same(tmp_path):
    manifest().save(tmp_path)
    found = Manifest.load(tmp_path)
    assert found == manifest()
    assert found.hash == manifest().hash
    assert [entry.name for entry in tmp_path.iterdir()] == ["manifest.json"]


def test_the_hash_pins_every_field():
    plain = manifest().hash
    assert manifest(seed=4).hash != plain
    assert manifest(terms="research only").hash != plain
    assert manifest(task=TaskSpec(num_classes=3, labels=("a", "c", "b"))).hash != plain


def test_an_edit_is_noticed(tmp_path):
    manifest().save(tmp_path)
    record = json.loads((tmp_path / "manifest.json").read_text())
    record["fitted"]["sound"]["mean"][0] = 0.2
    (tmp_path / "manifest.json").write_text(json.dumps(record))
    with pytest.raises(EquipoiseError, match=r"manifest.json was edited after it was written"):
        Manifest.load(tmp_path)


def test_missing_damaged_or_newer_manifests_are_named(tmp_path):
    with pytest.raises(
        EquipoiseError, match=r"not a prepared data set: it has no manifest.json. Run `equipoise prepare`"
    ):
        Manifest.load(tmp_path)
    for text in ("{", "[]", "{}", '"text"'):
        (tmp_path / "manifest.json").write_text(text)
        with pytest.raises(EquipoiseError, match=r"not a manifest of ours, or it is damaged"):
            Manifest.load(tmp_path)
    record = json.loads(manifest().model_dump_json()) | {"format_version": 2}
    (tmp_path / "manifest.json").write_text(json.dumps(record))
    with pytest.raises(EquipoiseError, match=r"format version 2, this release reads version 1"):
        Manifest.load(tmp_path)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"splits": {"train": split("train", 4)}}, r"splits train, validation, test, found train"),
        ({"shard_rows": 6}, r"shard_rows must be a positive multiple of chunk_rows"),
        (
            {"splits": {"train": split("train", 3, 8), "validation": split("validation", 4), "test": split("test", 4)}},
            r"'train' should hold 11 rows in shards of 8, but its shards hold \[3, 8\]",
        ),
        ({"modalities": ()}, r"1 to 16 modalities, found 0"),
        ({"modalities": (Modality(name="target", shape=(2,)),)}, r"'target' is taken"),
        (
            {"modalities": (Modality(name="w", kind="text", max_length=2), Modality(name="w_length", shape=(2,)))},
            r"'w_length' is taken by the length of 'w'",
        ),
    ],
)
def test_an_inconsistent_manifest_cannot_be_made(changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        manifest(**changes)


def test_a_shard_cannot_lie_elsewhere():
    with pytest.raises(ValueError, match="pattern"):
        Shard(file="../train-00000.parquet", rows=1, sha256="")


def test_chunks():
    m = manifest()
    assert [m.num_chunks(s) for s in ("train", "validation", "test")] == [5, 1, 2]
    assert [i for c in range(5) for i in m.chunk_ids("train", c)] == list(range(19))
    with pytest.raises(EquipoiseError, match=r"chunks 0..4, not 5"):
        m.chunk_ids("train", 5)
    with pytest.raises(EquipoiseError, match=r"Unknown split 'tests': did you mean 'test'"):
        m.num_chunks("tests")


def test_schema_and_task():
    m = manifest()
    assert m.schema().names == ["sample_id", "source_id", "group", "present", "target", "sound", "words"]
    assert m.schema().field("sound").type == pa.large_binary()
    assert m.schema().field("words").type == pa.large_string()
    assert m.schema().field("present").type == pa.uint16()
    assert m.names == ("sound", "words")
    assert m.build_task().num_outputs == 3
