"""New rows through the best model, and the best model as a folder of its own."""

import csv
import io
import json
import os
import shutil
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from light_runs import light_run
from PIL import Image
from rich.console import Console

import equipoise
from equipoise import EquipoiseError, Run
from equipoise.datasets.prepare import prepare
from equipoise.datasets.reading import Reader
from equipoise.models import to_batch
from equipoise.models.modality import Modality
from equipoise.pipelines.export import export
from equipoise.pipelines.predict import predict
from equipoise.pipelines.trained import from_run
from equipoise.valuation import values_of

REPO = Path(equipoise.__file__).parents[1]
KINDS = ("cat", "dog", "hen")
MODALITIES = [
    Modality(name="photo", kind="image", shape=(3, 6, 6), transform="standardize"),
    Modality(name="note", kind="text", max_length=4),
    Modality(name="walk", columns=("step_x", "step_y", "step_z"), transform="standardize"),
    Modality(name="call", kind="sequence", shape=(), max_length=5),
]


def write_table(folder, n=240, seed=0):
    """A csv of n pets with every kind of cell, and the pictures that it names; any modality may lack, never all."""
    rng = np.random.default_rng(seed)
    (folder / "photos").mkdir(parents=True)
    with (folder / "pets.csv").open("w", newline="") as file:
        out = csv.writer(file)
        out.writerow(["id", "photo", "note", "step_x", "step_y", "step_z", "call", "kind"])
        for i in range(n):
            k = i % 3
            pixels = rng.integers(0, 120, (6, 6, 3)) + 50 * (k == 0)
            Image.fromarray(pixels.astype(np.uint8)).save(folder / "photos" / f"{i}.png")
            steps = [f"{v:.4f}" for v in rng.normal(k, 2, 3)]
            note = ("it purrs", "it barks, loud", 'it says "cluck"')[k if rng.random() < 0.7 else i % 2]
            call = json.dumps(rng.normal(k, 1, 1 + i % 7).round(3).tolist())
            lacks = rng.random(4) < 0.25
            lacks[i % 4] = False
            cells = [f"photos/{i}.png", note, *steps, call]
            groups = [lacks[0], lacks[1], *[lacks[2]] * 3, lacks[3]]
            shown = ["" if lack else cell for cell, lack in zip(cells, groups, strict=True)]
            out.writerow([f"pet-{i}", *shown, KINDS[k]])
    return folder / "pets.csv"


@pytest.fixture(scope="module")
def pets(tmp_path_factory):
    """(csv, run): a short training on a csv whose prepared data set is gone since."""
    folder = tmp_path_factory.mktemp("pets")
    table = write_table(folder)
    prepare(table, folder / "data", modalities=MODALITIES, sample_key="id", target="kind", chunk_rows=32, shard_rows=64)
    run = light_run(folder / "run", folder / "data", max_epochs=3, batch_size=32, optimizer={"lr": 0.01})
    # What the run's own sweep found, before the data goes.
    run.result("test")
    table_of_test = run.values("test")
    Path(folder / "data").rename(folder / "kept")
    return table, Run.open(folder / "run"), table_of_test, folder / "kept"


def only(table, ids, out):
    frame = pd.read_csv(table, dtype=str, keep_default_na=False)
    frame[frame["id"].isin(ids)].to_csv(out, index=False)
    return out


def test_predictions_are_those_of_the_run_s_own_test_sweep(pets, tmp_path):
    table, run, swept, kept = pets
    out = tmp_path / "out.csv"
    console = Console(file=io.StringIO())
    some = only(table, swept["source_id"].to_pylist(), table.parent / "test_rows.csv")
    assert predict(run.path, some, out, console) == swept.num_rows > 20
    found = pd.read_csv(out, keep_default_na=False).set_index("source_id").loc[swept["source_id"].to_pylist()]
    truth = pd.read_csv(table).set_index("id")["kind"]
    right = values_of(swept).score[:, -1]  # of the coalition of all
    assert (found["predicted"].to_numpy() == truth[found.index].to_numpy()).tolist() == right.tolist()
    assert 0.4 < right.mean() < 1
    # And the model's own logits on the rows as the prepared data set has them, wrong ones too.
    reader = Reader(kept)
    columns = reader.read("test", np.arange(swept.num_rows))
    names = run.own_manifest.names
    batch = to_batch({**columns, "copy": np.zeros(swept.num_rows, np.int16)}, names)
    with torch.no_grad():
        logits = run.best_model()(batch["inputs"], batch["present"]).logits
    labels = run.own_manifest.task.labels
    assert found["predicted"].tolist() == [labels[k] for k in logits.argmax(1)]
    chances = found[[f"probability_{label}" for label in labels]].to_numpy()
    np.testing.assert_allclose(chances, logits.softmax(1).numpy(), rtol=1e-4, atol=1e-6)
    shown = ["+".join(n for n, here in zip(names, row, strict=True) if here) for row in columns["present"]]
    assert found["present"].tolist() == shown


