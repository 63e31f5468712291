"""Valuing beside training (lag 1), sweeps for the record, and actors that do not come back; on real Ray."""

import json
import os
import signal
import threading
import time

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
import torch
from digits_runs import CONFIG, assert_same_run, kill_when, weights

import equipoise
from equipoise import EquipoiseError, valuation
from equipoise.datasets.impairment import missing_rows
from equipoise.pipelines.checkpoint import Checkpoints, Position
from equipoise.pipelines.config import load_config
from equipoise.pipelines.light import train_light

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

LAG = {**CONFIG, "max_epochs": 5, "valuation": {"lag": 1}, "checkpoint": {"every_steps": 10, "keep": 1}}


@pytest.fixture(scope="module")
def lagged(ray_cluster, data, tmp_path_factory):
    """The undisturbed run with lag 1."""
    return equipoise.fit(LAG, data=data, out=str(tmp_path_factory.mktemp("runs") / "lagged"))


def store_hash(run, split, epoch):
    [path, *_] = sorted(run.values_folder(split, epoch).glob("*.parquet"))
    return json.loads(pq.read_schema(path).metadata[b"equipoise"])["model_hash"]


def test_a_plan_is_of_weights_one_epoch_older_and_never_older(lagged):
    rows = lagged.manifest.splits["train"].rows
    # Epoch 0 has no values before it; the sweep after it ran beside epoch 1, so epoch 2 is the first planned one.
    assert sorted(path.name for path in (lagged.path / "plans").glob("*.npy")) == ["0002.npy", "0003.npy", "0004.npy"]
    for epoch in (2, 3, 4):
        # The stored weights: validation of epoch e - 2 was on the epoch's own, the sweep was on the same.
        assert store_hash(lagged, "train", epoch - 2) == store_hash(lagged, "validation", epoch - 2)
        values = valuation.values_of(lagged.values("train", epoch - 2))
        counts = valuation.copies(valuation.shapley(values.score, values.present), values.present)
        assert (np.load(lagged.plan(epoch))[:, :2] == counts).all()
    hashes = {store_hash(lagged, "validation", epoch) for epoch in range(5)}
    assert len(hashes) == 5
    assert lagged.epochs("train") == [0, 1, 2, "best"], "the sweeps after epochs 3 and 4 would steer nothing"
    assert lagged.metrics["entries"].tolist()[:2] == [rows, rows]
    # Contributions stand in the row of the epoch whose weights they are of.
    for epoch in (0, 1, 2):
        found = lagged.values("train", epoch)["contribution_left"].to_numpy().mean()
        assert lagged.metrics["contribution/left"][epoch] == pytest.approx(found, abs=1e-12)
    assert lagged.metrics["contribution/left"][3:].isna().all()


@pytest.mark.slow
def test_lag_with_one_worker_is_the_light_run_bit_for_bit(lagged, data, tmp_path):
    settings = {"final": False, "lag": 1, "every": 2, "warmup": 1, "sample": 0.3}
    stopping = {"patience": 1, "min_delta": 0.02}
    # Impaired too: both roads must read the block, its epoch and its copies alike, and plan with what rows lack.
    block = {"missing": {"left": 0.3}, "noise": {"right": 2}, "share": 0.5}
    how = {"data": data, "workers": 1, "valuation": settings, "early_stopping": stopping, "impairment": block}
    one = equipoise.fit(LAG, out=str(tmp_path / "one"), max_epochs=9, **how)
    threads = torch.get_num_threads()
    torch.set_num_threads(json.loads((one.path / "environment.json").read_text())["threads"])
    light = train_light(one.config)
    plain = train_light(load_config(one.config.model_dump(), {"valuation": {"lag": 0}}))
    clean = train_light(one.config.model_copy(update={"impairment": None, "max_epochs": 2}))
    few = train_light(one.config.model_copy(update={"max_epochs": 2}))
    torch.set_num_threads(threads)
    assert [row["value"] for row in light.epochs] == one.metrics["validation/accuracy"].tolist()
    assert len(light.epochs) < 9, "patience was to end it"
    for name, tensor in weights(one).items():
        assert torch.equal(light.last[name], tensor), name
    assert any(not torch.equal(light.last[name], tensor) for name, tensor in plain.last.items())
    assert any(not torch.equal(few.last[name], tensor) for name, tensor in clean.last.items())
    lacking = np.flatnonzero(missing_rows(0.3, "left", "train", 1257))
    values = one.values("train", one.epochs("train")[0]).to_pandas().set_index("sample_id")
    assert (values["contribution_left"].isna() == values.index.isin(lacking)).all()


