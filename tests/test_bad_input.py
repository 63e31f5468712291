"""Bad input gets a sentence, and nothing is lost: a table of what may be wrong, and what is then said.

What other files test already is named in `ELSEWHERE`, and not tested twice.
"""

import ast
import contextlib
import os
import re
import shutil
import tempfile
from dataclasses import asdict, replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from light_runs import light_run
from PIL import Image

from equipoise import Run
from equipoise.datasets.data_yaml import read_data_yaml
from equipoise.datasets.foreign import open_table
from equipoise.datasets.manifest import SPLITS, Manifest
from equipoise.datasets.prepare import prepare
from equipoise.models.errors import EquipoiseError
from equipoise.models.modality import Modality
from equipoise.pipelines.config import load_config
from equipoise.pipelines.predict import predict
from equipoise.pipelines.preflight import check_folder
from equipoise.pipelines.trained import load_trained
from equipoise.valuation.store import chunk_path, store_schema

HERE = Path(__file__).parent
ELSEWHERE = {
    "a truncated shard": "test_datasets_reading.test_a_missing_or_damaged_shard_is_named",
    "a manifest that disagrees with its shards": "test_datasets_reading.test_a_shard_that_is_not_the_one_prepared_is_named",
    "an edited manifest": "test_datasets_manifest.test_an_edit_is_noticed",
    "a store of another absence rule, benefit, data": "test_valuation_store.test_a_store_of_something_else_says_what_differs",
    "values, labels, ids, splits of a row": "test_datasets_prepare.test_each_fault_is_one_sentence_and_leaves_nothing_behind",
    "a configuration that another run has": "test_fit.test_another_configuration_in_the_same_folder_is_refused",
    "a data.yaml": "test_datasets_csv.test_what_is_wrong_in_a_data_yaml_is_named",
    "an exported model": "test_predict.test_a_damaged_export_is_refused",
    "rows to predict": "test_predict.test_rows_that_cannot_be_used_are_listed_or_left_out",
    "more workers than CPUs or GPUs": "test_seats",
    "a full disk": "test_full_disk",
}


def test_what_is_tested_elsewhere_is_there():
    for place in ELSEWHERE.values():
        file, _, name = place.partition(".")
        tree = ast.parse((HERE / f"{file}.py").read_text())
        assert not name or name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, place


# A csv


PNG, WAV = BytesIO(), BytesIO()
Image.fromarray(np.random.default_rng(0).integers(0, 256, (4, 5, 3), dtype=np.uint8)).save(PNG, "PNG")
soundfile.write(WAV, np.zeros(1600), 16_000, format="WAV")
X, NOTE = Modality(name="x", shape=(1,)), Modality(name="note", kind="text", max_length=3)
PICTURE = Modality(name="picture", kind="image", shape=(3, 4, 5))
SOUND = Modality(name="sound", kind="audio", shape=(8,), max_length=10)
PAIR = Modality(name="pair", columns=("left", "right"))
WALK = Modality(name="walk", kind="sequence", shape=(2,), max_length=4)
HEAD = "id,target,x,note\n"


def lines(n=60, **changed):
    """n good lines; `changed`: {"line_7": "what stands there instead"}"""
    made = [f"r{i},{'ab'[i % 2]},{i}.5,oh well" for i in range(n)]
    for key, line in changed.items():
        made[int(key.removeprefix("line_"))] = line
    return "\n".join(made) + "\n"


def table_of(columns, cells):
    """A csv of 60 rows with an id, classes a and b in turn (or those in the cells), and what `cells(i)` says."""
    rows = [cells(i) for i in range(60)]
    has = "target" in columns
    head = f"id,{columns}\n" if has else f"id,target,{columns}\n"
    return head + "".join(f"r{i},{row}\n" if has else f"r{i},{'ab'[i % 2]},{row}\n" for i, row in enumerate(rows))


def one_column(kind, cell, good):
    """A csv whose modality stands in the third column; row 7 has `cell`."""
    return f"id,target,{kind}\n" + "".join(f"r{i},{'ab'[i % 2]},{cell if i == 7 else good}\n" for i in range(60))


