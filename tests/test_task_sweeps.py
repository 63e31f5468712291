"""The sweep of a best checkpoint, chunk files and all, finds in every task what one pass over the split finds."""

import numpy as np
import pytest
import torch

from equipoise.datasets.prepare import prepare
from equipoise.datasets.reading import Reader
from equipoise.pipelines.assembly import assemble
from equipoise.pipelines.config import load_config
from equipoise.pipelines.fingerprint import model_hash
from equipoise.pipelines.light import joined, value_columns
from equipoise.pipelines.sweeps import run_sweep
from equipoise.pipelines.valuer import Sweep
from equipoise.valuation import StoreInfo
from equipoise.valuation.store import iter_chunks

SETS = {
    "classification": ("digits", {"chunk_rows": 64}, "auroc"),
    "multilabel": ("digit-attributes", {"chunk_rows": 64}, "auroc"),
    "regression": ("diabetes", {"chunk_rows": 16}, "pearson"),
    "segmentation": ("volumes", {"volumes": 40, "size": 8, "chunk_rows": 4}, "dice_et"),
}


@pytest.mark.filterwarnings("ignore::UserWarning:torchmetrics")
@pytest.mark.parametrize("name", SETS)
def test_chunks_on_disk_are_the_whole(tmp_path, name):
    source, options, costly = SETS[name]
    prepare(source, tmp_path / "data", **options)
    small = {"encoder": {"hidden": 4, "depth": 1, "out_features": 4}} if name == "segmentation" else {}
    config = load_config({"data": str(tmp_path / "data"), "out": "unused", "max_epochs": 1, "model": small})
    reader = Reader(tmp_path / "data")
    manifest, task = reader.manifest, reader.manifest.build_task()
    model = assemble(config, manifest).eval()
    torch.save(model.state_dict(), tmp_path / "model.pt")
    info = StoreInfo(
        manifest.names, task.benefit_name, task.graded, model.absence, model_hash(model.state_dict()), manifest.hash,
        "test", "best",
    )  # fmt: skip
    sweep = Sweep(
        str(tmp_path / "data"), "test", str(tmp_path / "values"), str(tmp_path / "model.pt"), config.model.model_dump(),
        model.unimodal, info, batch_size=7, thorough=True,
    )  # fmt: skip
    found = run_sweep(sweep)
    assert manifest.num_chunks("test") > 1

    rows = manifest.splits["test"].rows
    columns = reader.read("test", np.arange(rows))
    chunks, matrix = value_columns(model, columns, task, chunk_rows=rows, batch_size=rows, thorough=True)
    assert set(found.matrix) == set(matrix)
    for c, cell in matrix.items():
        assert costly in cell
        assert found.matrix[c] == pytest.approx(cell, rel=1e-5, abs=1e-6, nan_ok=True)
    score = joined(list(iter_chunks(tmp_path / "values", info))).score
    np.testing.assert_allclose(score, joined(chunks).score, atol=1e-6)
    assert "auroc" not in value_columns(model, columns, task, rows, rows)[1][1]
