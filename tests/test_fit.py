"""The main job on real Ray: digits, two DDP workers, two valuation actors, delays and kills."""

import json
import time

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from digits_runs import CONFIG, assert_same_run, kill_when, weights
from tracked import in_parquet, in_tensorboard

import equipoise
from equipoise import EquipoiseError, Run, valuation
from equipoise.datasets.prepare import prepare
from equipoise.datasets.reading import Reader
from equipoise.models.batch import to_batch
from equipoise.pipelines.batches import EpochSpec, rank_batches

pytestmark = pytest.mark.ray


def test_the_run_folder_holds_the_run(plain, data):
    rows = plain.manifest.splits["train"].rows
    assert {
        "config.yaml",
        "environment.json",
        "metrics.parquet",
        "steps.parquet",
        "values",
        "plans",
        "checkpoints",
    } <= {p.name for p in plain.path.iterdir()}
    assert plain.metrics["epoch"].tolist() == [0, 1, 2]
    assert plain.steps["step"].tolist() == list(range(plain.metrics["steps"].sum()))
    assert np.isfinite(plain.steps["loss"]).all()
    assert plain.epochs("train") == [0, 1, "best"]
    assert plain.epochs("validation") == [0, 1, 2]
    for epoch in (0, 1, "best", -1):
        values = plain.values("train", epoch)
        assert values["sample_id"].to_pylist() == list(range(rows))
        assert len(set(values["source_id"].to_pylist())) == rows
    assert plain.metrics["validation/accuracy"].iloc[-1] > 0.85
    environment = json.loads((plain.path / "environment.json").read_text())
    assert environment["packages"]["torch"]
    assert len(plain.checkpoints.positions()) <= 3