CSVS = {
    "no csv: a picture": (
        PNG.getvalue(),
        [X],
        r"t.csv is not a csv \(its first line is .* bytes that UTF-8 text has not\)",
    ),
    "no csv: UTF-16": (HEAD.encode("utf-16"), [X], r"t.csv is not a csv"),
    "no csv: empty": (b"", [X], r"t.csv is not a csv \(it is empty\)"),
    "no csv: prose": ("Dear all,\nhere are the data.\n", [X], r"t.csv has no column 'id': it has Dear all, "),
    "no rows": (HEAD, [X], r"'t' holds no rows"),
    "a longer line": (
        HEAD + lines(line_9="r9,b,1,oh, well"),
        [X],
        r"Line 11 of .*t.csv has 5 cells, but its header has 4: mend",
    ),
    "a shorter line": (HEAD + lines(line_9="r9,b"), [X], r"Line 11 of .*t.csv has 2 cells, but its header has 4"),
    "an open quote": (
        HEAD + lines(line_9='r9,b,1,"oh'),
        [X],
        r"of .*t.csv is not csv \(unexpected end of data\): look for a double",
    ),
    "a quote inside": (HEAD + lines(line_9='r9,b,1,"oh" well'), [X], r"Line 11 of .*t.csv is not csv"),
    "two columns of a name": ("id,target,x,x\n" + lines(), [X], r"t.csv has two columns 'x' in its header: rename one"),
    "a column that is not there": (HEAD + lines(), [PICTURE], r"has no column 'picture': it has id, target, x, note"),
    "text where a number belongs": (
        HEAD + lines(line_7="r7,b,loud,oh"),
        [X],
        r"Row 7 \('r7'\): modality 'x' holds 'loud' in the column 'x', where a number",
    ),
    "a decimal comma": (
        HEAD + lines(line_7='r7,b,"1,5",oh'),
        [X],
        r"holds '1,5' in the column 'x', where a number belongs",
    ),
    "infinity": (HEAD + lines(line_7="r7,b,inf,oh"), [X], r"'x' holds inf at \[0\], which is not a finite float32"),
    "too large": (HEAD + lines(line_7="r7,b,1e300,oh"), [X], r"'x' holds 1e\+300"),
    "a group half there": (
        one_column("left,right", "1,", "1,2"),
        [PAIR],
        r"'pair' has no value in the column 'right' but one in 'left': fill",
    ),
    "a group with a word": (
        one_column("left,right", "1,two", "1,2"),
        [PAIR],
        r"'pair' holds 'two' in the column 'right', where a number",
    ),
    "a list that is none": (
        one_column("walk", '"[[1, 2]"', '"[[1, 2]]"'),
        [WALK],
        r"'walk' holds '\[\[1, 2\]', which is no JSON list",
    ),
    "a list of another shape": (
        one_column("walk", '"[1, 2, 3]"', '"[[1, 2]]"'),
        [WALK],
        r"'walk' has shape \(3,\): expected \(T, 2\)",
    ),
    "a missing picture": (
        one_column("picture", "no.png", "a.png"),
        [PICTURE],
        r"Row 7 \('r7'\): modality 'picture' names the file 'no.png', but there is none at .*no.png",
    ),
    "a folder for a picture": (
        one_column("picture", ".", "a.png"),
        [PICTURE],
        r"'picture' names the file '.', but there is none",
    ),
    "a device for a picture": (
        one_column("picture", "/dev/zero", "a.png"),
        [PICTURE],
        r"names the file '/dev/zero', but there is none",
    ),
    "a sound for a picture": (
        one_column("picture", "a.wav", "a.png"),
        [PICTURE],
        r"'picture' does not decode as a PNG or JPEG",
    ),
    "a picture for a sound": (one_column("sound", "a.png", "a.wav"), [SOUND], r"'sound' is no OGG, WAV or FLAC file"),
    "half a picture": (
        one_column("picture", "half.png", "a.png"),
        [PICTURE],
        r"'picture' does not decode as a PNG or JPEG",
    ),
    "half a sound": (one_column("sound", "half.wav", "a.wav"), [SOUND], r"'sound' is cut off"),
    "a small picture": (one_column("picture", "small.png", "a.png"), [PICTURE], r"is 1 x 1 pixels: expected 5 x 4"),
    "bytes that are no text": (
        HEAD.encode() + lines(line_7="r7,b,1,na\xefve").encode("latin-1"),
        [NOTE],
        r"Row 7 \('r7'\): modality 'note' holds b'na\\xefve', which is not UTF-8: save",
    ),
    "a label that is no text": (
        HEAD.encode() + lines(line_7="r7,\xe4,1,oh").encode("latin-1"),
        [NOTE],
        r"Row 7 \('r7'\): the column 'target' holds b'\\xe4', which is not UTF-8",
    ),
    "an id that is no text": (
        HEAD.encode() + lines(line_7="r\xe4,b,1,oh").encode("latin-1"),
        [NOTE],
        r"the column 'id' holds b'r\\xe4', which is not UTF-8",
    ),
    "duplicate ids": (HEAD + lines(line_7="r8,b,1,oh"), [X], r"Two rows have the id 'r8': a row's id must be its own"),
    "no id": (HEAD + lines(line_7=",b,1,oh"), [X], r"Row 7 has no id in the column 'id'"),
    "no target": (HEAD + lines(line_7="r7,,1,oh"), [X], r"Row 7 \('r7'\) has no target: give a class name"),
    "nothing present": (
        HEAD + lines(line_7="r7,b,,"),
        [X, NOTE],
        r"Row 7 \('r7'\): no modality is present: drop the row",
    ),
    "a modality absent everywhere": (
        table_of("x,picture", lambda i: "1,"),
        [X, PICTURE],
        r"Modality 'picture' is absent in every train row",
    ),
    "an empty split": (
        table_of("x,split", lambda i: f"1,{('train', 'test')[i % 3 == 0]}"),
        [X],
        r"The validation split of 't' is empty \(train 40, validation 0, test 20\)",
    ),
    "a split of another name": (
        table_of("x,split", lambda i: f"1,{'dev' if i == 7 else 'train'}"),
        [X],
        r"Row 7 \('r7'\) has the split 'dev' in the column 'split': it must be one of",
    ),
    "a class that train has not": (
        table_of("target,x,split", lambda i: f"{'z' if i == 59 else 'ab'[i % 2]},1,{SPLITS[i // 20]}"),
        [X],
        r"Row 'r59' of test has the label 'z', which no train row has",
    ),
}


