"""Predictions of multi-label, regression and segmentation models: the model's own numbers, and the metrics of the run."""

import io
import json

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from rich.console import Console
from task_runs import KINDS, task_run

import equipoise
from equipoise import EquipoiseError
from equipoise.datasets.reading import Reader
from equipoise.models import to_batch
from equipoise.pipelines.export import export
from equipoise.pipelines.predict import predict
from equipoise.pipelines.trained import from_run

QUIET = Console(file=io.StringIO())


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """{kind: (run, raw rows, exported folder)}"""
    out = {}
    for kind in KINDS:
        folder = tmp_path_factory.mktemp(kind)
        run, rows = task_run(folder, kind)
        out[kind] = run, rows, export(run, folder / "exported")
    return out


def own(run, split="test"):
    """(source ids, logits, targets) of a split by one plain forward pass over the prepared data set."""
    reader = Reader(run.config.data)
    n = reader.manifest.splits[split].rows
    columns = reader.read(split, np.arange(n))
    ids = [i for chunk in range(reader.manifest.num_chunks(split)) for i in reader.source_ids(split, chunk)]
    batch = to_batch({**columns, "copy": np.zeros(n, np.int16)}, run.manifest.names)
    with torch.no_grad():
        return ids, run.best_model()(batch["inputs"], batch["present"]).logits.double().numpy(), columns["target"]


def predicted(made, kind, tmp_path):
    """The predictions of the exported folder for the rows of test, in the order of the prepared data set."""
    run, rows, exported = made[kind]
    predict(exported, rows, tmp_path / "out.parquet", QUIET)
    ids, logits, target = own(run)
    return run, pd.read_parquet(tmp_path / "out.parquet").set_index("source_id").loc[ids], logits, target


def test_labels_are_those_above_one_half(made, tmp_path):
    run, found, logits, target = predicted(made, "multilabel", tmp_path)
    labels = run.manifest.task.labels
    chances = 1 / (1 + np.exp(-logits))
    np.testing.assert_allclose(found[[f"probability_{name}" for name in labels]], chances, rtol=1e-4, atol=1e-6)
    names = [";".join(n for n, p in zip(labels, row, strict=True) if p > 0.5) for row in chances]
    assert found["predicted"].tolist() == names
    assert any(";" in row for row in names)
    said = np.array([[label in row.split(";") for label in labels] for row in found["predicted"]])
    matrix = run.matrix("test").iloc[0]
    assert (said == target).all(axis=1).mean() == pytest.approx(matrix["exact_match"], abs=1e-6)
    assert 0.3 < matrix["exact_match"] < 1


def test_numbers_are_in_the_units_of_the_target(made, tmp_path):
    run, found, logits, target = predicted(made, "regression", tmp_path)
    fitted = run.manifest.fitted["target"]
    np.testing.assert_allclose(found["predicted"], fitted["mean"][0] + fitted["deviation"][0] * logits[:, 0], rtol=1e-4)
    assert list(found) == ["predicted", "present"]
    off = np.abs(found["predicted"].to_numpy() - target[:, 0])
    matrix = run.matrix("test").iloc[0]
    assert off.mean() == pytest.approx(matrix["mae"], rel=1e-5)
    assert (off <= run.manifest.task.tolerance).mean() == pytest.approx(matrix["within"], abs=1e-6)


def test_masks_are_bytes_whose_shape_the_file_tells(made, tmp_path):
    run, found, logits, target = predicted(made, "segmentation", tmp_path)
    told = json.loads(pq.read_schema(tmp_path / "out.parquet").metadata[b"equipoise"])["mask"]
    assert (told["dtype"], told["regions"]) == ("uint8", ["WT", "TC", "ET"])
    masks = np.stack([np.frombuffer(mask, told["dtype"]).reshape(told["shape"]) for mask in found["mask"]])
    clear = np.abs(logits) > 1e-4
    np.testing.assert_array_equal(masks[clear], (logits > 0)[clear])
    dice, axes = [], (2, 3, 4)
    for r in range(3):
        both, either = (masks & target)[:, r].sum((1, 2, 3)), (masks + target)[:, r].sum((1, 2, 3))
        dice.append(np.where(either, 2 * both / np.maximum(either, 1), 1.0).mean())
    matrix = run.matrix("test").iloc[0]
    assert dice == pytest.approx([matrix[f"dice_{name}"] for name in ("wt", "tc", "et")], abs=1e-6)
    assert np.mean(dice) == pytest.approx(matrix["dice"], abs=1e-6)
    shares = found[[f"fraction_{name}" for name in told["regions"]]]
    np.testing.assert_allclose(shares, masks.mean(axis=axes), rtol=1e-6)
    assert 0 < masks.mean() < 0.5


