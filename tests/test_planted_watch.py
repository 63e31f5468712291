"""Planted truth: a modality that was replaced has the lower contribution."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

from equipoise.datasets.prepare import prepare
from equipoise.datasets.reading import Reader

pytest.importorskip("seglearn", reason="the data set watch is part of seglearn: pip install 'equipoise[data]'")
PATH = Path(__file__).parent.parent / "examples" / "planted_watch.py"


@pytest.fixture(scope="module")
def planted_watch():
    spec = importlib.util.spec_from_file_location("planted_watch", PATH)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look themselves up
    spec.loader.exec_module(module)
    return module


def test_contributions_find_replaced_accelerometers(planted_watch, tmp_path):
    found = []
    for k in (2, 4):
        prepare("watch", tmp_path / str(k), fold=k, **planted_watch.DATA)
        found.append(planted_watch.run_fold(tmp_path / str(k), seed=5, steps=300)["joint"])
    replaced = np.concatenate([f.replaced for f in found])
    assert 0.28 < replaced.mean() < 0.39
    assert planted_watch.auc(replaced, np.concatenate([f.contribution for f in found])) >= 0.85
    # Without faults there is nothing to find.
    assert abs(planted_watch.auc(replaced, np.concatenate([f.correct for f in found]).astype(float)) - 0.5) < 0.08


def test_a_planted_row_has_the_modality_of_a_row_of_another_class(planted_watch, tmp_path):
    prepare("watch", tmp_path, fold=0, overwrite=True, **planted_watch.DATA)
    reader = Reader(tmp_path)
    columns = reader.read("test", np.arange(reader.manifest.splits["test"].rows))
    planted, replaced = planted_watch.plant(columns, "accelerometer", seed=1)
    same = (planted["accelerometer"] == columns["accelerometer"]).all(axis=1)
    assert (same == ~replaced).all()
    rows = {x.tobytes(): label for x, label in zip(columns["accelerometer"], columns["target"], strict=True)}
    assert all(rows[planted["accelerometer"][i].tobytes()] != columns["target"][i] for i in np.flatnonzero(replaced))
    assert (planted["gyroscope"] == columns["gyroscope"]).all()