def test_parquet_in_and_out_and_an_exported_folder_say_the_same(pets, tmp_path):
    table, run, *_ = pets
    frame = pd.read_csv(table)
    frame["call"] = [json.loads(c) if isinstance(c, str) else None for c in frame["call"]]
    pq.write_table(pa.Table.from_pandas(frame, preserve_index=False), table.parent / "pets.parquet")
    console = Console(file=io.StringIO())
    predict(run.path, table, tmp_path / "a.csv", console)
    predict(run.path, table.parent / "pets.parquet", tmp_path / "b.parquet", console)
    exported = export(run, tmp_path / "exported")
    predict(exported, table, tmp_path / "c.csv", console)
    assert (tmp_path / "a.csv").read_text() == (tmp_path / "c.csv").read_text()
    a, b = pd.read_csv(tmp_path / "a.csv"), pd.read_parquet(tmp_path / "b.parquet")
    assert a["predicted"].tolist() == b["predicted"].tolist()
    assert a["source_id"].tolist() == frame["id"].tolist()  # in the order of the rows
    np.testing.assert_array_equal(a["probability_hen"].astype(np.float32), b["probability_hen"])


def test_a_column_that_is_not_there_is_a_modality_that_is_absent(pets, tmp_path):
    table, run, *_ = pets
    frame = pd.read_csv(table, dtype=str, keep_default_na=False)
    frame.assign(photo="", call="").query("note != '' or step_x != ''").to_csv(tmp_path / "empty.csv", index=False)
    frame.query("note != '' or step_x != ''")[["step_x", "step_y", "step_z", "note"]].to_csv(
        tmp_path / "few.csv", index=False
    )
    told = io.StringIO()
    n = predict(run.path, tmp_path / "few.csv", tmp_path / "few.out.csv", Console(file=told, width=200))
    assert "no column 'photo' in few.csv: modality 'photo' counts as absent" in told.getvalue()
    assert "no column 'id' in few.csv: rows are numbered" in told.getvalue()
    predict(run.path, tmp_path / "empty.csv", tmp_path / "empty.out.csv", Console(file=told))
    few, empty = pd.read_csv(tmp_path / "few.out.csv"), pd.read_csv(tmp_path / "empty.out.csv")
    assert few["source_id"].tolist() == [f"row-{i}" for i in range(n)]
    assert few.drop(columns="source_id").equals(empty.drop(columns="source_id"))
    assert set(few["present"]) == {"note", "walk", "note+walk"}


def test_rows_that_cannot_be_used_are_listed_or_left_out(pets, tmp_path):
    table, run, *_ = pets
    lines = table.read_text().splitlines()
    lines[1] = "pet-0,,,,,,,"
    lines[4] = "pet-3,,purr,1,2,,,"
    lines[5] = "pet-4,photos/none.png,,,,,,"
    bad = table.parent / "bad.csv"
    bad.write_text("\n".join(lines))
    out = tmp_path / "out.csv"
    with pytest.raises(EquipoiseError) as caught:
        predict(run.path, bad, out)
    head, *listed = str(caught.value).splitlines()
    assert head == "3 of 240 rows cannot be used: mend them, or leave them out with on_bad=skip."
    assert [line.split("'")[1] for line in listed] == ["pet-0", "pet-3", "pet-4"]
    assert "no modality is present" in listed[0]
    assert not list(tmp_path.iterdir())
    told = io.StringIO()
    assert predict(run.path, bad, out, Console(file=told, width=200), on_bad="skip") == 237
    assert "3 of 240 rows left out" in told.getvalue()
    assert len(pd.read_csv(out)) == 237


def test_memory_does_not_grow_with_the_rows(pets, tmp_path):
    _, run, *_ = pets
    trained = from_run(run)  # what is loaded once
    assert trained.labels == KINDS
    peaks = []
    for n in (2_000, 8_000):
        path = tmp_path / f"{n}.csv"
        path.write_text(
            "id,note,step_x,step_y,step_z\n" + "".join(f"r{i},it purrs {'x' * 200},1,2,3\n" for i in range(n))
        )
        tracemalloc.start()
        predict(run.path, path, tmp_path / "out.csv", Console(file=io.StringIO()))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    # The larger file is 1.4 MB more than the smaller one; a held file, or held results, would show.
    assert peaks[1] < peaks[0] + 300_000


