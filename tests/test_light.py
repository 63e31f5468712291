"""Training without Ray: what it says of the rows that it trained on (its arithmetic is compared with `fit` in test_fit)."""

import numpy as np
import pytest

from equipoise import valuation
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
