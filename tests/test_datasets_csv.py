"""A person's own csv: the same rows as a csv and as Parquet give the same shards, whatever the csv looks like."""

import io
import json
import tracemalloc

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from PIL import Image

from equipoise.datasets.csv_table import CsvTable
from equipoise.datasets.data_yaml import prepare_yaml
from equipoise.datasets.foreign import open_table
from equipoise.datasets.manifest import Manifest
from equipoise.datasets.prepare import prepare
from equipoise.datasets.reading import Reader
from equipoise.models.errors import EquipoiseError
from equipoise.models.modality import Modality

MODALITIES = [
    Modality(name="photo", kind="image", shape=(1, 4, 5)),
    Modality(name="call", kind="audio", shape=(8,), max_length=20),
    Modality(name="note", kind="text", max_length=4),
    Modality(name="grid", columns=("g1", "g2", "g3", "g4"), shape=(2, 2)),
    Modality(name="size", shape=(1,), transform="standardize"),
    Modality(name="path", kind="sequence", shape=(2,), max_length=3),
]
OPTIONS = {"sample_key": "id", "target": "kind", "modalities": MODALITIES, "chunk_rows": 16, "shard_rows": 32}


def rows(folder, n=90):
    """n rows as Parquet would hold them, files as bytes; the same files in `folder`, under names that follow the ids."""
    rng = np.random.default_rng(1)
    out = []
    for i in range(n):
        picture, sound = io.BytesIO(), io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (4, 5), dtype=np.uint8)).save(picture, "PNG")
        soundfile.write(sound, rng.normal(0, 0.1, 1600), 8000, format="WAV")
        for name, data in ((f"{i}.png", picture), (f"{i}.wav", sound)):
            (folder / name).write_bytes(data.getvalue())
        row = {
            "id": f"r{i}",
            "kind": ("cat", "dog")[i % 2],
            "photo": picture.getvalue(),
            "call": sound.getvalue(),
            "note": ("plain", 'says "hello, you"', "two\nlines", "Füße; naïve")[i % 4],
            **{f"g{j}": float(np.float32(rng.normal())) for j in range(1, 5)},
            "size": float(np.float32(rng.normal())),
            "path": rng.normal(size=(1 + i % 4, 2)).round(3).tolist(),
        }
        for place, columns in enumerate((["photo"], ["call"], ["note"], ["g1", "g2", "g3", "g4"], ["size"], ["path"])):
            if (i + place) % 5 == 0:
                row |= dict.fromkeys(columns)
        out.append(row)
    return out


def quoted(cell, delimiter):
    text = (
        cell
        if isinstance(cell, str)
        else ""
        if cell is None
        else repr(cell)
        if isinstance(cell, float)
        else json.dumps(cell)
    )
    return f'"{text.replace(chr(34), chr(34) * 2)}"' if set(text) & {delimiter, '"', "\n"} else text


