"""`evaluate --impair`: the numbers against naive passes, the curves on real data, and what the run folder keeps."""

import io
import shutil

import numpy as np
import pytest
import torch
from rich.console import Console
from source_rows import needs
from typer.testing import CliRunner

from equipoise.cli import app
from equipoise.datasets.impairment import Impairment, missing_rows
from equipoise.datasets.prepare import prepare
from equipoise.datasets.reading import Reader
from equipoise.models import to_batch
from equipoise.models.errors import EquipoiseError
from equipoise.pipelines.config import load_config
from equipoise.pipelines.impaired import avg_and_gap, curve_table, impaired, impaired_table
from equipoise.pipelines.light import train_light
from equipoise.pipelines.run import Run


def trained(root, seed=0, **keys):
    made = {"data": str(root), "out": "x", "batch_size": 64, "optimizer": {"lr": 0.005}, "seed": seed, **keys}
    return train_light(load_config(made))


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    root = tmp_path_factory.mktemp("digits") / "data"
    prepare("digits", root)
    return root


def cell(found, condition, modality, level, metric):
    row = found[
        (found.condition == condition)
        & (found.modality == modality)
        & (found.level == level)
        & (found.metric == metric)
    ]
    return float(row["value"].iloc[0])


@pytest.mark.parametrize(
    ("scores", "wanted"),
    [([12.99, 63.52], (38.255, 50.53)), ([0.5], (0.5, 0.0)), ([0.2, 0.8, 0.5], (0.5, 0.6))],
)
def test_avg_and_gap(scores, wanted):
    # balgrad.md T9: Table 1 of the paper prints 38.26 and 50.53.
    assert avg_and_gap(scores) == pytest.approx(wanted)
    with pytest.raises(EquipoiseError, match="at least one"):
        avg_and_gap([])


@pytest.mark.parametrize("model", [{}, {"kind": "early", "dim": 16, "depth": 1}, {"absence": "input"}], ids=str)
def test_every_number_is_that_of_a_naive_pass(digits, model):
    run = trained(digits, max_steps=40, model=model)
    reader = Reader(digits)
    task, names, rows = reader.manifest.build_task(), reader.manifest.names, reader.manifest.splits["test"].rows
    found = impaired(
        run.model, task, reader, "test", share=0.5, seed=3, batch_size=100, ratios=(0.3, 1.0), severities=(2,)
    )
    ids = np.arange(rows)
    for m in names:
        blocks = {("missing", r): Impairment(missing={m: r}, seed=3) for r in (0.3, 1.0)}
        blocks["noisy", 2.0] = Impairment(noise={m: 2}, share=0.5, seed=3)
        for (condition, level), block in blocks.items():
            batch = to_batch({**reader.read("test", ids, None, block), "copy": np.zeros(rows, np.int16)}, names)
            with torch.no_grad():
                logits = run.model(batch["inputs"], batch["present"]).logits
            right = (logits.argmax(dim=1) == batch["target"]).double().mean()
            assert cell(found, condition, m, level, "accuracy") == pytest.approx(float(right), abs=1e-6)
            assert cell(found, condition, m, level, "loss") == pytest.approx(
                float(task.losses(logits, batch["target"]).mean()), rel=1e-4
            )
    # Missing everywhere is what the sweep's table of coalitions says.
    assert cell(found, "missing", "left", 1.0, "accuracy") == pytest.approx(run.matrix["test"][2]["accuracy"])
    assert cell(found, "full", "", 0.0, "macro_f1") == pytest.approx(run.matrix["test"][3]["macro_f1"])


def curves(root, models, split="test"):
    """Whether each row is right, under every condition, by each model: {(condition, modality): [levels, models * rows]}."""
    reader = Reader(root)
    names, rows = reader.manifest.names, reader.manifest.splits[split].rows
    out = {}
    for m in names:
        for condition, levels in (("missing", (0, 0.2, 0.4, 0.6, 0.8, 1.0)), ("noise", (0, 1, 2, 3, 4, 5))):
            right = []
            for level in levels:
                columns = reader.read(split, np.arange(rows), None, Impairment(**{condition: {m: level}}))
                batch = to_batch({**columns, "copy": np.zeros(rows, np.int16)}, names)
                with torch.no_grad():
                    logits = torch.cat([model(batch["inputs"], batch["present"]).logits for model in models])
                right.append((logits.argmax(dim=1) == batch["target"].repeat(len(models))).double().numpy())
            out[condition, m] = np.array(right)
    return out