@pytest.mark.parametrize("case", CSVS)
def test_what_is_wrong_in_a_csv(tmp_path, case):
    content, modalities, sentence = CSVS[case]
    (tmp_path / "t.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    small = BytesIO()
    Image.fromarray(np.zeros((1, 1, 3), np.uint8)).save(small, "PNG")
    files = {"a.png": PNG, "a.wav": WAV, "small.png": small}
    for name, data in files.items():
        (tmp_path / name).write_bytes(data.getvalue())
    (tmp_path / "half.png").write_bytes(PNG.getvalue()[:50])
    (tmp_path / "half.wav").write_bytes(WAV.getvalue()[:900])
    there = set(tmp_path.iterdir())
    with pytest.raises(EquipoiseError, match=sentence) as caught:
        prepare(tmp_path / "t.csv", tmp_path / "out", sample_key="id", modalities=modalities)
    assert "\n" not in str(caught.value)
    assert set(tmp_path.iterdir()) == there


def test_all_bad_rows_are_listed_up_to_twenty_and_skipping_leaves_out_the_same(tmp_path):
    bad = {f"line_{i}": f"r{i},a,x{i},oh" for i in range(3, 60, 2)}
    path = tmp_path / "t.csv"
    path.write_text(HEAD + lines(**bad))
    with pytest.raises(EquipoiseError) as caught:
        prepare(path, tmp_path / "out", sample_key="id", modalities=[X])
    head, *listed, more = str(caught.value).splitlines()
    assert head == "29 of 60 rows cannot be used: mend them, or leave them out with on_bad=skip."
    assert [re.match(r"  Row (\d+) \('r\1'\): modality 'x' holds 'x\1'", line)[1] for line in listed] == [
        str(i) for i in range(3, 43, 2)
    ]
    assert more == "  and 9 more."
    manifest = prepare(
        path, tmp_path / "out", sample_key="id", modalities=[X], on_bad="skip", fractions=(0.6, 0.2, 0.2)
    )
    assert [s.source_id for s in manifest.skipped] == sorted(f"r{i}" for i in range(3, 60, 2))
    assert sum(split.rows for split in manifest.splits.values()) == 31
    # The list does not depend on the order of the source, so neither does the hash.
    path.write_text(HEAD + "".join(f"{line}\n" for line in reversed(lines(**bad).splitlines())))
    again = prepare(path, tmp_path / "again", sample_key="id", modalities=[X], on_bad="skip", fractions=(0.6, 0.2, 0.2))
    assert again.hash == manifest.hash


# Columns of a wrong kind in Parquet: said before any row is read


VALUES = {
    "numbers": pa.array([1.5] * 60),
    "text": pa.array(["word"] * 60),
    "bytes": pa.array([PNG.getvalue()] * 60),
    "lists": pa.array([[1.0, 2.0]] * 60),
    "texts": pa.array([["word"]] * 60),
    "times": pa.array([0] * 60, pa.timestamp("ms")),
}
FITS = {
    "array": {"lists"},
    "sequence": {"lists"},
    "image": {"bytes", "text"},
    "audio": {"bytes", "text"},
    "text": {"text"},
    "number": {"numbers"},
    "columns": {"numbers"},
}
KINDS = {
    "array": Modality(name="m", shape=(2,)),
    "sequence": Modality(name="m", kind="sequence", shape=(), max_length=2),
    "image": Modality(name="m", kind="image", shape=(3, 4, 5)),
    "audio": Modality(name="m", kind="audio", shape=(8,), max_length=2),
    "text": Modality(name="m", kind="text", max_length=2),
    "columns": Modality(name="m", columns=("m",)),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("values", VALUES)
def test_a_column_of_the_wrong_kind(tmp_path, kind, values):
    targets = pa.array(["a", "b"] * 30)
    pq.write_table(
        pa.table({"source_id": [str(i) for i in range(60)], "target": targets, "m": VALUES[values]}),
        tmp_path / "t.parquet",
    )
    table = open_table(tmp_path / "t.parquet")
    if values in FITS[kind]:
        table.check_kinds([KINDS[kind]])
        return
    with pytest.raises(
        EquipoiseError, match=r"t.parquet: the column 'm' holds .*, but modality 'm' is .*, which needs .*: name"
    ):
        prepare(tmp_path / "t.parquet", tmp_path / "out", modalities=[KINDS[kind]])
    assert not (tmp_path / "out").exists()


def test_a_file_of_another_kind(tmp_path):
    for name in ("t.xlsx", "t.txt", "t"):
        (tmp_path / name).write_bytes(b"PK\3\4 and so on")
        with pytest.raises(
            EquipoiseError, match=r"t\S* is no Parquet file and its name does not end in .csv or .tsv: give"
        ):
            prepare(tmp_path / name, tmp_path / "out", modalities=[X])


def test_a_parquet_file_cut_in_its_pages_is_named(tmp_path):
    ids = [str(i) for i in range(600)]
    pq.write_table(
        pa.table({"source_id": ids, "target": ["a", "b"] * 300, "m": np.random.default_rng(0).random(600)}),
        tmp_path / "t.parquet",
    )
    whole = (tmp_path / "t.parquet").read_bytes()
    (tmp_path / "t.parquet").write_bytes(whole[:40] + b"\xff" * 400 + whole[440:])
    with pytest.raises(EquipoiseError, match=r"t.parquet is damaged"):
        prepare(tmp_path / "t.parquet", tmp_path / "out", modalities=[Modality(name="m", shape=(1,))])
    assert not (tmp_path / "out").exists()


# Folders that cannot be read or written


def blocked(folder):
    """A file where a folder would have to be: not even root gets past it."""
    (folder / "file").write_text("")
    return folder / "file"


WRITES = {
    "prepare below a file": (
        lambda run, file: prepare("digits", file / "data"),
        r"Cannot write .*data \(Not a directory\): name",
    ),
    "prepare onto a file": (
        lambda run, file: prepare("digits", file),
        r"file is a file: name a folder for the data set",
    ),
    "prepare in /proc": (
        lambda run, file: prepare("digits", "/proc/data"),
        r"Cannot write /proc/data \(.*\): name another folder",
    ),
    "run onto a file": (
        lambda run, file: check_folder(run.config.model_copy(update={"out": str(file)})),
        r"file is a file: a run needs a folder",
    ),
    "predict below a file": (
        lambda run, file: predict(run.path, rows_of(run), file / "p.csv"),
        r"Cannot write .*p.csv \(.*\): name",
    ),
    "source below a file": (
        lambda run, file: prepare(file / "t.csv", file.parent / "data", modalities=[X]),
        r"No csv, Parquet file or folder at .*t.csv",
    ),
}


def rows_of(run):
    path = run.path.parent / "rows.csv"
    path.write_text("id,x,note\nr1,2.5,oh\n")
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A trained run on a small csv; its data set is there."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "t.csv").write_text(HEAD + lines(200))
    prepare(folder / "t.csv", folder / "data", sample_key="id", modalities=[X, NOTE], chunk_rows=16, shard_rows=32)
    made = light_run(folder / "run", folder / "data", max_epochs=1, batch_size=32)
    made.result("test")
    return made


@pytest.mark.parametrize("case", WRITES)
def test_a_folder_that_cannot_be_written(run, tmp_path, case):
    what, sentence = WRITES[case]
    with pytest.raises(EquipoiseError, match=sentence):
        what(run, blocked(tmp_path))
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@contextlib.contextmanager
def closed(inner):
    """A folder with what `inner` writes there, which the one who runs this may not enter."""
    root = Path(tempfile.mkdtemp())
    as_root = os.geteuid() == 0
    try:
        root.chmod(0o755)
        folder = root / "closed"
        folder.mkdir()
        inner(folder)
        folder.chmod(0)
        if as_root:
            os.seteuid(65534)  # root may enter everywhere
        yield folder
    finally:
        if as_root:
            os.seteuid(0)
        folder.chmod(0o755)
        shutil.rmtree(root)


READS = {
    "a csv": (lambda f: prepare(f / "t.csv", "out", modalities=[X]), r"Cannot read .*t.csv \(Permission denied\)"),
    "a folder of rows": (lambda f: prepare(f, "out", modalities=[X]), r"Cannot read .*closed \(Permission denied\)"),
    "a data set": (lambda f: Manifest.load(f), r"Cannot read .*manifest.json \(Permission denied\)"),
    "a run": (lambda f: Run.open(f), r"Cannot read the run folder .*closed \(Permission denied\)"),
    "a model": (lambda f: load_trained(f), r"Cannot read the folder .*closed \(Permission denied\)"),
    "a data.yaml": (lambda f: read_data_yaml(f / "data.yaml"), r"Cannot read .*data.yaml \(Permission denied\)"),
    "a folder to write": (
        lambda f: prepare("digits", f / "data"),
        r"Cannot write .*data \(Permission denied\): name another folder",
    ),
    "a run folder to be": (
        lambda f: check_folder(load_config({"data": "d", "out": str(f / "run"), "max_steps": 1})),
        r"Cannot read the run folder .*run \(Permission denied\): choose another out",
    ),
}


@pytest.mark.parametrize("case", READS)
def test_a_folder_that_may_not_be_entered(case):
    what, sentence = READS[case]
    with (
        closed(lambda f: (f / "t.csv").write_text(HEAD + lines())) as folder,
        pytest.raises(EquipoiseError, match=sentence),
    ):
        what(folder)


# A run


def test_a_run_folder_of_another_configuration(run):
    other = run.config.model_copy(update={"seed": 4, "batch_size": 16})
    sentence = r"holds a run of another configuration \(batch_size: 32 -> 16; seed: 3 -> 4\): choose another out=..., or delete"
    with pytest.raises(EquipoiseError, match=sentence):
        check_folder(other)
    assert check_folder(run.config) == "unfinished"


STORES = {
    "absence": ("input", r"a store of another way of leaving modalities out: absence 'input', expected 'feature'"),
    "benefit": ("dice", r"a store of another benefit: benefit 'dice', expected 'classification'"),
    "manifest_hash": ("0" * 64, r"a store of other data: manifest_hash '0+', expected"),
    "model_hash": ("0" * 64, r"a store of another model: model_hash '0+', expected"),
}


@pytest.mark.parametrize("field", STORES)
def test_values_of_something_else_in_the_run_folder(run, tmp_path, field):
    value, sentence = STORES[field]
    shutil.copytree(run.path, tmp_path / "run")
    copy = Run.open(tmp_path / "run")
    assert copy.values("test").num_rows
    path = chunk_path(copy.values_folder("test", "best"), 0)
    info = replace(copy.sweep("test", "best", copy.best_checkpoint() / "model.pt").info, **{field: value})
    assert asdict(info)[field] == value
    pq.write_table(pq.read_table(path).cast(store_schema(info)), path)
    with pytest.raises(EquipoiseError, match=sentence):
        copy.values("test")


def test_weights_that_are_damaged_or_gone(run, tmp_path):
    shutil.copytree(run.path, tmp_path / "run")
    copy = Run.open(tmp_path / "run")
    path = copy.best_checkpoint() / "model.pt"
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"not a checkpoint"):
        path.write_bytes(content)
        with pytest.raises(
            EquipoiseError, match=r"model.pt is missing, damaged or of another model .*: the run has to be made"
        ):
            copy.best_model()
    path.unlink()
    with pytest.raises(EquipoiseError, match=r"model.pt is missing"):
        copy.best_model()


def test_the_rows_of_a_data_set_that_is_gone(run, tmp_path):
    shutil.copytree(run.path, tmp_path / "run")
    text = (tmp_path / "run" / "config.yaml").read_text()
    (tmp_path / "run" / "config.yaml").write_text(text.replace(run.config.data, str(tmp_path / "gone")))
    copy = Run.open(tmp_path / "run")
    assert copy.values("test").num_rows  # what was found stays readable
    with pytest.raises(EquipoiseError, match=r"gone is not a prepared data set: it has no manifest.json"):
        copy.matrix("validation")
