"""Sets whose samples really lack modalities, in every task: what is trained, what is run, what is valued and stored."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from light_runs import light_run
from oracles import valuation as oracle

import equipoise
from benchmarks.absent import counted
from equipoise import balancers, valuation
from equipoise.balancers import BalancedStep
from equipoise.datasets import sources
from equipoise.datasets.manifest import Manifest
from equipoise.datasets.prepare import prepare
from equipoise.datasets.reading import Reader
from equipoise.models import to_batch
from equipoise.pipelines.assembly import assemble
from equipoise.pipelines.config import load_config
from equipoise.pipelines.light import train_light
from equipoise.valuation.store import values_of

SETS = {
    "classification": ("digits", {}),
    "multilabel": ("digit-attributes", {}),
    "regression": ("diabetes", {}),
    "segmentation": ("volumes", {"volumes": 40, "size": 8}),
}
SMALL = {"segmentation": {"encoder": {"hidden": 4, "depth": 1, "out_features": 4}}}
BALANCERS = ("joint", "summed", "modality_dropout", "ensemble")


def lacking(source, seed=4, p=0.3):
    """The source with each modality of a row dropped with probability `p`, but never all."""
    rng = np.random.default_rng(seed)

    def rows():
        for row in source.rows:
            gone = rng.random(len(source.modalities)) < p
            gone[rng.integers(len(gone))] &= not gone.all()
            yield row | {m.column: None for m, lost in zip(source.modalities, gone, strict=True) if lost}

    return replace(source, rows=rows())


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    root, load = tmp_path_factory.mktemp("lacking"), sources.load
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "load", lambda name, **options: lacking(load(name, **options)))
        for task, (name, options) in SETS.items():
            prepare(name, root / task, **options)
    return root


def config(sets, task, balancer="joint"):
    return {
        "data": str(sets / task), "out": "unused", "balancer": balancer, "seed": 3, "model": SMALL.get(task, {}),
        "optimizer": {"lr": 0.01}, "batch_size": 8 if task == "segmentation" else 64, "max_steps": 6,
    }  # fmt: skip


def columns_of(sets, task, split):
    reader = Reader(sets / task)
    return reader.read(split, np.arange(reader.manifest.splits[split].rows))


def batch_of(sets, task, split):
    columns = columns_of(sets, task, split)
    copy = np.zeros(len(columns["sample_id"]), np.int16)
    return to_batch({**columns, "copy": copy}, Manifest.load(sets / task).names)


def check_values(values, present, contributions):
    """Contributions are those of a game whose players are the present modalities: by all orders of them, row by row."""
    np.testing.assert_array_equal(values.present, present)
    np.testing.assert_array_equal(np.isnan(contributions), ~present)
    parts = present.sum(axis=1)
    np.testing.assert_allclose(np.nansum(contributions, axis=1), parts * values.benefit, rtol=0, atol=1e-12)
    for i in range(0, len(present), 5):
        scores = [float(s) if np.isfinite(s) else 0.0 for s in values.score[i]]
        wanted = [np.nan if phi is None else float(phi) for phi in oracle.shapley(scores, present[i])]
        np.testing.assert_allclose(contributions[i], wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize("task", SETS)
def test_the_sets_lack_what_was_dropped(sets, task):
    present = columns_of(sets, task, "train")["present"]
    assert present.any(axis=1).all()
    # 0.3 of the modalities, less what was given back to rows that would have had none.
    count = present.shape[1]
    chance = 1 - 0.3 + 0.3**count / count
    assert abs(present.mean() - chance) < 4 * np.sqrt(chance * (1 - chance) / present.size)


@pytest.mark.parametrize("task", SETS)
def test_an_encoder_runs_on_the_rows_that_have_its_modality(sets, task):
    manifest = Manifest.load(sets / task)
    built, model = manifest.build_task(), assemble(load_config(config(sets, task)), manifest)
    step = BalancedStep(model, built, balancers.get("joint"), torch.optim.SGD(model.parameters(), lr=0.01))
    batch = batch_of(sets, task, "validation")
    present = dict(zip(manifest.names, batch["present"].sum(dim=0).tolist(), strict=True))
    assert all(0 < rows < len(batch["present"]) for rows in present.values())
    for way in (step, lambda b: valuation.sweep(model, b, built)):
        with counted(model) as calls:
            way(batch)
        assert calls == {m: [rows] for m, rows in present.items()}
    # Where no row has it, it is not called at all.
    only = batch["present"].clone()
    only[:, 0], only[:, 1:] = False, True
    for way in (step, lambda b: valuation.sweep(model, b, built)):
        with counted(model) as calls:
            way({**batch, "present": only})
        assert calls == {m: [len(only)] if i else [] for i, m in enumerate(manifest.names)}


@pytest.mark.parametrize("balancer", BALANCERS)
@pytest.mark.parametrize("task", SETS)
def test_training_and_values_without_all_modalities(sets, task, balancer):
    run = train_light(load_config(config(sets, task, balancer)))
    assert all(np.isfinite(row["train_loss"]) for row in run.epochs)
    manifest = Manifest.load(sets / task)
    built, batch, names = manifest.build_task(), batch_of(sets, task, "test"), manifest.names
    present, values, matrix = batch["present"].numpy(), run.values["test"], run.matrix["test"]
    check_values(values, present, values.contributions)
    # The table is that of full passes, the matrix that of the rows which have something of the coalition.
    naive = oracle.naive_scores(run.model, batch, built).numpy()
    np.testing.assert_allclose(values.score, naive if built.graded else np.nan_to_num(naive), atol=1e-5)
    inside = valuation.members(len(names))
    for coalition, cell in matrix.items():
        there = (present & inside[coalition - 1]).any(axis=1)
        assert cell["rows"] == there.sum()
    # The full coalition is every row with all that it has.
    full = matrix[max(matrix)]
    assert full["rows"] == len(present)
    with torch.no_grad():
        logits = run.model(batch["inputs"], batch["present"]).logits
    metrics = built.metrics()
    metrics.update(logits, batch["target"])
    wanted = {name: float(value) for name, value in metrics.compute().items()}
    assert {name: full[name] for name in wanted} == pytest.approx(wanted, abs=1e-5)
    assert full["loss"] == pytest.approx(float(built.losses(logits, batch["target"]).mean()), rel=1e-4)


@pytest.mark.parametrize("task", SETS)
def test_stored_values_read_back(sets, task, tmp_path):
    run = light_run(
        tmp_path / "run", **{k: v for k, v in config(sets, task).items() if k not in ("data", "out")}, data=sets / task
    )
    run.matrix("test")
    table, present = run.values("test"), columns_of(sets, task, "test")["present"]
    stored = np.stack([table[f"contribution_{m}"].to_numpy() for m in run.manifest.names], axis=1)
    check_values(values_of(table), present, stored)
    copies = np.stack(
        [table[f"copies_{m}"].to_numpy() for m in run.manifest.names if f"copies_{m}" in table.column_names], axis=1
    )
    assert (copies[~present] == 0).all()
    means = run.result("test").contributions
    assert means == pytest.approx(dict(zip(run.manifest.names, np.nanmean(stored, axis=0), strict=True)))


@pytest.mark.parametrize("task", SETS)
def test_absent_modalities_as_players_would_be_seen(sets, task):
    # The planted fault: every modality plays, an absent one adds nothing to a coalition, and is given 0.
    model = assemble(load_config(config(sets, task)), Manifest.load(sets / task)).eval()
    batch = batch_of(sets, task, "test")
    built, present = Manifest.load(sets / task).build_task(), batch["present"].numpy()
    score = valuation.sweep(model, batch, built).numpy()
    values = valuation.Values(batch["sample_id"].numpy(), score, present)
    check_values(values, present, values.contributions)
    ids, pattern = np.arange(1, score.shape[1] + 1), present @ (1 << np.arange(present.shape[1]))
    effective = np.take_along_axis(score, np.maximum((ids & pattern[:, None]) - 1, 0), axis=1).astype(float)
    effective[(ids & pattern[:, None]) == 0] = 0
    faulty = valuation.shapley(effective, np.ones_like(present))
    for fault in (np.where(present, faulty, 0), np.where(present, faulty, np.nan), np.nan_to_num(values.contributions)):
        with pytest.raises(AssertionError):
            check_values(values, present, fault)


def test_a_row_that_lacks_modalities_keeps_some_of_what_it_has(sets):
    # Rows of every pattern in one batch: the distributions themselves are test_balancers_methods'.
    manifest, batch = Manifest.load(sets / "segmentation"), batch_of(sets, "segmentation", "train")
    model = assemble(load_config(config(sets, "segmentation")), manifest)
    for options in ({"p": 0.9}, {"distribution": "uniform"}):
        balancer = balancers.get("modality_dropout", **options)
        ctx = balancers.StepContext(model, manifest.build_task(), batch, seed=1, epoch=0, step=0, group=None)
        kept = balancer.before_forward(batch, ctx)["present"]
        assert kept.any(dim=1).all()
        assert not (kept & ~batch["present"]).any()
        assert (kept != batch["present"]).any()


@pytest.mark.slow
@pytest.mark.ray
def test_a_run_on_ray_is_the_run_without_it(ray_cluster, sets, tmp_path):
    made = config(sets, "segmentation") | {
        "resampler": {"name": "sample", "options": {"warmup": 1}}, "max_steps": None, "max_epochs": 2, "batch_size": 14,
    }  # fmt: skip
    run = equipoise.fit({**made, "out": str(tmp_path / "run"), "workers": 2, "actors": 2})
    light = train_light(load_config({k: v for k, v in made.items() if v is not None}))
    epochs = run.metrics
    assert epochs["entries"].tolist() == [row["entries"] for row in light.epochs]
    np.testing.assert_allclose(epochs["validation/dice"], [row["value"] for row in light.epochs], atol=1e-3)
    present = columns_of(sets, "segmentation", "train")["present"]
    table = run.values("train", 0)
    values = values_of(table)
    stored = np.stack([table[f"contribution_{m}"].to_numpy() for m in run.manifest.names], axis=1)
    check_values(values, present, stored)
    # Last column: whole copies. The plan never copies a row for a modality that it lacks.
    plan = np.load(run.plan(1))
    assert plan.sum() > 0
    assert (plan[:, : present.shape[1]][~present] == 0).all()