@pytest.mark.parametrize("name", ["digits", "watch"])
def test_curves_fall_within_error(tmp_path, digits, name):
    root = digits
    if name == "watch":
        needs("seglearn")
        root = tmp_path / "watch"
        prepare("watch", root)
    models = [trained(root, seed, max_steps=200).model for seed in range(3)]
    for key, right in curves(root, models).items():
        # No step up by more than two standard errors of the paired difference, and down at the end by more than five.
        step = np.diff(right, axis=0)
        error = np.maximum(step.std(axis=1) / np.sqrt(step.shape[1]), 1e-12)
        assert (step.mean(axis=1) <= 2 * error).all(), (key, right.mean(axis=1))
        fall = right[0] - right[-1]
        assert fall.mean() > 5 * fall.std() / np.sqrt(len(fall)), (key, right.mean(axis=1))


def test_the_command_prints_and_keeps_it(plain, tmp_path):
    shutil.copytree(plain.path, tmp_path / "run")
    run = Run.open(tmp_path / "run")
    answer = CliRunner().invoke(
        app, ["evaluate", str(run.path), "--split", "test", "--impair", "--severity", "2"], env={"COLUMNS": "160"}
    )
    assert answer.exit_code == 0, answer.output
    found = run.impaired("test")
    for condition, modality in (("missing", "left"), ("noisy", "right")):
        level = 1.0 if condition == "missing" else 2.0
        assert f"{cell(found, condition, modality, level, 'accuracy'):.3f}" in answer.output
    pair = [cell(found, "missing", m, 1.0, "accuracy") for m in ("left", "right")]
    lines = {line.strip("│ ").split("│")[0].strip(): line for line in answer.output.splitlines()}
    assert f"{sum(pair) / 2:.3f}" in lines["missing Avg"]
    assert f"{abs(pair[0] - pair[1]):.3f}" in lines["missing Gap"]
    assert "accuracy, missing in a share of the rows" in answer.output
    path = run.path / "impaired" / "test.parquet"
    before = path.stat().st_mtime_ns
    assert run.impaired("test").equals(found)
    assert path.stat().st_mtime_ns == before, "the same question is answered from the folder"
    other = run.impaired("test", share=0.5)
    assert path.stat().st_mtime_ns != before
    assert cell(other, "noisy", "left", 5.0, "accuracy") > cell(found, "noisy", "left", 5.0, "accuracy")
    with pytest.raises(EquipoiseError, match="tset"):
        run.impaired("tset")


def test_tables_of_a_regression_and_of_rows_that_have_one_modality(tmp_path):
    root = tmp_path / "diabetes"
    prepare("diabetes", root)
    run = trained(root, max_steps=30)
    reader = Reader(root)
    real = reader.read

    def lacking(split, ids, keep=None, *args, **kwargs):
        there = np.ones((len(ids), 2), bool) if keep is None else np.broadcast_to(keep, (len(ids), 2)).copy()
        there[np.asarray(ids) < 7, 0] = False
        return real(split, ids, there, *args, **kwargs)

    reader.read = lacking
    found = impaired(run.model, reader.manifest.build_task(), reader, "test")
    console = Console(file=io.StringIO(), width=160)
    console.print(impaired_table(found))
    console.print(curve_table(found, "mae", "noisy"))
    shown = console.file.getvalue()
    assert "7 rows have only serum and keep it" in shown
    assert "mae, noisy, by severity" in shown
    columns = list(dict.fromkeys(found["metric"]))
    assert columns[0] == "mae"
    kept = found[(found.condition == "missing") & (found.modality == "serum") & (found.metric == "mae")]
    for level, count in zip(kept["level"], kept["kept"], strict=True):
        lacks = missing_rows(level, "serum", "test", reader.manifest.splits["test"].rows)
        assert count == lacks[:7].sum()
