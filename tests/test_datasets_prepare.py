"""`prepare`: what it writes, that the order of the source does not matter, and each way in which it refuses."""

import hashlib
import io
import random
import re
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from equipoise.datasets.manifest import Manifest
from equipoise.datasets.prepare import prepare
from equipoise.datasets.reading import Reader
from equipoise.models.errors import EquipoiseError
from equipoise.models.modality import Modality

MODALITIES = [
    Modality(name="vector", shape=(2, 3), transform="standardize"),
    Modality(name="motion", kind="sequence", shape=(2,), max_length=4, transform="standardize"),
    Modality(name="picture", column="png", kind="image", shape=(3, 4, 5), transform="standardize"),
    Modality(name="caption", kind="text", max_length=3, vocabulary=6),
]
LABELS = ("cat", "dog", "hen")


def png(pixels):
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def rows(n=60, seed=0):
    """n rows with every kind of modality; row i lacks modality i % 5 (none where that is 4)."""
    rng = np.random.default_rng(seed)
    words = ["A cat", "a dog sat", "the HEN sat on a cat", "zebra"]
    out = []
    for i in range(n):
        row = {
            "source_id": f"row-{i:03d}",
            "target": LABELS[i % 3],
            "person": f"p{i % 12:02d}",
            "vector": rng.normal(5, 2, (2, 3)).astype(np.float32).tolist(),
            "motion": rng.normal(-1, 3, (1 + i % 7, 2)).astype(np.float32).tolist(),
            "png": png(rng.integers(0, 256, (4, 5, 3), dtype=np.uint8)),
            "caption": words[i % 4],
        }
        for place, column in enumerate(("vector", "motion", "png", "caption")):
            if i % 5 == place:
                row[column] = None
        out.append(row)
    return out


def parquet(folder, data, parts=1):
    folder.mkdir(parents=True, exist_ok=True)
    for part in range(parts):
        pq.write_table(pa.Table.from_pylist(data[part::parts]), folder / f"part-{part}.parquet")
    return folder


class Rows:
    """What `prepare` needs of a ray.data.Dataset."""

    def __init__(self, data):
        self.data = data

    def iter_rows(self):
        return iter(self.data)


def everything(root):
    """{source_id: its decoded row} and {split: ids in order}."""
    reader = Reader(root)
    found, order = {}, {}
    for split in ("train", "validation", "test"):
        order[split] = []
        for chunk in range(reader.manifest.num_chunks(split)):
            columns = reader.read_chunk(split, chunk)
            ids = reader.source_ids(split, chunk)
            order[split] += ids
            found |= {i: {k: v[at] for k, v in columns.items()} | {"split": split} for at, i in enumerate(ids)}
    return found, order