@pytest.mark.slow
def test_sweeps_for_the_record_change_nothing_but_the_record(ray_cluster, data, tmp_path):
    settings = {"final": False, "every": 2, "warmup": 1, "sample": 0.3}
    run = equipoise.fit(
        CONFIG, data=data, out=str(tmp_path / "r"), workers=1, resampler="none", max_epochs=4, valuation=settings
    )
    assert run.epochs("train") == [1, 3]
    first, second = (run.values("train", epoch)["sample_id"].to_numpy() for epoch in (1, 3))
    assert len(first) == len(second) == round(0.3 * 1257)
    assert set(first) != set(second)
    assert run.metrics["contribution/left"].notna().tolist() == [False, True, False, True]
    threads = torch.get_num_threads()
    torch.set_num_threads(json.loads((run.path / "environment.json").read_text())["threads"])
    light = train_light(run.config)
    torch.set_num_threads(threads)
    assert all(torch.equal(light.last[name], tensor) for name, tensor in weights(run).items())


@pytest.mark.slow
def test_kills_beside_a_sweep_change_nothing(faults, lagged, data, tmp_path):
    # The worker dies in epoch 1, while the sweep of epoch 0 runs beside it: what is missing of that is made first.
    faults.on("delay_reads", "slow_steps", "slow_sweeps")
    out = tmp_path / "killed"
    actor = kill_when(out, "ray::Valuer", lambda p: p["phase"] == "train" and p["epoch"] == 1 and p["done"] >= 200)
    worker = kill_when(out, "RayTrainWorker", lambda p: p["phase"] == "train" and p["epoch"] == 1 and p["done"] >= 600)
    conductor = kill_when(out, "ray::Conductor", lambda p: p["phase"] == "train" and p["epoch"] == 2)
    run = equipoise.fit(LAG, data=data, out=str(out))
    assert [len(k.killed) for k in (actor, worker, conductor)] == [1, 1, 1]
    assert_same_run(run, lagged)