CASES = {
    "no run": (
        lambda t, r: predict(t.parent, t, "x.csv"),
        r"holds neither a run \(config.yaml\) nor an exported model",
    ),
    "suffix": (lambda t, r: predict(r.path, t, "x.xlsx"), r"x.xlsx must end in .csv or .parquet"),
    "nowhere": (lambda t, r: predict(r.path, "nope.csv", "x.csv"), r"No csv, Parquet file or folder at nope.csv"),
    "unwritable": (
        lambda t, r: predict(r.path, t, t / "below" / "x.csv", Console(file=io.StringIO())),
        r"Cannot write .*x.csv \(Not a directory\): name another file with --out",
    ),
    "choice": (
        lambda t, r: predict(r.path, t, "x.csv", on_bad="skp"),
        r"Unknown choice for on_bad 'skp': did you mean 'skip'",
    ),
    "export onto": (lambda t, r: export(r, t.parent), r"is there already and not empty: name another folder"),
    "export below a file": (lambda t, r: export(r, t / "x"), r"Cannot write the folder .*x \(Not a directory\)"),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_wrong_is_said(pets, tmp_path, monkeypatch, case):
    table, run, *_ = pets
    monkeypatch.chdir(tmp_path)
    what, sentence = CASES[case]
    with pytest.raises(EquipoiseError, match=sentence):
        what(table, run)
    assert not list(tmp_path.iterdir())


def test_columns_that_do_not_fit_the_model_are_named(pets, tmp_path):
    _, run, *_ = pets
    rows = tmp_path / "rows.csv"
    rows.write_text("id,picture\na,b.png\n")
    with pytest.raises(
        EquipoiseError, match=r"has none of the columns photo, note, .*call that .*: it has id, picture"
    ):
        predict(run.path, rows, tmp_path / "out.csv")
    rows.write_text("id,note,step_x,step_z\na,b,1,2\n")
    with pytest.raises(EquipoiseError, match=r"has no column 'step_y', one of the 3 that make the modality 'walk'"):
        predict(run.path, rows, tmp_path / "out.csv")
    rows.write_text("id,note\n")
    with pytest.raises(EquipoiseError, match=r"rows.csv holds no rows"):
        predict(run.path, rows, tmp_path / "out.csv")


# Export

ALONE = """
import json, sys
import equipoise, torch
trained = equipoise.load_exported(sys.argv[1])
rows = json.load(open(sys.argv[2]))
batch = trained.encode(rows, sys.argv[3])
torch.save(trained.logits(batch), sys.argv[4])
assert trained.predict(rows, sys.argv[3])[0].keys() == set(trained.labels)
print(json.dumps([name for name in sys.modules if name.split(".")[0] == "ray"]))
"""


def test_an_exported_model_is_bit_equal_and_needs_no_ray(pets, tmp_path):
    table, run, *_ = pets
    folder = export(run, tmp_path / "exported")
    assert sorted(p.name for p in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    rows = [{k: v or None for k, v in row.items()} for row in csv.DictReader(table.open())][:50]
    for row in rows:
        row["call"] = row["call"] and json.loads(row["call"])
        row |= {k: row[k] and float(row[k]) for k in ("step_x", "step_y", "step_z")}
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    arguments = [folder, tmp_path / "rows.json", table.parent, tmp_path / "logits.pt"]
    env = {**os.environ, "PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", ALONE, *map(str, arguments)], cwd=tmp_path, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == []
    ours = from_run(run)
    batch = ours.encode(rows, table.parent)
    with torch.no_grad():
        expected = run.best_model()(batch["inputs"], batch["present"]).logits
    assert torch.equal(torch.load(tmp_path / "logits.pt"), expected)
    config = json.loads((folder / "config.json").read_text())
    assert config["data"]["hash"] == run.own_manifest.hash
    assert config["fitted"].keys() == {"photo", "note", "walk", "call"}


def damaged(folder, name, edit):
    path = folder / name
    path.write_bytes(edit(path.read_bytes()))


EXPORTS = {
    "weights cut": (
        lambda f: damaged(f, "model.safetensors", lambda b: b[:-10]),
        r"model.safetensors is missing or damaged",
    ),
    "weights gone": (lambda f: (f / "model.safetensors").unlink(), r"model.safetensors is missing or damaged"),
    "other weights": (
        lambda f: damaged(f, "model.safetensors", lambda b: b[:-1] + bytes([b[-1] ^ 1])),
        r"does not hold the weights that config.json was written for",
    ),
    "config cut": (lambda f: damaged(f, "config.json", lambda b: b[:100]), r"config.json cannot be read"),
    "config of another": (
        lambda f: (f / "config.json").write_text('{"model_type": "bert"}'),
        r"has format version None",
    ),
    "config edited": (
        lambda f: damaged(f, "config.json", lambda b: b.replace(b'"kind": "late"', b'"kind": "later"')),
        r"config.json is not as `export` wrote it, at model.kind",
    ),
    "config gone": (lambda f: (f / "config.json").unlink(), r"holds no exported model \(no config.json\)"),
}


@pytest.mark.parametrize("case", EXPORTS)
def test_a_damaged_export_is_refused(pets, tmp_path, case):
    spoil, sentence = EXPORTS[case]
    folder = export(pets[1], tmp_path / "exported")
    spoil(folder)
    with pytest.raises(EquipoiseError, match=sentence):
        equipoise.load_exported(folder)


def test_a_run_without_a_best_checkpoint_says_so(pets, tmp_path):
    shutil.copytree(pets[1].path, tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / "best.json").unlink()
    with pytest.raises(EquipoiseError, match=r"has no validated checkpoint yet: let it finish an epoch"):
        export(Run.open(tmp_path / "run"), tmp_path / "exported")


def test_predictions_never_take_the_place_of_the_rows(pets):
    table, run, *_ = pets
    before = table.read_bytes()
    with pytest.raises(EquipoiseError, match=r"pets\.csv is the table of the rows themselves: name another file"):
        predict(run.path, table, table)
    assert table.read_bytes() == before