def test_own_parquet_of_every_kind_is_decoded_as_declared(tmp_path):
    data = rows()
    manifest = prepare(
        parquet(tmp_path / "mine", data, 3), tmp_path / "out", modalities=MODALITIES, chunk_rows=8, shard_rows=16
    )
    manifest.verify(tmp_path / "out")
    assert manifest.name == "mine"
    assert manifest.task.labels == LABELS
    found, _ = everything(tmp_path / "out")
    assert sorted(found) == [row["source_id"] for row in data]
    train = [row for row in data if found[row["source_id"]]["split"] == "train"]

    def state(name, stack):
        values = np.concatenate(stack).astype(np.float64)
        np.testing.assert_allclose(manifest.fitted[name]["mean"], values.mean(0), rtol=1e-6)
        np.testing.assert_allclose(manifest.fitted[name]["deviation"], values.std(0), rtol=1e-6)
        return values.mean(0).astype(np.float32), values.std(0).astype(np.float32)

    def pixels(row):
        return np.asarray(Image.open(io.BytesIO(row["png"])), np.float32).transpose(2, 0, 1) / 255

    vector = state("vector", [np.asarray(r["vector"]) for r in train if r["vector"]])
    motion = state("motion", [np.asarray(r["motion"])[:4] for r in train if r["motion"]])
    picture = state("picture", [pixels(r).reshape(3, -1).T for r in train if r["png"]])
    counts: dict[str, int] = {}
    for row in train:
        for word in (row["caption"] or "").lower().split():
            counts[word] = counts.get(word, 0) + 1
    vocabulary = sorted(counts, key=lambda w: (-counts[w], w))[:4]

    for row in data:
        ours = found[row["source_id"]]
        assert LABELS[ours["target"]] == row["target"]
        assert ours["present"].tolist() == [row[c] is not None for c in ("vector", "motion", "png", "caption")]
        want = np.zeros((2, 3)) if row["vector"] is None else (np.asarray(row["vector"]) - vector[0]) / vector[1]
        np.testing.assert_allclose(ours["vector"], want, rtol=1e-5, atol=1e-6)
        steps = np.asarray(row["motion"] or np.zeros((0, 2)))[:4]
        assert ours["motion_length"] == len(steps)
        np.testing.assert_allclose(ours["motion"][: len(steps)], (steps - motion[0]) / motion[1], rtol=1e-5, atol=1e-6)
        assert not ours["motion"][len(steps) :].any()
        want = 0 if row["png"] is None else (pixels(row) - picture[0][:, None, None]) / picture[1][:, None, None]
        np.testing.assert_allclose(ours["picture"], np.broadcast_to(want, (3, 4, 5)), rtol=1e-4, atol=1e-5)
        words = (row["caption"] or "").lower().split()[:3]
        ids = [vocabulary.index(w) + 2 if w in vocabulary else 1 for w in words]
        assert ours["caption_length"] == len(ids)
        assert ours["caption"].tolist() == ids + [0] * (3 - len(ids))
        assert ours["caption"].dtype == np.int64
        assert all(v.dtype == np.float32 for v in (ours["vector"], ours["motion"], ours["picture"]))


def test_what_lies_on_disk_is_what_the_manifest_says(tmp_path):
    manifest = prepare(
        parquet(tmp_path / "mine", rows()), tmp_path / "out", modalities=MODALITIES, chunk_rows=8, shard_rows=16
    )
    files = sorted(p.name for p in (tmp_path / "out").iterdir())
    shards = [(name, s) for name, split in manifest.splits.items() for s in split.shards]
    assert files == sorted(["manifest.json", *(s.file for _, s in shards)])
    assert sum(split.rows for split in manifest.splits.values()) == 60
    next_id = {"train": 0, "validation": 0, "test": 0}
    for name, shard in shards:
        path = tmp_path / "out" / shard.file
        file = pq.ParquetFile(path)
        assert hashlib.sha256(path.read_bytes()).hexdigest() == shard.sha256
        assert file.schema_arrow.equals(manifest.schema())
        groups = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
        assert all(n == 8 for n in groups[:-1])
        assert sum(groups) == shard.rows <= 16
        assert file.read()["sample_id"].to_pylist() == list(range(next_id[name], next_id[name] + shard.rows))
        next_id[name] += shard.rows
    row = next(r for r in pq.read_table(tmp_path / "out" / "train-00000.parquet").to_pylist() if r["vector"])
    assert np.frombuffer(row["vector"], "<f4").shape == (6,)
    loaded = Manifest.load(tmp_path / "out")
    assert loaded == manifest


def test_neither_time_nor_the_order_of_the_source_nor_its_kind_changes_a_byte(tmp_path):
    data = rows()
    kwargs = {
        "modalities": MODALITIES,
        "chunk_rows": 8,
        "shard_rows": 16,
        "group": "person",
        "fractions": (0.4, 0.3, 0.3),
    }
    parquet(tmp_path / "one" / "mine", data)
    parquet(tmp_path / "two" / "mine", random.Random(1).sample(data, len(data)), 4)
    hashes = [prepare(tmp_path / k / "mine", tmp_path / f"out-{k}", **kwargs).hash for k in ("one", "two")]
    hashes.append(prepare(str(tmp_path / "one" / "mine"), tmp_path / "out-again", **kwargs).hash)
    assert len(set(hashes)) == 1
    ours = prepare(Rows(data), tmp_path / "out-ray", **kwargs)
    assert ours.splits == Manifest.load(tmp_path / "out-one").splits
    assert prepare(Rows(data), tmp_path / "out-seed", seed=2, **kwargs).splits != ours.splits


