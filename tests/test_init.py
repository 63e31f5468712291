"""`equipoise init`: what it takes the columns of a table for, and starter files that work as they are."""

import csv
import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
import yaml
from PIL import Image
from rich.console import Console

from equipoise.datasets.data_yaml import prepare_yaml
from equipoise.datasets.guessing import guess
from equipoise.models.errors import EquipoiseError
from equipoise.pipelines.config import load_config
from equipoise.pipelines.init import init
from equipoise.pipelines.light import train_light

RNG = np.random.default_rng(0)


def write(path, columns):
    """A csv of {name: cells}; None is an empty cell."""
    with path.open("w", newline="") as file:
        out = csv.writer(file)
        out.writerow(columns)
        out.writerows(["" if cell is None else cell for cell in row] for row in zip(*columns.values(), strict=True))
    return path


def numbers(n=60):
    return RNG.normal(size=n).round(4).tolist()


def labels(n=60):
    return [("jazz", "rock", "folk")[i % 3] for i in range(n)]


def ids(n=60):
    return [f"c{i}" for i in range(n)]


def texts(n=60):
    return [" ".join(["oh", "yes"] * (1 + i % 5)) for i in range(n)]


CASES = {
    "groups of numbers by their names": (
        {
            "id": ids(), "label": labels(), "acc_x": numbers(), "acc_y": numbers(), "acc_z": numbers(),
            **{f"mfcc{i}": numbers() for i in range(1, 13)}, "tempo": numbers(), "loudness": numbers(),
        },
        {"target": "label", "sample_key": "id", "group": None, "split": None},
        {"acc": ["acc_x", "acc_y", "acc_z"], "mfcc": ["mfcc*"], "numbers": ["tempo", "loudness"]},
    ),
    "pixels by row and column, and words": (
        {
            "id": ids(), "label": labels(), "word": ["one", "two", "six"] * 20,
            **{f"px_{r}_{c}": numbers() for r in range(3) for c in range(3)}},
        {"target": "label"},
        {"word": {"column": "word", "kind": "text", "max_length": 1}, "px": ["px_*"]},
    ),
    "numbers that lack in other rows are no group": (
        {"id": ids(), "label": labels(), "a": [None, *numbers(59)], "b": numbers(), "c": numbers()},
        {"target": "label"},
        {"numbers": ["b", "c"], "a": ["a"]},
    ),
    "a split that is fixed, and a name that torch takes": (
        {
            "clip": ids(), "artist_id": [f"a{i // 3}" for i in range(60)],
            "split": ["train"] * 30 + ["validation"] * 15 + ["test"] * 15,
            "type": texts(), "x": numbers(), "species": labels(),
        },
        {"target": "species", "sample_key": "clip", "group": None, "split": "split"},
        {"type_": {"column": "type", "kind": "text", "max_length": 10}, "x": ["x"]},
    ),
    "rows that belong together": (
        {"clip": ids(), "artist_id": [f"a{i // 2}" for i in range(60)], "x": numbers(), "label": labels()},
        {"target": "label", "sample_key": "clip", "group": "artist_id"},
        {"x": ["x"]},
    ),
    "no id, whole numbers as classes, columns that tell nothing": (
        {"grade": [i % 4 for i in range(60)], "same": ["x"] * 60, "none": [None] * 60, "x": numbers(), "said": texts()},
        {"target": "grade", "sample_key": None},
        {"said": {"column": "said", "kind": "text", "max_length": 10}, "x": ["x"]},
    ),
    "lists": (
        {
            "id": ids(), "label": labels(), "face": [json.dumps(numbers(6)) for _ in range(60)],
            "walk": [json.dumps(RNG.normal(size=(1 + i % 5, 2)).tolist()) for i in range(60)],
        },
        {"target": "label"},
        {
            "walk": {"column": "walk", "kind": "sequence", "shape": [2], "max_length": 5, "transform": "standardize"},
            "face": {"column": "face", "kind": "array", "shape": [6], "transform": "standardize"},
        },
    ),
    "a split of other words is not used": (
        {"id": ids(), "split": ["dev", "eval"] * 30, "x": numbers(), "label": labels()},
        {"target": "label", "split": None},
        {"x": ["x"]},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_columns_are_taken_for_what_they_are_and_the_files_work(tmp_path, case):
    columns, roles, modalities = CASES[case]
    path = write(tmp_path / "mine.csv", columns)
    found = guess(path)
    assert {role: getattr(found, role) for role in roles} == roles
    assert found.modalities == {
        name: {"columns": given, "transform": "standardize"} if isinstance(given, list) else given
        for name, given in modalities.items()
    }
    # Every column is accounted for in the table.
    told = " ".join(columns for columns, _, _ in found.why)
    assert all(name in told or "..." in told for name in columns)
    init(path, tmp_path / "start", Console(file=io.StringIO()))
    manifest = prepare_yaml(tmp_path / "start" / "data.yaml", tmp_path / "data")
    assert manifest.names == tuple(found.modalities)


TASKS = {
    "floats": ("target", lambda i: i / 30 - 3, {"kind": "regression", "tolerance": 1}, "mae"),
    "whole numbers of many values": ("target", lambda i: 25 + i, {"kind": "regression", "tolerance": 30}, "mae"),
    "small numbers": ("y", lambda i: i * 1e-6, {"kind": "regression", "tolerance": 3e-05}, "mae"),
    "names joined by ;": (
        "labels", lambda i: ("sad", "sad; slow", "loud;happy;slow", "loud")[i % 4], {"kind": "multilabel"}, "macro_f1",
    ),
    "whole numbers that count classes": ("target", lambda i: i % 25, None, "accuracy"),
    "few whole numbers": ("target", lambda i: (3, 7, 12)[i % 3], None, "accuracy"),
}  # fmt: skip


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
@pytest.mark.parametrize("case", TASKS)
def test_the_kind_of_task_is_guessed_and_the_files_prepare_and_fit(tmp_path, monkeypatch, case, suffix):
    name, value, task, metric = TASKS[case]
    if (case, suffix) == ("few whole numbers", "parquet"):
        pytest.skip("class indices in Parquet count from 0")
    n = 300
    columns = {"id": ids(n), name: [value(i) for i in range(n)], "note": texts(n), "x": numbers(n)}
    if suffix == "csv":
        write(tmp_path / "mine.csv", columns)
    else:
        pq.write_table(pa.table(columns), tmp_path / "mine.parquet")
    monkeypatch.chdir(tmp_path)
    init(f"mine.{suffix}", ".", Console(file=io.StringIO(), width=200))
    text = (tmp_path / "data.yaml").read_text()
    given = yaml.safe_load(text)
    assert given["target"] == name
    assert given.get("task") == task
    assert given.get("task_labels") == (["happy", "loud", "sad", "slow"] if metric == "macro_f1" else None)
    assert ("a tenth of the range, rounded" in text) == (metric == "mae")
    told = f"validation {metric}" + (" (lower is better)" if metric == "mae" else "")
    assert f"# epochs without a better {told}\n" in (tmp_path / "fit.yaml").read_text()
    manifest = prepare_yaml("data.yaml", "data")
    assert manifest.task.kind == (task or {"kind": "classification"})["kind"]
    epochs = train_light(load_config("fit.yaml", {"max_epochs": 2})).epochs
    assert [row["metric"] for row in epochs] == [metric] * 2


def test_a_column_named_as_the_target_may_be_of_any_kind(tmp_path):
    columns = {"id": ids(), "price": numbers(), "mood": ["sad;slow", "loud", "loud;slow", "sad"] * 15, "x": numbers()}
    path = write(tmp_path / "mine.csv", {**columns, "label": labels(), "y": numbers()})
    assert (guess(path).target, guess(path).task) == ("label", None)
    assert guess(path, "y").task["kind"] == "regression"
    assert guess(path, "mood").task_labels == ["loud", "sad", "slow"]
    told = io.StringIO()
    init(path, tmp_path / "start", Console(file=told, width=200), "price")
    low, high = min(columns["price"]), max(columns["price"])
    assert f"you said so; numbers of {low:g} to {high:g}: a regression" in told.getvalue()
    # A semicolon alone makes no labels: these are sentences.
    write(path, {"id": ids(), "x": numbers(), "label": [f"it is so; {i} times" for i in range(60)]})
    assert guess(path, "label").task is None


def test_truth_values_are_no_numbers_to_regress(tmp_path):
    pq.write_table(pa.table({"id": ids(), "x": numbers(), "target": [True, False] * 30}), tmp_path / "mine.parquet")
    assert guess(tmp_path / "mine.parquet", "target").task is None


def test_rows_without_a_target_are_counted(tmp_path):
    path = write(tmp_path / "mine.csv", {"id": ids(), "x": numbers(), "target": [None, *numbers(59)]})
    init(path, tmp_path / "start", Console(file=io.StringIO()))
    assert "1 of 60 rows have none and cannot be used" in (tmp_path / "start" / "data.yaml").read_text()


def files_of(folder, n=60):
    (folder / "files").mkdir()
    for i in range(n):
        Image.fromarray(RNG.integers(0, 256, (6, 8, 3), dtype=np.uint8)).save(folder / "files" / f"{i}.jpg")
        soundfile.write(folder / "files" / f"{i}.wav", RNG.normal(0, 0.1, 800 + 10 * i), 8000)


def test_the_whole_newcomer_path_without_ray(tmp_path, monkeypatch):
    files_of(tmp_path)
    columns = {"photo": [f"files/{i}.jpg" for i in range(60)], "call": [f"files/{i}.wav" for i in range(60)]}
    path = write(tmp_path / "mine.csv", {**columns, "note": texts(), "species": labels(), "id": ids()})
    monkeypatch.chdir(tmp_path)
    told = io.StringIO()
    init("mine.csv", ".", Console(file=told, width=120))
    given = yaml.safe_load((tmp_path / "data.yaml").read_text())
    assert given["source"] == path.name
    assert given["modalities"]["photo"] == {"column": "photo", "kind": "image", "shape": [3, 6, 8]}
    assert given["modalities"]["call"] == {
        "column": "call", "kind": "audio", "shape": [40], "max_length": 13, "transform": "standardize",
    }  # fmt: skip
    commands = [line.strip() for line in told.getvalue().splitlines() if line.startswith("  equipoise")]
    assert commands == [
        "equipoise prepare data.yaml --out data",
        "equipoise fit fit.yaml",
        "equipoise predict run NEW.csv --out predictions.csv",
    ]
    prepare_yaml("data.yaml", "data")
    config = load_config("fit.yaml", {"max_epochs": 2})
    assert (config.data, config.out) == ("data", "run")
    assert len(train_light(config).epochs) == 2


def test_parquet_with_encoded_pictures(tmp_path):
    files_of(tmp_path)
    table = {
        "id": ids(),
        "image": [(tmp_path / "files" / f"{i}.jpg").read_bytes() for i in range(60)],
        "wave": [RNG.normal(size=4).tolist() for _ in range(60)],
        "label": labels(),
    }
    pq.write_table(pa.table(table), tmp_path / "mine.parquet")
    init(tmp_path / "mine.parquet", tmp_path / "start", Console(file=io.StringIO()))
    manifest = prepare_yaml(tmp_path / "start" / "data.yaml", tmp_path / "data")
    assert [(m.name, m.kind, m.shape) for m in manifest.modalities] == [
        ("image", "image", (3, 6, 8)),
        ("wave", "array", (4,)),
    ]


def test_parquet_as_hugging_face_writes_it_and_files_that_are_not_read(tmp_path):
    import datasets

    files_of(tmp_path, 40)
    names = [str(tmp_path / "files" / f"{i}.jpg") for i in range(40)]
    made = datasets.Dataset.from_dict(
        {
            "image": names,
            "text": texts(40),
            "song": [f"{i}.mp3" for i in range(40)],
            "label": [i % 2 for i in range(40)],
        }
    )
    made.cast_column("image", datasets.Image()).to_parquet(tmp_path / "mine.parquet")
    init(tmp_path / "mine.parquet", tmp_path / "start", Console(file=io.StringIO()))
    assert ("song", "ignored", "names of files that are not read: make them PNG, JPEG, OGG, WAV or FLAC") in guess(
        tmp_path / "mine.parquet"
    ).why
    manifest = prepare_yaml(tmp_path / "start" / "data.yaml", tmp_path / "data")
    assert [(m.name, m.kind, m.shape) for m in manifest.modalities] == [
        ("image", "image", (3, 6, 8)),
        ("text", "text", ()),
    ]
    assert sum(split.rows for split in manifest.splits.values()) == 40


def test_nothing_is_overwritten(tmp_path):
    path = write(tmp_path / "mine.csv", {"id": ids(), "x": numbers(), "label": labels()})
    for name in ("data.yaml", "fit.yaml"):
        (tmp_path / name).write_text("precious")
        with pytest.raises(EquipoiseError, match=rf"{name} is there already: name another folder with --out"):
            init(path, tmp_path, Console(file=io.StringIO()))
        assert (tmp_path / name).read_text() == "precious"
        assert not (tmp_path / ("fit.yaml" if name == "data.yaml" else "data.yaml")).exists()
        (tmp_path / name).unlink()


def test_columns_with_strange_names_survive_yaml(tmp_path):
    names = {"yes": texts(), "null": numbers(), "a: b # c": numbers(), "été": texts(), "1": numbers()}
    path = write(tmp_path / "mine.csv", {"id": ids(), **names, "class": labels()})
    init(path, tmp_path / "start", Console(file=io.StringIO()))
    manifest = prepare_yaml(tmp_path / "start" / "data.yaml", tmp_path / "data")
    assert sorted(c for m in manifest.modalities for c in m.sources) == sorted(names)


def test_a_long_table_is_looked_at_in_part_and_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr("equipoise.datasets.guessing.ROWS", 30)
    path = write(tmp_path / "mine.csv", {"id": ids(), "x": numbers(), "label": labels()})
    told = io.StringIO()
    init(path, tmp_path / "start", Console(file=told, width=120))
    assert "the first 30 rows looked at" in told.getvalue()
    assert "from the first 30 rows" in (tmp_path / "start" / "data.yaml").read_text()


TWO = {"id": ids(), "label": labels()}
WRONG = {
    "nothing to predict": (
        {"id": ids(), "x": numbers()},
        None,
        r"No column of .* looks like a target .*--target COLUMN. There are id, x",
    ),
    "target misspelt": (TWO, "lable", r"Unknown column of .*mine.csv 'lable': did you mean 'label'\?"),
    "target of one class": (
        {**TWO, "label": ["a"] * 60},
        "label",
        r"'label' of .* cannot be predicted: it holds text with 1 different",
    ),
    "nothing to predict from": (TWO, None, r"no column that could be a modality, beside the target 'label'"),
    "no rows": ({"id": [], "label": []}, None, r"mine.csv holds no rows"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_guessed_is_said(tmp_path, case):
    columns, target, sentence = WRONG[case]
    path = write(tmp_path / "mine.csv", columns)
    with pytest.raises(EquipoiseError, match=sentence):
        init(path, tmp_path / "start", Console(file=io.StringIO()), target)
    assert not (tmp_path / "start").exists()


def test_one_modality_is_warned_of_and_a_folder_below_a_file_is_refused(tmp_path):
    path = write(tmp_path / "mine.csv", {"id": ids(), "x": numbers(), "label": labels()})
    told = io.StringIO()
    init(path, tmp_path / "start", Console(file=told, width=200))
    assert "One modality only: it trains, but there is nothing to balance" in told.getvalue()
    with pytest.raises(EquipoiseError, match=r"Cannot write in .*mine.csv/start \(Not a directory\)"):
        init(path, path / "start", Console(file=io.StringIO()))
