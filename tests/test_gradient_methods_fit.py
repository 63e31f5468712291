"""The methods that keep gradients apart, with sample-level resampling, end to end under Ray."""

import json

import numpy as np
import pytest
import torch
from digits_runs import CONFIG, assert_same_run, kill_when, weights

import equipoise
from equipoise.pipelines.light import train_light


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.parametrize(("name", "reported"), [("balgrad", "balgrad_cosine"), ("gmd", "gmd_weight_left+right")])
def test_with_the_resampler_under_ray(faults, data, tmp_path, name, reported):
    settings = {"data": data, "balancer": name}
    run = equipoise.fit(CONFIG, **settings, out=str(tmp_path / "two"))
    assert run.steps[reported].notna().all()
    assert run.metrics.filter(like="copies/").iloc[-1].sum() > 0, "nothing was resampled"
    matrix = run.result("test").matrix
    assert matrix[max(matrix)]["accuracy"] > 0.9
    # One worker is the run without Ray, bit for bit; two workers make the same first epoch to rounding.
    one = equipoise.fit(
        CONFIG, **settings, out=str(tmp_path / "one"), workers=1, max_epochs=2, valuation={"final": False}
    )
    threads = torch.get_num_threads()
    torch.set_num_threads(json.loads((one.path / "environment.json").read_text())["threads"])
    light = train_light(one.config)
    torch.set_num_threads(threads)
    for parameter, tensor in weights(one).items():
        assert torch.equal(light.last[parameter], tensor), parameter
    first = [r.steps[r.steps["epoch"] == 0]["loss"].to_numpy() for r in (one, run)]
    np.testing.assert_allclose(*first, rtol=1e-4)
    # A worker killed in mid-epoch: the same run in the end, bit for bit.
    faults.on("slow_steps")
    out = tmp_path / "killed"
    worker = kill_when(out, "RayTrainWorker", lambda p: p["phase"] == "train" and p["epoch"] == 1 and p["done"] >= 600)
    again = equipoise.fit(CONFIG, **settings, out=str(out))
    assert len(worker.killed) == 1
    assert_same_run(again, run)