def test_retention_keeps_weights_whose_sweep_is_unfinished(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    positions = [Position(1, 0), Position(1, 10), Position(1, 20), Position(1, 30)]
    for position in positions:
        checkpoints.commit(checkpoints.draft(position, {"w": torch.zeros(1)}), position, {})
        checkpoints.retain(1, Position(1, 0))
    assert checkpoints.positions() == [Position(1, 0), Position(1, 30)]
    checkpoints.retain(1)
    assert checkpoints.positions() == [Position(1, 30)]


def lose_actors(faults, run):
    """From the sweep of train after epoch 1 on, no valuation actor lives."""

    def watch():
        while True:
            try:
                progress = json.loads((run / "progress.json").read_text())
            except (FileNotFoundError, json.JSONDecodeError):
                progress = {"phase": "", "epoch": 0}
            if progress["phase"] == "sweep of train" and progress["epoch"] == 1:
                faults.on("no_valuers")
                for process in psutil.Process().children(recursive=True):
                    if "ray::Valuer" in "".join(process.cmdline())[:60]:
                        process.send_signal(signal.SIGKILL)
                return
            time.sleep(0.02)

    threading.Thread(target=watch, daemon=True).start()


SHORT = {"timeout": 4.0, "final": False}


@pytest.mark.slow
def test_lost_actors_end_the_run_with_a_sentence_and_it_goes_on_when_they_are_back(faults, plain, data, tmp_path):
    faults.on("slow_sweeps")
    lose_actors(faults, tmp_path / "stop")
    lost = r"The 2 valuation actors are lost: none of them has finished a chunk for 4 s"
    with pytest.raises(EquipoiseError, match=lost):
        equipoise.fit(CONFIG, data=data, out=str(tmp_path / "stop"), valuation=SHORT)
    faults.off()
    run = equipoise.fit(CONFIG, data=data, out=str(tmp_path / "stop"), valuation=SHORT)
    for name, tensor in weights(plain).items():
        assert torch.equal(tensor, weights(run)[name]), name


@pytest.mark.slow
def test_without_actors_a_run_trains_on_with_the_last_plan_and_says_so(faults, plain, data, tmp_path):
    faults.on("slow_sweeps")
    lose_actors(faults, tmp_path / "reuse")
    run = equipoise.fit(
        CONFIG,
        data=data,
        out=str(tmp_path / "reuse"),
        valuation={"timeout": 4.0},
        on_valuation_loss="reuse",
        max_epochs=4,
    )
    assert run.metrics["reused_plan"].tolist() == [0, 0, 1, 1]
    assert (np.load(run.plan(1)) == np.load(plain.plan(1))).all()
    for epoch in (2, 3):
        assert (np.load(run.plan(epoch)) == np.load(run.plan(1))).all()
    # Each epoch is validated all the same, on its own weights.
    assert run.metrics["validation/accuracy"].notna().all()
    assert len({store_hash(run, "validation", epoch) for epoch in range(4)}) == 4
    # The last sweep, of the best checkpoint, is made as well, in the process that started the run.
    assert run.epochs("train") == [0, "best"]
    assert run.finished


@pytest.mark.slow
def test_the_first_interrupt_leaves_a_checkpoint_that_goes_on_to_the_same_end(faults, plain, data, tmp_path):
    faults.on("slow_steps")
    out = tmp_path / "stopped"

    def interrupt():
        while True:
            try:
                progress = json.loads((out / "progress.json").read_text())
            except (FileNotFoundError, json.JSONDecodeError):
                progress = {"phase": "", "epoch": 0, "done": 0}
            if progress["phase"] == "train" and progress["epoch"] == 1 and progress["done"] >= 250:
                os.kill(os.getpid(), signal.SIGINT)
                return
            time.sleep(0.02)

    threading.Thread(target=interrupt, daemon=True).start()
    config = {**CONFIG, "checkpoint": {}}
    with pytest.raises(
        KeyboardInterrupt, match=r"Stopped before step \d+ of epoch 1\. The newest checkpoint is epoch-0001"
    ):
        equipoise.fit(config, data=data, out=str(out))
    stopped = json.loads((out / "stopped.json").read_text())
    [*_, newest] = Checkpoints(out / "checkpoints").positions()
    assert newest == Position(1, stopped["step"]), "in mid-epoch, though no checkpoint was due"
    assert_same_run(equipoise.fit(config, data=data, out=str(out)), plain)


@pytest.mark.slow
def test_an_epoch_of_one_step_can_be_interrupted_too(ray_cluster, data, tmp_path):
    out = tmp_path / "short"

    def interrupt():
        while not (out / "checkpoints" / "epoch-0002-step-000000").exists():
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    short = {**CONFIG, "resampler": "none", "batch_size": 1257, "max_epochs": 200, "checkpoint": {}}
    with pytest.raises(KeyboardInterrupt, match=r"Stopped before step 0 of epoch \d+\. The newest checkpoint is"):
        equipoise.fit(short, data=data, out=str(out))
    stopped = json.loads((out / "stopped.json").read_text())
    assert Checkpoints(out / "checkpoints").positions()[-1] == Position(stopped["epoch"], 0)


def test_a_folder_that_a_kill_left_with_next_to_nothing_is_gone_on_with(data, tmp_path):
    from equipoise.pipelines.preflight import check_folder
    from equipoise.pipelines.run import write_config

    config = load_config({**CONFIG, "data": data, "out": str(tmp_path)})
    (tmp_path / ".lock").touch()
    (tmp_path / ".config.yaml.123.part").touch()
    assert check_folder(config) == "new"
    write_config(tmp_path / "config.yaml", config)  # written first, the manifest after it
    assert check_folder(config) == "unfinished"


def test_one_fit_at_a_time_in_a_folder(ray_cluster, data, tmp_path):
    from filelock import FileLock

    out = tmp_path / "busy"
    out.mkdir()
    config = load_config({**CONFIG, "data": data, "out": str(out)})
    from equipoise.pipelines.run import write_config

    write_config(out / "config.yaml", config)
    with (
        FileLock(out / ".lock"),
        pytest.raises(EquipoiseError, match=r"Another `equipoise fit` is at work in .*busy"),
    ):
        equipoise.fit(config.model_dump())