def test_epoch_length_follows_from_the_values(plain):
    # Closed form at M = 2 (valuation.md 2.2): N (1 + 4 err + q), from the stored score bits alone.
    for epoch in (1, 2):
        bits = plain.values("train", epoch - 1)["coalitions"].to_numpy()
        left, right, both = (bits >> 0 & 1), (bits >> 1 & 1), (bits >> 2 & 1)
        wrong, one = (both == 0), (both == 1) & (left != right)
        row = plain.metrics.iloc[epoch]
        assert row["entries"] == len(bits) + 4 * wrong.sum() + one.sum()
        assert row["steps"] == -(-row["entries"] // 50)
        assert row["padding"] == row["steps"] * 50 - row["entries"]


def test_the_store_is_readable_without_us(plain):
    import duckdb

    folder = plain.values_folder("train", 0)
    files = sorted(map(str, folder.glob("*.parquet")))
    assert sum(pq.ParquetFile(f).metadata.num_rows for f in files) == 1257
    mean = duckdb.sql(f"select avg(contribution_left), avg(contribution_right) from read_parquet('{folder}/*.parquet')")
    found = plain.result("train", 0).contributions
    assert mean.fetchall()[0] == pytest.approx((found["left"], found["right"]), abs=1e-12)


def test_the_best_model_gives_the_matrix_again(plain, data):
    model, reader = plain.best_model(), Reader(data)
    columns = reader.read("test", np.arange(reader.manifest.splits["test"].rows))
    batch = to_batch({**columns, "copy": np.zeros(len(columns["target"]), np.int16)}, reader.manifest.names)
    score = valuation.sweep(model, batch, reader.manifest.build_task()).float().mean(dim=0)
    matrix = plain.matrix("test").set_index("coalition")["accuracy"]
    assert matrix["left"] == pytest.approx(float(score[0]), abs=1e-6)
    assert matrix["right"] == pytest.approx(float(score[1]), abs=1e-6)
    assert matrix["left+right"] == pytest.approx(float(score[2]), abs=1e-6)
    # The best epoch's values on train are those of the stored sweep of that epoch's weights.
    best = plain.checkpoints.best["epoch"]
    if best in plain.epochs("train"):
        columns = ["sample_id", "coalitions"]
        assert plain.values("train", "best").select(columns).equals(plain.values("train", best).select(columns))


def test_asking_for_an_epoch_that_was_not_swept_names_those_that_were(plain):
    with pytest.raises(EquipoiseError, match=r"for epoch 7 .*there are 0, 1, best"):
        plain.values("train", 7)
    with pytest.raises(EquipoiseError, match="Unknown split 'tset'"):
        plain.matrix("tset")


def test_a_store_of_another_model_is_refused(plain):
    with pytest.raises(EquipoiseError, match="a store of another model"):
        valuation.read_values(plain.values_folder("train", 0), {"model_hash": "0" * 64})


def test_another_configuration_in_the_same_folder_is_refused(plain, data):
    with pytest.raises(EquipoiseError, match=r"another configuration \(seed: 5 -> 6\)"):
        equipoise.fit(CONFIG, data=data, out=str(plain.path), seed=6)


def test_a_finished_run_is_not_trained_again(plain, data):
    before, began = weights(plain), time.monotonic()
    again = equipoise.fit(CONFIG, data=data, out=str(plain.path))
    assert time.monotonic() - began < 5, "no worker group should have been started"
    assert all(torch.equal(before[name], tensor) for name, tensor in weights(again).items())
    assert again.metrics["epoch"].tolist() == [0, 1, 2]


@pytest.mark.slow
def test_random_delays_change_nothing(faults, plain, data, tmp_path):
    faults.on("delay_reads")
    run = equipoise.fit(CONFIG, data=data, out=str(tmp_path / "delayed"))
    assert_same_run(run, plain)


def test_delays_a_killed_actor_and_a_killed_worker_change_nothing(faults, plain, data, tmp_path):
    faults.on("delay_reads", "slow_steps", "slow_sweeps")
    out = tmp_path / "killed"
    actor = kill_when(out, "ray::Valuer", lambda p: p["phase"] == "sweep of train" and 0 < p["done"] < p["total"])
    worker = kill_when(out, "RayTrainWorker", lambda p: p["phase"] == "train" and p["epoch"] == 1 and p["done"] >= 600)
    run = equipoise.fit(CONFIG, data=data, out=str(out))
    assert len(actor.killed) == 1
    assert len(worker.killed) == 1
    assert in_tensorboard(out) == in_parquet(out, np.float32)
    assert_same_run(run, plain)


def collect(data, world, epoch, plan=None, start=0):
    """{step: [ids, copies and present of every rank]}"""
    manifest = Reader(data).manifest
    out = {}
    for rank in range(world):
        spec = EpochSpec(data, plan, 5, epoch, 50, rank, world, start)
        for step, columns in enumerate(rank_batches(spec, manifest), start=start):
            row = np.column_stack([columns["sample_id"], columns["copy"], columns["present"]])
            out.setdefault(step, []).append(row)
            assert all(c.dtype != object and not (c.dtype.kind == "f" and np.isnan(c).any()) for c in columns.values())
    return out


def test_global_batches_are_the_same_for_any_number_of_workers(faults, plain, data):
    faults.on("delay_reads")
    plan = str(plain.plan(1))
    one = collect(data, 1, 1, plan)
    three = collect(data, 3, 1, plan)
    assert sorted(one) == sorted(three) == list(range(int(plain.metrics["steps"].iloc[1])))
    for step, [whole] in one.items():
        np.testing.assert_array_equal(np.concatenate(three[step]), whole)
    # No entry is lost or doubled: originals once, copies as planned, padding counted on.
    rows = np.concatenate([batch for [batch] in one.values()])
    assert len({(i, c) for i, c in rows[:, :2].tolist()}) == len(rows)
    per_sample = np.bincount(rows[:, 0], minlength=1257)
    planned = 1 + np.load(plan).sum(axis=1, dtype=int)
    assert (per_sample >= planned).all()
    assert (per_sample - planned).sum() == plain.metrics["padding"].iloc[1]
    # A copy keeps one modality, the original both.
    assert (rows[rows[:, 1] == 0][:, 2:].sum(axis=1) == 2).all()


def test_a_resume_gives_the_batches_that_were_left(ray_cluster, plain, data):
    plan = str(plain.plan(2))
    whole, rest = collect(data, 2, 2, plan), collect(data, 2, 2, plan, start=17)
    assert sorted(rest) == sorted(whole)[17:]
    for step, ranks in rest.items():
        for ours, theirs in zip(ranks, whole[step], strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_every_stage_of_the_pipeline_has_plain_columns(ray_cluster, plain, data):
    import ray

    from equipoise.pipelines.batches import ReadWindow

    spec = EpochSpec(data, str(plain.plan(1)), 5, 1, 50, 0, 2)
    units = ray.data.from_items([{"window": 0}])
    decoded = units.map_batches(ReadWindow(spec), batch_size=1, batch_format="numpy").materialize()
    for stage in (units, decoded):
        assert "object" not in str(stage.schema()).lower(), stage.schema()
    for ref in decoded.to_arrow_refs():
        table = ray.get(ref)
        assert all(column.null_count == 0 for column in table.columns)
        assert not any("pickled" in str(field.type) for field in table.schema)


def test_a_masked_modality_is_not_decoded(plain, data):
    from equipoise.pipelines.batches import ReadWindow

    window = ReadWindow(EpochSpec(data, str(plain.plan(1)), 5, 1, 50, 0, 1))
    shown = [columns["present"] for columns in window({"window": np.array([0, 1])})]
    decoded = window._reader.decoded
    present = np.concatenate(shown)
    assert decoded["left"] < present[:, 0].sum()  # a sample's value once, however many of its entries are in a block
    assert decoded["left"] + decoded["right"] < present.size


def test_fewer_rows_than_workers_is_a_sentence(ray_cluster, data, tmp_path):
    with pytest.raises(EquipoiseError, match=r"batch_size=2 .*cannot be shared by 3 workers"):
        equipoise.fit(CONFIG, data=data, out=str(tmp_path / "a"), workers=3, batch_size=2)
    with pytest.raises(EquipoiseError, match=r"cluster has 6 CPUs, but workers=50"):
        equipoise.fit(CONFIG, data=data, out=str(tmp_path / "b"), workers=50)


def test_a_workers_sentence_reaches_the_user(ray_cluster, data, tmp_path):
    # A learning rate that blows up: found in a worker, read by the user, and not tried four times.
    began = time.monotonic()
    with pytest.raises(EquipoiseError, match=r"The objective 'fused' is (nan|inf) in step \d+ of epoch 0"):
        equipoise.fit(
            CONFIG, data=data, out=str(tmp_path / "c"), optimizer={"name": "sgd", "lr": 1e9, "momentum": 0.0}, workers=1
        )
    assert Run.open(tmp_path / "c").checkpoints.positions() == []
    assert time.monotonic() - began < 100


def test_training_without_ray_is_bit_equal_to_one_worker(ray_cluster, plain, data, tmp_path):
    from equipoise.pipelines.light import train_light

    one = equipoise.fit(
        CONFIG, data=data, out=str(tmp_path / "one"), workers=1, max_epochs=2, valuation={"final": False}
    )
    threads = torch.get_num_threads()
    torch.set_num_threads(json.loads((one.path / "environment.json").read_text())["threads"])
    light = train_light(one.config)
    torch.set_num_threads(threads)
    for name, tensor in weights(one).items():
        assert torch.equal(light.last[name], tensor), name
    assert light.best["epoch"] == one.checkpoints.best["epoch"]
    # Two workers: the same batches, and the same parameters to rounding (in float32, through Adam) after an epoch.
    first = [run.steps[run.steps["epoch"] == 0]["loss"].to_numpy() for run in (one, plain)]
    np.testing.assert_allclose(*first, rtol=1e-4)


def test_the_best_values_follow_the_best_checkpoint(plain, data, tmp_path):
    # Evaluated while it was unfinished, then gone on with: what was swept as "best" is not the best any more.
    import shutil

    out = tmp_path / "copy"
    shutil.copytree(plain.path, out)
    run = Run.open(out)
    assert run.epochs("train")[-1] == "best"
    other = next(str(p) for p in run.checkpoints.positions() if str(p) != run.checkpoints.best["checkpoint"])
    sweep = run.sweep("validation", "best", run.checkpoints.folder / other / "model.pt")
    run.checkpoints.set_best({**run.checkpoints.best, "checkpoint": other, "model_hash": sweep.info.model_hash})
    assert "best" not in run.epochs("train")
    with pytest.raises(EquipoiseError, match=r"No values of split 'train' for epoch 'best'.*there are 0, 1\."):
        run.values("train")
    assert run.result("train").model_hash == sweep.info.model_hash  # swept anew, in this process
    assert len(run.values("train")) == 1257
    with pytest.raises(EquipoiseError, match="a store of another model"):
        valuation.read_values(plain.values_folder("train", "best"), {"model_hash": sweep.info.model_hash})


def test_a_data_set_that_changed_under_the_run_is_refused(plain, tmp_path):
    import shutil

    out, data = tmp_path / "run", tmp_path / "data"
    shutil.copytree(plain.path, out)
    prepare("digits", data, seed=1, chunk_rows=100, shard_rows=400)
    text = (out / "config.yaml").read_text().replace(plain.config.data, str(data))
    (out / "config.yaml").write_text(text)
    with pytest.raises(EquipoiseError, match=r"is not the data set that the run in .* began with"):
        Run.open(out).matrix("test")
    config = {**CONFIG, "data": str(data), "out": str(out)}
    with pytest.raises(EquipoiseError, match=r"is not the data set that the run in .* began with"):
        equipoise.fit(config)


def test_a_window_is_read_once(plain, data):
    from equipoise.pipelines import batches

    window = batches.ReadWindow(EpochSpec(data, str(plain.plan(1)), 5, 1, 50, 0, 1))
    limit, batches.BLOCK_BYTES = batches.BLOCK_BYTES, 4096  # many blocks a window
    try:
        blocks = list(window({"window": np.array([0, 1])}))
    finally:
        batches.BLOCK_BYTES = limit
    assert len(blocks) > 50
    # A column of a chunk is read once: at most one read for each of (labels, left, right), 13 chunks.
    assert window._reader.row_groups <= 3 * 13