def as_csv(path, data, delimiter=",", newline="\n", before=""):
    names = list(data[0])
    lines = [names]
    for row in data:
        files = {"photo": "png", "call": "wav"}
        lines.append([f"{row['id'][1:]}.{files[n]}" if n in files and row[n] else row[n] for n in names])
    text = before + newline.join(delimiter.join(quoted(cell, delimiter) for cell in line) for line in lines) + newline
    path.write_bytes(text.encode())
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(folder with the files, rows, manifest of the same rows as Parquet)"""
    folder = tmp_path_factory.mktemp("csv")
    data = rows(folder)
    pq.write_table(pa.Table.from_pylist(data), folder / "rows.parquet")
    return folder, data, prepare(folder / "rows.parquet", folder / "out", **OPTIONS)


FLAVOURS = {
    "plain": {},
    "semicolons, a byte order mark and Windows's line ends": {"delimiter": ";", "newline": "\r\n", "before": "\ufeff"},
    "tabs": {"delimiter": "\t"},
}


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_a_csv_gives_the_shards_of_the_same_rows_as_parquet(made, tmp_path, flavour):
    folder, data, expected = made
    path = as_csv(folder / f"{len(flavour)}.csv", data, **FLAVOURS[flavour])
    found = prepare(path, tmp_path / "out", **OPTIONS)
    assert found.splits == expected.splits  # the sha256 of every shard
    assert found.fitted == expected.fitted
    assert found.modalities == expected.modalities
    assert found.sample_key == "id"


def test_a_parquet_file_may_name_files_too(made, tmp_path):
    folder, data, expected = made
    named = [
        row | {"photo": row["photo"] and f"{row['id'][1:]}.png", "call": row["call"] and f"{row['id'][1:]}.wav"}
        for row in data
    ]
    pq.write_table(pa.Table.from_pylist(named), folder / "named.parquet")
    assert prepare(folder / "named.parquet", tmp_path / "out", **OPTIONS).splits == expected.splits


def test_a_folder_with_one_csv_is_its_table(made, tmp_path):
    _, data, _ = made
    few = [{k: row[k] for k in ("id", "kind", "note", "size")} for row in data if row["note"] or row["size"]]
    (tmp_path / "mine").mkdir()
    as_csv(tmp_path / "mine" / "any.csv", few)
    options = OPTIONS | {"modalities": [m for m in MODALITIES if m.name in ("note", "size")]}
    assert prepare(tmp_path / "mine", tmp_path / "out", **options).splits["train"].rows > 20
    as_csv(tmp_path / "mine" / "other.csv", few)
    with pytest.raises(EquipoiseError, match=r"mine holds more than one table \(any.csv, other.csv\): name the file"):
        open_table(tmp_path / "mine")


def test_a_group_of_columns_is_one_array_in_their_order(made):
    folder, data, _ = made
    reader = Reader(folder / "out")
    ids = reader.source_ids("train", 0)
    columns = reader.read_chunk("train", 0)
    by_id = {row["id"]: row for row in data}
    for at, source_id in enumerate(ids):
        row = by_id[source_id]
        expected = np.zeros((2, 2)) if row["g1"] is None else [[row["g1"], row["g2"]], [row["g3"], row["g4"]]]
        np.testing.assert_array_equal(columns["grid"][at], np.asarray(expected, np.float32))


def test_words_for_no_number_are_missing_and_words_for_truth_are_numbers(tmp_path):
    path = tmp_path / "t.csv"
    head = "id,target,x,y\n"
    cells = ["NA,1", "nan,0", "n/a,1", "null,0", " ,1", "True,1", "false,0", "1e3,1", " 2.5 ,0", "-0,1"]
    path.write_text(head + "".join(f"{i},{'ab'[i % 2]},{cells[i % 10]}\n" for i in range(100)))
    x = [Modality(name="x", shape=(1,)), Modality(name="y", columns=("y",))]
    prepare(path, tmp_path / "out", sample_key="id", modalities=x, fractions=(0.8, 0.1, 0.1))
    reader = Reader(tmp_path / "out")
    found = reader.read_chunk("train", 0)
    expected = dict(enumerate([None] * 5 + [1.0, 0.0, 1000.0, 2.5, 0.0]))
    for at, source_id in enumerate(reader.source_ids("train", 0)):
        want = expected[int(source_id) % 10]
        assert found["present"][at].tolist() == [want is not None, True]
        assert found["x"][at] == [want or 0.0]


def test_rows_without_an_id_are_numbered(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("target,x\n" + "".join(f"{'ab'[i % 2]},{i}\n" for i in range(60)))
    manifest = prepare(path, tmp_path / "out", sample_key=None, modalities=[Modality(name="x", shape=(1,))])
    assert manifest.sample_key is None
    reader = Reader(tmp_path / "out")
    for source_id, x in zip(reader.source_ids("train", 0), reader.read_chunk("train", 0)["x"], strict=True):
        assert source_id == f"row-{int(x[0])}"


def test_a_long_csv_is_never_held(tmp_path):
    path = tmp_path / "t.csv"
    with path.open("w") as file:
        file.write("id,x\n")
        file.writelines(f"{i},{'y' * 500}\n" for i in range(20_000))  # 10 MB
    tracemalloc.start()
    assert sum(1 for _ in CsvTable(path).rows(["id", "x"])) == 20_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000


# data.yaml

YAML = """
source: {source}
sample_key: id
target: kind
modalities:
  note: {{kind: text, max_length: 4}}
  grid: {{columns: ["g[1-4]"], shape: [2, 2]}}
