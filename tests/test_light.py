"""Training without Ray: what it says of the rows that it trained on (its arithmetic is compared with `fit` in test_fit)."""

import numpy as np
import pytest

from equipoise import valuation
from equipoise.balancers import BalancedStep
from equipoise.datasets.prepare import prepare
from equipoise.datasets.reading import Reader
from equipoise.pipelines.assembly import assemble
from equipoise.pipelines.config import load_config
from equipoise.pipelines.light import train_light, value_columns


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("digits") / "data"
    prepare("digits", folder)
    return str(folder)


def config(data, **keys):
    return load_config({"data": data, "out": "unused", "seed": 3, "batch_size": 50, **keys})


def test_seen_counts_every_row_of_every_batch(data):
    # 1,257 rows in batches of 50: a plain epoch shows each row once and pads with 43; the budget cuts the third epoch.
    seen = train_light(config(data, max_steps=60)).seen
    assert seen.shape == (1257, 3)
    assert seen.sum() == 60 * 50
    assert (seen[:, :2] == 0).all()
    assert seen[:, 2].min() == 2
    assert (np.bincount(seen[:, 2])[3:] > 0).any()


def test_seen_counts_the_copies_of_the_plan(data):
    # The plan of epoch 1, made here from the weights after epoch 0 alone.
    resampler = {"name": "sample", "options": {"warmup": 1}}
    first = train_light(config(data, max_epochs=1))
    reader = Reader(data)
    model = assemble(config(data, max_epochs=1), reader.manifest)
    model.load_state_dict(first.last)
    chunks, _ = value_columns(model, reader.read("train", np.arange(1257)), reader.manifest.build_task())
    wanted = np.concatenate([valuation.copies(chunk.contributions) for chunk in chunks])
    assert wanted.sum() > 300
    seen = train_light(config(data, max_epochs=2, resampler=resampler)).seen
    assert (seen[:, :2] == wanted).all()
    assert (seen[:, 2] >= 2).all()


def test_a_loss_of_no_rows_is_no_number(data):
    reader = Reader(data)
    columns = reader.read("validation", np.arange(50))
    columns["present"] = np.tile([False, True], (50, 1))
    made = config(data, max_epochs=1)
    _, matrix = value_columns(assemble(made, reader.manifest), columns, reader.manifest.build_task())
    assert np.isnan(matrix[1]["loss"])
    assert matrix[2]["rows"] == 50
    assert matrix[2]["loss"] > 0


@pytest.mark.parametrize(("name", "reported"), [("mslr", "mslr_coefficient"), ("mses", "mses_coefficient")])
def test_a_method_that_follows_validation_gets_it(data, name, reported, monkeypatch):
    # Two epochs to compare with: the third is trained by what validation of each half said.
    options = {"mslr": {"memory": 1}, "mses": {"patience": 1, "weight": 0.0}}[name]
    seen = []
    call = BalancedStep.__call__

    def watched(step, batch):
        result = call(step, batch)
        seen.append((step.epoch, tuple(result.statistics[f"{reported}_{m}"] for m in step.model.modalities)))
        return result

    monkeypatch.setattr(BalancedStep, "__call__", watched)
    # At the low rate nothing moves, and no loss gets lower.
    rate = {"mslr": 1e-3, "mses": 1e-12}[name]
    train_light(config(data, max_epochs=3, optimizer={"lr": rate}, balancer={"name": name, "options": options}))
    found = [{factors for epoch, factors in seen if epoch == e} for e in range(3)]
    assert found[0] == found[1] == {(1.0, 1.0)}
    [[left, right]] = found[2]  # the same in every step of the epoch
    assert (left, right) == (0.0, 0.0) if name == "mses" else 1.0 not in (left, right)


def test_a_run_that_scales_gradients_under_adam_says_so_once(data):
    with pytest.warns(UserWarning, match="Balancer 'ogm' scales gradients") as told:
        train_light(config(data, max_steps=3, balancer="ogm"))
    assert len([w for w in told if "scales gradients" in str(w.message)]) == 1


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_trains_as_well(data, precision):
    def best(**keys):
        return train_light(config(data, max_steps=60, balancer="summed", **keys)).best["value"]

    assert best(precision=precision) == pytest.approx(best(), abs=0.05)
