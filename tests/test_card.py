"""The run card says what brute force finds, and Hugging Face's own reader reads it."""

import re

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from typer.testing import CliRunner

from equipoise import EquipoiseError, Run
from equipoise.cli import app
from equipoise.datasets.prepare import prepare
from equipoise.datasets.reading import Reader
from equipoise.models import to_batch
from equipoise.pipelines.assembly import assemble
from equipoise.pipelines.card import write_card
from equipoise.pipelines.checkpoint import Position
from equipoise.pipelines.config import load_config
from equipoise.pipelines.files import write_json
from equipoise.pipelines.fingerprint import model_hash
from equipoise.pipelines.history import History
from equipoise.pipelines.run import write_config
from equipoise.pipelines.sweeps import run_sweep

CONFIG = {"balancer": "ogm", "resampler": "sample", "max_steps": 20, "seed": 3, "optimizer": {"lr": 0.01}}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of one epoch with the weights it began with, swept as `fit` does, without Ray."""
    root = tmp_path_factory.mktemp("card")
    manifest = prepare("digits", root / "data")
    run = Run(root / "mine", load_config({**CONFIG, "data": str(root / "data"), "out": str(root / "mine")}))
    write_config(run.path / "config.yaml", run.config)
    after, weights = Position(1, 0), assemble(run.config, manifest).state_dict()
    run.checkpoints.commit(run.checkpoints.draft(after, weights), after, {})
    best = {"epoch": 0, "checkpoint": str(after), "metric": "accuracy", "value": 0.1, "loss": 2.3}
    run.checkpoints.set_best({**best, "model_hash": model_hash(weights)})
    run_sweep(run.sweep("validation", 0, run.best_checkpoint() / "model.pt"))
    run.result("train")
    metrics = History(run.path / "metrics.parquet")
    metrics.append({"epoch": 0, "step": 20, "validation/accuracy": 0.1})
    metrics.write()
    packages = {"equipoise": "0.1.0", "torch": "2.13.0"}
    write_json(
        run.path / "environment.json",
        {"python": "3.11.2", "workers": 1, "actors": 1, "device": "cpu", "packages": packages},
    )
    return run


def accuracy(run: Run, split: str, members: list[int]) -> float:
    """With some modalities only, by one plain forward pass."""
    reader = Reader(run.config.data)
    columns = reader.read(split, np.arange(reader.manifest.splits[split].rows))
    batch = to_batch({**columns, "copy": np.zeros(len(columns["target"]), np.int16)}, reader.manifest.names)
    keep = torch.zeros(len(reader.manifest.names), dtype=torch.bool)
    keep[members] = True
    with torch.no_grad():
        logits = run.best_model()(batch["inputs"], batch["present"] & keep).logits
    return float((logits.argmax(dim=1) == batch["target"]).double().mean())


def test_the_head_is_a_model_card_of_the_results(run):
    card = ModelCard.load(write_card(run))
    assert card.data.tags == ["multimodal", "ogm", "sample"]
    assert card.data.datasets == ["digits"]
    found = {(r.dataset_split, r.metric_name): r.metric_value for r in card.data.eval_results}
    assert {split for split, _ in found} == {"validation"}
    for name, members in (("accuracy", [0, 1]), ("accuracy, left only", [0]), ("accuracy, right only", [1])):
        assert found["validation", name] == pytest.approx(accuracy(run, "validation", members), abs=1e-6)
    assert not (run.path / "values" / "test").exists()  # a card sweeps nothing
    assert "Test was not evaluated yet" in card.text


def test_the_body_says_what_the_run_is(run):
    text = write_card(run).read_text()
    manifest = run.manifest
    titles = re.findall(r"^## (.*)$", text, re.MULTILINE)
    assert titles == ["Data", "Settings", "Results", "Contributions", "Limits", "How to load it", "Versions"]
    assert manifest.hash in text
    assert manifest.terms in text
    for split in manifest.splits:
        assert f"| {split} | {manifest.splits[split].rows} |" in text
    settings = dict(re.findall(r"^\| `(\S+)` \| `(.*)` \|$", text, re.MULTILINE))
    assert settings == {
        "balancer.name": "ogm",
        "resampler.name": "sample",
        "max_steps": "20",
        "seed": "3",
        "optimizer.lr": "0.01",
    }
    means = run.values("train").to_pandas()[["contribution_left", "contribution_right"]].mean()
    row = re.search(r"^\| right \| ([\d.-]+) \| ([\d.-]+) \|$", text, re.MULTILINE)
    assert row is not None
    assert float(row[1]) == pytest.approx(means["contribution_right"], abs=6e-5)
    assert (
        f"| right | 267 | {accuracy(run, 'validation', [1]):.4f} |" in text or manifest.splits["validation"].rows != 267
    )
    assert "torch 2.13.0" in text


def test_how_to_load_it_works_in_the_folder(run, monkeypatch, capsys):
    monkeypatch.chdir(run.path)
    [code] = re.findall(r"```python\n(.*?)```", write_card(run).read_text(), re.DOTALL)
    exec(code, {})
    assert "left+right" in capsys.readouterr().out


def test_test_stands_in_the_card_once_it_was_evaluated(run):
    done = CliRunner().invoke(app, ["evaluate", str(run.path), "--split", "test"])
    assert done.exit_code == 0, done.output
    card = ModelCard.load(run.path / "card.md")
    found = {r.metric_name: r.metric_value for r in card.data.eval_results if r.dataset_split == "test"}
    assert found["accuracy, right only"] == pytest.approx(accuracy(run, "test", [1]), abs=1e-6)
    assert "Test was not looked at in training" in card.text


def test_a_run_without_an_epoch_has_no_card(tmp_path):
    with pytest.raises(EquipoiseError, match="has no validated checkpoint yet: let it finish an epoch"):
        write_card(Run(tmp_path, load_config({**CONFIG, "data": "nowhere", "out": str(tmp_path)})))
    assert not list(tmp_path.iterdir())