"""


def test_a_data_yaml_is_the_call_that_it_stands_for(made, tmp_path):
    folder, data, _ = made
    few = [row for row in data if row["note"] or row["g1"]]
    as_csv(folder / "few.csv", few)
    (folder / "deep").mkdir()
    path = folder / "deep" / "data.yaml"
    path.write_text(YAML.format(source="../few.csv") + "seed: 3\nchunk_rows: 16\nshard_rows: 32\n")
    options = OPTIONS | {"modalities": [m for m in MODALITIES if m.name in ("note", "grid")], "seed": 3}
    assert prepare_yaml(path, tmp_path / "a") == prepare(folder / "few.csv", tmp_path / "b", **options)
    again = prepare_yaml(path, tmp_path / "a", overwrite=True, seed=4, fractions=[0.5, 0.25, 0.25])
    assert again == Manifest.load(tmp_path / "a")
    assert again.seed == 4
    assert again.splits["train"].rows < Manifest.load(tmp_path / "b").splits["train"].rows


YAMLS = {
    "key": ("on_bat: skip", r"Unknown key 'on_bat' in .*data.yaml: did you mean 'on_bad'\?"),
    "choice": ("on_bad: never", r"Key 'on_bad' in .*: Input should be 'stop' or 'skip', found 'never'"),
    "option": ("modalities: {a: {knd: text}}", r"Unknown option of Modality 'a': 'knd': did you mean 'kind'"),
    "modality kind": ("modalities: {a: {kind: picture}}", r"Option 'kind' of Modality 'a': Input should be 'array'"),
    "no mapping": ("modalities: [a, b]", r"Key 'modalities' in .*: Input should be a valid dictionary"),
    "group of texts": ("modalities: {a: {kind: text, columns: [x, y]}}", r"a modality of kind text has one column"),
    "shape of a group": ("modalities: {a: {columns: [x, y], shape: [3]}}", r"2 columns, which do not fill the shape \(3,\)"),
    "column twice": ("modalities: {a: {columns: [x, x]}}", r"names the column 'x' twice"),
    "column and columns": ("modalities: {a: {columns: [x, y], column: z}}", r"give no column beside them"),
    "pattern": ("modalities: {a: {columns: [z*]}}", r"Modality 'a': no column of .*t.csv matches 'z\*': it has id, kind, x, y"),
    "name inside": ("modalities: {a: {name: b}}", r"its name stands before the colon"),
    "labels that YAML takes for truth": (
        "task_labels: [no, yes]",
        r"Key 'task_labels.0' in .*: Input should be a valid string, found False",
    ),
    "not YAML": ("a: [", r"data.yaml is not YAML"),
}  # fmt: skip


@pytest.mark.parametrize("case", YAMLS)
def test_what_is_wrong_in_a_data_yaml_is_named(tmp_path, case):
    line, sentence = YAMLS[case]
    (tmp_path / "t.csv").write_text("id,kind,x,y\n1,a,2,3\n")
    start = {"source": "source: t.csv\n", "modalities": "modalities: {x: {shape: [1]}}\n"}
    start.pop(line.partition(":")[0], None)
    (tmp_path / "data.yaml").write_text("".join(start.values()) + line + "\n")
    with pytest.raises(EquipoiseError, match=sentence) as caught:
        prepare_yaml(tmp_path / "data.yaml", tmp_path / "out")
    assert "\n" not in str(caught.value)


def test_a_data_yaml_that_is_not_there_or_lacks_a_key(tmp_path):
    with pytest.raises(EquipoiseError, match=r"No file at .*data.yaml: `equipoise init YOUR.csv` writes a data.yaml"):
        prepare_yaml(tmp_path / "data.yaml", tmp_path / "out")
    (tmp_path / "data.yaml").write_text("source: t.csv\n")
    with pytest.raises(EquipoiseError, match=r"data.yaml gives no 'modalities': add `modalities: ...`"):
        prepare_yaml(tmp_path / "data.yaml", tmp_path / "out")
    (tmp_path / "data.yaml").write_text("- source\n")
    with pytest.raises(EquipoiseError, match=r"must hold `key: value` lines, such as `source: my.csv`"):
        prepare_yaml(tmp_path / "data.yaml", tmp_path / "out")


def test_a_long_list_in_a_cell_is_read_and_a_deep_one_is_a_bad_row(tmp_path):
    values = np.arange(3 * 64 * 64) / 3
    lists = [json.dumps(values.tolist())] * 30
    assert len(lists[0]) > 131_072, "what csv takes by itself"
    lists[7] = "[" * 100_000
    table = tmp_path / "wide.csv"
    lines = [f'r{i},{"ab"[i % 2]},"{cell}"' for i, cell in enumerate(lists)]
    table.write_text("\n".join(["source_id,target,grid", *lines]))
    grid = Modality(name="grid", shape=(3, 64, 64))
    with pytest.raises(EquipoiseError, match=r"(?s)'r7'.*modality 'grid' holds .*which is no JSON list"):
        prepare(table, tmp_path / "stopped", modalities=[grid])
    manifest = prepare(table, tmp_path / "out", modalities=[grid], on_bad="skip")
    assert [row.source_id for row in manifest.skipped] == ["r7"]
    read = Reader(tmp_path / "out").read("train", [0])["grid"]
    np.testing.assert_allclose(read.reshape(-1), values, rtol=1e-6)