def test_groups_never_straddle_splits(tmp_path):
    data = rows(240)
    prepare(Rows(data), tmp_path / "out", modalities=MODALITIES, group="person", fractions=(0.4, 0.3, 0.3))
    _, order = everything(tmp_path / "out")
    person = {row["source_id"]: row["person"] for row in data}
    groups = [{person[i] for i in order[split]} for split in order]
    assert all(groups)
    assert sum(map(len, groups)) == len(set.union(*groups)) == 12


def test_rows_split_by_hash_keep_their_split_when_rows_are_added(tmp_path):
    prepare(Rows(rows(300)[:200]), tmp_path / "a", modalities=MODALITIES)
    prepare(Rows(rows(300)), tmp_path / "b", modalities=MODALITIES)
    few, order = everything(tmp_path / "a")
    many, _ = everything(tmp_path / "b")
    assert all(many[i]["split"] == few[i]["split"] for i in few)
    assert len(order["train"]) / 200 == pytest.approx(0.7, abs=0.1)
    kept = [i for i in everything(tmp_path / "b")[1]["train"] if i in few]
    assert kept == order["train"]  # nor their order


def test_more_rows_than_a_bucket_or_a_batch_holds(tmp_path):
    n = 3000
    data = [{"source_id": i, "target": i % 2, "x": [float(i), 1.0]} for i in range(n)]
    m = prepare(
        Rows(data), tmp_path / "out", modalities=[Modality(name="x", shape=(2,))], chunk_rows=100, shard_rows=500
    )
    assert sum(s.rows for s in m.splits.values()) == n
    assert len(m.splits["train"].shards) == -(-m.splits["train"].rows // 500)
    reader = Reader(tmp_path / "out")
    for split in m.splits:
        for chunk in range(m.num_chunks(split)):
            columns = reader.read_chunk(split, chunk)
            assert [str(int(v)) for v in columns["x"][:, 0]] == reader.source_ids(split, chunk)


def test_labels_as_names_or_indices(tmp_path):
    x = [Modality(name="x", shape=(1,))]
    data = [
        {"source_id": str(i), "target": i % 3, "x": [0.0], "split": ("train", "validation", "test")[i // 9 % 3]}
        for i in range(27)
    ]
    assert prepare(Rows(data), tmp_path / "a", modalities=x).task.labels == ("0", "1", "2")
    named = prepare(Rows(data), tmp_path / "b", modalities=x, task_labels=["hen", "cat", "dog"])
    assert named.task.labels == ("hen", "cat", "dog")
    by_name = [row | {"target": ("hen", "cat", "dog")[row["target"]]} for row in data]
    assert prepare(Rows(by_name), tmp_path / "c", modalities=x, task_labels=["hen", "cat", "dog"]) == named
    assert prepare(Rows(by_name), tmp_path / "d", modalities=x).task.labels == ("cat", "dog", "hen")


def test_constant_columns_get_deviation_one(tmp_path):
    data = [{"source_id": str(i), "target": i % 2, "x": [7.0, float(i)]} for i in range(50)]
    m = prepare(Rows(data), tmp_path / "out", modalities=[Modality(name="x", shape=(2,), transform="standardize")])
    deviation = m.fitted["x"]["deviation"]
    assert deviation[0] == 1
    assert float(deviation[1]) > 2


def change(number, **values):
    def edit(data):
        data[number] |= values
        return data

    return edit


def every(**values):
    return lambda data: [row | values for row in data]


def splits(data):
    for i, row in enumerate(data):
        row["split"] = ("train", "validation", "test")[i // 6 % 3]
    return data


def renamed(old, new):
    return lambda data: [{new if k == old else k: v for k, v in row.items()} for row in data]


def gray16():
    out = io.BytesIO()
    Image.fromarray(np.zeros((4, 5), np.uint16)).save(out, "PNG")
    return out.getvalue()


FAULTS = {
    "nan": (
        change(7, vector=[[1, 2, 3], [4, float("nan"), 6]]),
        {},
        r"Row 7 \('row-007'\): modality 'vector' holds nan at \[1, 1\], which is not a finite float32: mend it",
    ),
    "inf": (change(7, motion=[[1, float("-inf")]]), {}, r"'row-007'.*'motion' holds -inf at \[0, 1\]"),
    "too big": (change(7, vector=[[1e300, 0, 0], [0, 0, 0]]), {}, r"'vector' holds 1e\+300"),
    "shape": (
        change(7, vector=[[1.0, 2.0], [3.0, 4.0]]),
        {},
        r"Row 7 \('row-007'\): modality 'vector' has shape \(2, 2\): expec",
    ),
    "sequence shape": (change(7, motion=[1.0, 2.0]), {}, r"'motion' has shape \(2,\): expected \(T, 2\)"),
    "empty sequence": (change(7, motion=np.zeros((0, 2))), {}, r"'motion' is empty: leave it null"),
    "ragged": (change(7, vector=[[1.0], [2.0, 3.0]]), {}, r"'vector' has lists of different lengths inside"),
    "null inside": (change(7, vector=[[1.0, None, 2.0]] * 2), {}, r"'vector' holds something else than numbers"),
    "type": (change(7, vector="loud"), {}, r"'vector' holds a str where numbers belong"),
    "text type": (change(7, caption=5), {}, r"'caption' is text, but the value is of type int: give a string"),
    "image type": (
        change(7, png="cat.png"),
        {},
        r"'picture' is an image, but the value is of type str: give the bytes",
    ),
    "image bytes": (
        change(8, png=b"\x89PNG but no"),
        {},
        r"Row 8 \('row-008'\): modality 'picture' does not decode as a PNG or JPEG",
    ),
    "image cut short": (lambda d: change(8, png=d[8]["png"][:60])(d), {}, r"'picture' does not decode"),
    "image size": (
        change(8, png=png(np.zeros((5, 4, 3), np.uint8))),
        {},
        r"'picture' is 4 x 5 pixels: expected 5 x 4 \(width x height\)",
    ),
    "image depth": (change(8, png=gray16()), {}, r"'picture' has pixels of mode 'I;16': give 8 bits a channel"),
    "nothing present": (
        change(7, vector=None, motion=None, png=None, caption=None),
        {},
        r"'row-007'\): no modality is present: drop",
    ),
    "duplicate": (change(7, source_id="row-041"), {}, r"Two rows have the id 'row-041'.*Drop the duplicate"),
    "no id": (change(7, source_id=None), {}, r"Row 7 has no id in the column 'source_id'"),
    "label unknown": (
        change(7, target="cats"),
        {"task_labels": LABELS},
        r"Row 7 \('row-007'\) has the label 'cats', which is none of task_labels: did you mean 'cat'",
    ),
    "label outside": (
        every(target=3),
        {"task_labels": LABELS},
        r"Row 0 \('row-000'\) has the label 3, outside the classes 0..2",
    ),
    "label negative": (every(target=-1), {}, r"has the label -1, outside the classes 0..\.\.\."),
    "label mixed": (
        change(7, target=1),
        {},
        r"'row-007'.* has the target 1, but rows before it have targets of another type",
    ),
    "label missing": (
        change(7, target=None),
        {},
        r"'row-007'.* has no target: give a class name or an index",
    ),
    "label float": (every(target=1.0), {}, r"has the target 1.0 \(float\)"),
    "label gap": (
        lambda d: [r | {"target": (0, 2)[i % 2]} for i, r in enumerate(d)],
        {},
        r"integer labels up to 2 but none has 1",
    ),
    "label twice": (every(), {"task_labels": ("cat", "dog", "cat", "hen")}, r"label 'cat' is given twice"),
    "label not in train": (
        lambda d: change(9, target="yak")(splits(d)),
        {},
        r"Row 'row-009' of validation has the label 'yak', which no train row has",
    ),
    "one class": (every(target="cat"), {}, r"one label 'cat': classification needs at least two"),
    "empty split": (
        every(split="train"),
        {},
        r"The validation split of .* is empty \(train 60, validation 0, test 0\): train, validation and test all",
    ),
    "split name": (
        lambda d: change(7, split="dev")(splits(d)),
        {},
        r"'row-007'\) has the split 'dev' in the column 'split': it must be one of train, val",
    ),
    "split column": (every(), {"split": "fold"}, r"has no column 'fold'"),
    "group straddles": (splits, {"group": "person"}, r"Group 'p\d\d' has rows in \w+ and in \w+ \(row 'row-\d+'\)"),
    "absent in train": (
        lambda d: [r | {"png": None} for r in d],
        {},
        r"Modality 'picture' is absent in every train row",
    ),
    "no target": (
        renamed("target", "label"),
        {},
        r"has no column 'target': it has source_id, label, .*Name the columns with",
    ),
    "no modality column": (renamed("png", "photo"), {}, r"has no column 'png'"),
    "no rows": (lambda d: [], {}, r"holds no rows"),
    "option": (every(), {"chunk_row": 4}, r"Unknown option of prepare 'chunk_row': did you mean 'chunk_rows'"),
    "layout": (
        every(),
        {"chunk_rows": 100, "shard_rows": 250},
        r"shard_rows must be a positive multiple of chunk_rows",
    ),
    "fractions": (every(), {"fractions": (0.8, 0.2, 0.0)}, r"fractions must be three positive shares"),
    "seed": (every(), {"seed": -1}, r"seed must be an integer of 0 or more"),
    "no modalities": (every(), {"modalities": None}, r"Your own data needs modalities="),
    "same name": (every(), {"modalities": [MODALITIES[0], MODALITIES[0]]}, r"Modality name 'vector' is taken"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_one_sentence_and_leaves_nothing_behind(tmp_path, fault):
    edit, options, sentence = FAULTS[fault]
    with pytest.raises(EquipoiseError, match=sentence) as caught:
        prepare(Rows(edit(rows())), tmp_path / "out", **({"modalities": MODALITIES} | options))
    head, *listed = str(caught.value).splitlines()
    assert not listed or re.match(r"\d+ of 60 rows cannot be used: mend them, or leave them out with on_bad=skip", head)
    assert all(line.startswith(("  Row ", "  and ")) for line in listed)
    assert list(tmp_path.iterdir()) == []


def test_bad_rows_can_be_skipped_and_are_listed(tmp_path):
    data = change(8, png=b"no picture")(change(7, vector=[1.0])(rows()))
    manifest = prepare(Rows(data), tmp_path / "out", modalities=MODALITIES, on_bad="skip")
    assert [(s.source_id, s.reason[:19]) for s in manifest.skipped] == [
        ("row-007", "modality 'vector' h"),
        ("row-008", "modality 'picture' "),
    ]
    assert sum(s.rows for s in manifest.splits.values()) == 58
    assert Manifest.load(tmp_path / "out").skipped == manifest.skipped


def test_parquet_sources_are_judged_before_they_are_read(tmp_path):
    pytest.importorskip("ray.data")
    from ray.data._internal.object_extensions.arrow import ArrowPythonObjectType

    folder = parquet(tmp_path / "mine", rows())
    objects = pa.ExtensionArray.from_storage(ArrowPythonObjectType(), pa.array([b"boom"], pa.large_binary()))
    pq.write_table(pa.table({"source_id": ["x"], "png": objects}), folder / "part-9.parquet")
    with pytest.raises(EquipoiseError, match=r"part-9.parquet holds Arrow extension types.*'png'"):
        prepare(folder, tmp_path / "out", modalities=MODALITIES)
    (folder / "part-9.parquet").write_bytes(b"PAR1 but no more than that PAR1")
    with pytest.raises(EquipoiseError, match=r"part-9.parquet is not a Parquet file"):
        prepare(folder, tmp_path / "out", modalities=MODALITIES)
    assert not (tmp_path / "out").exists()


def test_sources_that_do_not_exist_are_named(tmp_path):
    x = {"modalities": MODALITIES}
    with pytest.raises(EquipoiseError, match=r"No csv, Parquet file or folder at .*nowhere.parquet"):
        prepare(tmp_path / "nowhere.parquet", tmp_path / "out", **x)
    (tmp_path / "empty").mkdir()
    with pytest.raises(EquipoiseError, match=r"empty holds no \*.parquet file"):
        prepare(tmp_path / "empty", tmp_path / "out", **x)
    with pytest.raises(EquipoiseError, match=r"A source is the name of a data set, a path .* not list"):
        prepare([1, 2], tmp_path / "out", **x)


def test_an_existing_folder_is_replaced_only_if_it_is_ours_and_on_request(tmp_path):
    out = tmp_path / "out"
    out.mkdir()  # an empty one is free
    first = prepare(Rows(rows()), out, modalities=MODALITIES)
    with pytest.raises(EquipoiseError, match=r"out already holds a data set: pass overwrite=True"):
        prepare(Rows(rows()), out, modalities=MODALITIES)
    with pytest.raises(EquipoiseError, match=r"'vector' has shape"):
        prepare(Rows(change(7, vector=[1.0])(rows())), out, modalities=MODALITIES, overwrite=True)
    assert Manifest.load(out) == first  # a failure leaves the old one
    second = prepare(Rows(rows()), out, modalities=MODALITIES, seed=1, overwrite=True)
    assert Manifest.load(out) == second != first
    (out / "thesis.txt").write_text("precious")
    with pytest.raises(EquipoiseError, match=r"something else than a data set of ours \(thesis.txt\)"):
        prepare(Rows(rows()), out, modalities=MODALITIES, overwrite=True)
    assert (out / "thesis.txt").read_text() == "precious"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


KILLED = """
import os, sys
from equipoise.datasets.prepare import prepare
from equipoise.models.modality import Modality

class Rows:
    def iter_rows(self):
        for i in range(5000):
            if i == 4000:
                os.kill(os.getpid(), 9)
            yield {"source_id": i, "target": i % 2, "x": [float(i)]}

prepare(Rows(), sys.argv[1], modalities=[Modality(name="x", shape=(1,))], overwrite=True)
"""


def test_a_killed_prepare_leaves_the_old_data_set_and_no_half_one(tmp_path):
    old = prepare(Rows(rows()), tmp_path / "old", modalities=MODALITIES)
    for out in ("old", "new"):
        assert subprocess.run([sys.executable, "-c", KILLED, tmp_path / out], check=False).returncode == -9
    assert Manifest.load(tmp_path / "old") == old
    assert not (tmp_path / "new").exists()


@pytest.mark.ray
def test_a_ray_data_set_gives_the_same_shards_as_its_rows(ray_cluster, tmp_path):
    import ray

    data = rows(40)
    # Ray turns a tensor column with nulls into pickled objects, so the arrays are all there; bytes and text may lack.
    present = [
        r
        | {
            "vector": np.asarray(r["vector"] or np.ones((2, 3)), np.float32),
            "motion": np.asarray(r["motion"] or [[1, 2]]),
        }
        for r in data
    ]
    ours = prepare(ray.data.from_items(present), tmp_path / "ray", modalities=MODALITIES)
    plain = prepare(Rows(present), tmp_path / "plain", modalities=MODALITIES)
    assert ours.hash == plain.hash
    found, _ = everything(tmp_path / "ray")
    assert len(found) == 40