@pytest.mark.parametrize("kind", KINDS)
def test_an_exported_model_predicts_as_its_run_does(made, kind, tmp_path):
    run, rows, exported = made[kind]
    predict(run.path, rows, tmp_path / "a.parquet", QUIET)
    predict(exported, rows, tmp_path / "b.parquet", QUIET)
    assert pq.read_table(tmp_path / "a.parquet").equals(pq.read_table(tmp_path / "b.parquet"), check_metadata=True)
    raw = pq.read_table(rows).slice(0, 5).to_pylist()
    raw[1][run.manifest.names[0]] = None
    trained = equipoise.load_exported(exported)
    batch = trained.encode(raw)
    assert batch["target"].shape == (5, *run.manifest.task.row_shape)
    logits = trained.logits(batch)
    assert torch.equal(logits, from_run(run).logits(from_run(run).encode(raw)))
    found = trained.predict(raw)
    read = trained.task.predict(logits)
    for i, row in enumerate(found):
        assert tuple(row) == trained.labels
        for k, value in enumerate(row.values()):
            if kind == "multilabel":
                assert (value > 0.5) == bool(read[i, k])
                assert value == pytest.approx(float(logits[i, k].sigmoid()))
            else:
                np.testing.assert_array_equal(value, read[i, k].numpy())


@pytest.mark.parametrize("kind", ["multilabel", "regression"])
def test_csv_and_parquet_hold_the_same(made, kind, tmp_path):
    run, rows, exported = made[kind]
    frame = pd.read_parquet(rows).drop(columns="target").head(40)
    for name in run.manifest.names:
        frame[name] = [json.dumps(np.array(cell.tolist()).tolist()) for cell in frame[name]]
    frame.loc[3, run.manifest.names[1]] = ""
    frame.to_csv(tmp_path / "rows.csv", index=False)
    predict(exported, tmp_path / "rows.csv", tmp_path / "a.csv", QUIET)
    predict(exported, tmp_path / "rows.csv", tmp_path / "b.parquet", QUIET)
    a = pd.read_csv(tmp_path / "a.csv", keep_default_na=False)
    b = pd.read_parquet(tmp_path / "b.parquet")
    assert list(a) == list(b)
    for name in b:
        assert a[name].astype(b[name].dtype).tolist() == b[name].tolist()
    assert a["present"].tolist()[2:4] == ["+".join(run.manifest.names), run.manifest.names[0]]


def test_several_numbers_have_a_column_each():
    from equipoise.datasets.task_spec import TaskSpec
    from equipoise.pipelines import predictions

    spec = TaskSpec(kind="regression", labels=("valence", "arousal"), tolerance=1.0)
    task = spec.build({"mean": [10.0, -1.0], "deviation": [2.0, 0.5]})
    found = predictions.columns(spec, task, torch.tensor([[1.0, 2.0], [0.0, -2.0]]))
    told = dict(zip([f.name for f in predictions.fields(spec)], [c.to_pylist() for c in found], strict=True))
    assert told == {"predicted_valence": [12.0, 10.0], "predicted_arousal": [0.0, -2.0]}


def test_masks_do_not_go_into_a_csv(made, tmp_path):
    run, rows, _ = made["segmentation"]
    with pytest.raises(EquipoiseError, match=r"out\.csv cannot hold masks: name a \.parquet file with --out"):
        predict(run.path, rows, tmp_path / "out.csv")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("multilabel", ("multi-label classification with 4 labels: even, prime, large, loop", "float32 [rows, 4]")),
        ("regression", ("regression of 1 number: progression", "number in the units of the target")),
        (
            "segmentation",
            ("segmentation of 3 regions: WT, TC, ET", "float32 [rows, 3, 8, 8, 8]", "predictions.parquet"),
        ),
    ],
)
def test_the_readme_says_what_comes_out(made, kind, said):
    text = (made[kind][2] / "README.md").read_text()
    for words in said:
        assert words in text
    assert "{" not in text.split("```python")[0]
