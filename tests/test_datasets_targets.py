"""Targets that are no class: what is taken, how it is stored, and what is refused."""

import json
from decimal import Decimal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from sklearn.datasets import load_diabetes, load_digits

from equipoise.datasets.manifest import Manifest
from equipoise.datasets.prepare import prepare
from equipoise.datasets.reading import Reader
from equipoise.datasets.sources.volumes import REGIONS
from equipoise.datasets.task_spec import TaskSpec
from equipoise.models.errors import EquipoiseError
from equipoise.models.modality import Modality

X = [Modality(name="x", shape=(2,))]
ROWS = 12


def table(folder, targets, **columns):
    """A csv of twelve rows whose targets repeat `targets`."""
    rows = [
        {
            "source_id": f"r{i}",
            "split": ("train", "train", "validation", "test")[i % 4],
            "target": targets[i % len(targets)],
            "x": json.dumps([i, -i]),
        }
        for i in range(ROWS)
    ]
    path = folder / "rows.csv"
    pd.DataFrame(rows).assign(**columns).to_csv(path, index=False)
    return path


def by_id(root, split="train"):
    reader = Reader(root)
    columns = reader.read(split, np.arange(reader.manifest.splits[split].rows))
    return dict(zip(reader.source_ids(split, 0), columns["target"], strict=True))


@pytest.mark.parametrize(
    "targets",
    [["dog;cat", "cat", "", "dog; hen"], ["[0, 1]", "[1, 0]"], ['["cat"]', '["dog", "cat"]']],
    ids=["names", "zeros and ones", "a list of names"],
)
def test_multilabel_targets(tmp_path, targets):
    if "" in targets:
        targets = ["dog;cat", "cat", "hen", "dog; hen"]
    labels = ["cat", "dog", "hen"] if "hen" in targets else ["cat", "dog"]
    path = table(tmp_path, targets)
    manifest = prepare(path, tmp_path / "out", modalities=X, task="multilabel", task_labels=labels)
    assert manifest.task.kind == "multilabel"
    assert manifest.task.benefit == "labels"
    for name, found in by_id(tmp_path / "out").items():
        cell = targets[int(name[1:]) % len(targets)]
        wanted = [label in cell for label in labels] if "0" not in cell else json.loads(cell)
        assert found.dtype == np.uint8
        assert found.tolist() == [int(w) for w in wanted]


def test_regression_targets_and_their_scale(tmp_path):
    numbers = [1.5, -2.0, 4.25, 0.0]
    path = table(tmp_path, numbers)
    prepare(path, tmp_path / "out", modalities=X, task={"kind": "regression", "tolerance": 0.5})
    manifest = Manifest.load(tmp_path / "out")
    found = by_id(tmp_path / "out")
    assert {n: float(v[0]) for n, v in found.items()} == {n: numbers[int(n[1:]) % 4] for n in found}
    train = np.array([v[0] for v in found.values()], np.float64)
    assert manifest.fitted["target"] == {"mean": [train.mean()], "deviation": [pytest.approx(train.std())]}
    task = manifest.build_task()
    assert (task.name, task.num_outputs) == ("regression", 1)


@pytest.mark.parametrize(
    ("task", "labels", "targets", "sentence"),
    [
        ("multilabel", None, ["cat"], r"The task 'multilabel' needs the names of its labels: give task_labels"),
        (
            "multilabel",
            ["cat", "dog"],
            ["cat;dgo"],
            r"Row 0 \('r0', train\) has the label 'dgo', .*: did you mean 'dog'",
        ),
        ("multilabel", ["cat", "dog"], ["[1, 2]"], r"has 2 at \[1\] of its target, where 0 or 1 belongs"),
        ("multilabel", ["cat", "dog"], ["[1]"], r"has a target of shape \(1,\): expected \(2,\)"),
        ("multilabel", ["cat", "cat"], ["cat"], r"The label 'cat' is given twice"),
        ("regression", None, ["1"], r"A regression needs task.tolerance: how far a prediction may lie off"),
        ({"kind": "regression", "tolerance": 1}, None, ["1_000"], r"has the target '1_000', where a number belongs"),
        ({"kind": "regression", "tolerance": 1}, None, ["1e999"], r"has the target inf, which is not a finite number"),
        (
            {"kind": "regression", "tolerance": -1},
            None,
            ["1"],
            r"Option 'tolerance' of task: Input should be greater than 0",
        ),
        ({"kind": "regression", "benefit": "sgn"}, None, ["1"], r"Unknown task.benefit .*'sgn': did you mean 'sign'"),
        (
            {"kind": "classification", "tolerance": 1},
            ["a", "b"],
            ["a"],
            r"task.tolerance has no meaning for the task 'cl",
        ),
        ({"kind": "segmentation"}, ["a"], ["[1]"], r"A segmentation needs task.shape, the shape of a mask: \(H, W\)"),
        ("segmentatoin", None, ["a"], r"Unknown task 'segmentatoin': did you mean 'segmentation'"),
        (3, None, ["a"], r"task is a kind \(classification, multilabel"),
    ],
)
def test_each_fault_is_one_sentence(tmp_path, task, labels, targets, sentence):
    path = table(tmp_path, targets)
    with pytest.raises(EquipoiseError, match=sentence):
        prepare(path, tmp_path / "out", modalities=X, task=task, task_labels=labels)
    assert not (tmp_path / "out").exists()


def test_digit_attributes_are_those_of_the_digits(tmp_path):
    manifest = prepare("digit-attributes", tmp_path / "out", chunk_rows=4096, shard_rows=4096)
    assert manifest.task.labels == ("even", "prime", "large", "loop")
    digits = load_digits().target
    for split in manifest.splits:
        for name, (even, prime, large, loop) in by_id(tmp_path / "out", split).items():
            d = int(digits[int(name.split("-")[1])])
            assert even == (d % 2 == 0)
            assert large == (d > 4)
            assert loop == (d in {0, 6, 8, 9})
            assert prime == (d > 1 and all(d % k for k in range(2, d)))


def test_diabetes_is_what_scikit_learn_ships(tmp_path):
    prepare("diabetes", tmp_path / "out", chunk_rows=512, shard_rows=512)
    wanted = load_diabetes().target
    seen = {}
    for split in ("train", "validation", "test"):
        seen |= {n: v[0] for n, v in by_id(tmp_path / "out", split).items()}
    assert len(seen) == 442
    assert all(v == np.float32(wanted[int(n.split("-")[1])]) for n, v in seen.items())


def test_volumes_are_nested_and_repeatable(tmp_path):
    a = prepare("volumes", tmp_path / "a", volumes=20, size=8, seed=1)
    assert a.hash == prepare("volumes", tmp_path / "b", volumes=20, size=8, seed=1).hash
    assert a.hash != prepare("volumes", tmp_path / "c", volumes=20, size=8, seed=2).hash
    reader = Reader(tmp_path / "a")
    columns = reader.read("train", np.arange(14))
    masks = columns["target"]
    assert masks.shape == (14, 3, 8, 8, 8)
    assert a.task.labels == REGIONS
    assert (masks[:, 1] <= masks[:, 0]).all()
    assert (masks[:, 2] <= masks[:, 1]).all()
    whole, enhancing = masks[:, 0].any(axis=(1, 2, 3)), masks[:, 2].any(axis=(1, 2, 3))
    assert whole.all()
    assert 0 < enhancing.sum() < 14
    # What a sequence shows: flair is brighter in the whole, t1 no different.
    inside = masks[:, 0].astype(bool)
    bright = {m: columns[m][:, 0][inside].mean() - columns[m][:, 0][~inside].mean() for m in ("flair", "t1ce")}
    assert bright["flair"] > 1.0 > bright["t1ce"]


def test_a_damaged_target_is_named(tmp_path):
    prepare("volumes", tmp_path / "out", volumes=20, size=8)
    reader = Reader(tmp_path / "out")
    object.__setattr__(reader.manifest.task, "shape", (8, 8, 9))
    with pytest.raises(EquipoiseError, match="A stored target does not have 1728 bytes: the shard is damaged"):
        reader.read("train", [0])


def test_large_regression_targets_keep_their_digits(tmp_path):
    numbers = [1_700_000_000 + i for i in range(ROWS)]
    prepare(table(tmp_path, numbers), tmp_path / "out", modalities=X, task={"kind": "regression", "tolerance": 0.5})
    found = by_id(tmp_path / "out")
    assert {n: int(v[0]) for n, v in found.items()} == {n: numbers[int(n[1:])] for n in found}
    task = Manifest.load(tmp_path / "out").build_task()
    target = torch.from_numpy(np.stack(list(found.values())))
    exact = (target - task.center) / task.scale
    assert task.benefit(exact, target).tolist() == [1.0] * len(found)
    assert task.losses(exact, target).max() < 1e-6
    assert task.benefit(exact + 1 / task.scale, target).sum() == 0


def test_decimals_of_a_parquet_file_are_numbers(tmp_path):
    columns = {
        "source_id": [f"r{i}" for i in range(ROWS)],
        "split": [("train", "train", "validation", "test")[i % 4] for i in range(ROWS)],
        "target": pa.array([Decimal("1.50")] * ROWS, pa.decimal128(5, 2)),
        "x": [[i, -i] for i in range(ROWS)],
    }
    pq.write_table(pa.table(columns), tmp_path / "rows.parquet")
    task = {"kind": "regression", "tolerance": 0.5}
    prepare(tmp_path / "rows.parquet", tmp_path / "out", modalities=X, task=task)
    assert {float(v[0]) for v in by_id(tmp_path / "out").values()} == {1.5}


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ({"kind": "segmentation", "labels": ("A", "a"), "shape": (2, 2)}, "'A' and 'a' differ in capitals only"),
        ({"kind": "multilabel", "labels": ("x;1", "y")}, "'x;1' could not be told from others in a cell"),
        ({"kind": "multilabel", "labels": ("x ", "y")}, "'x ' could not be told from others"),
    ],
)
def test_names_that_could_not_be_used_are_refused(spec, sentence):
    with pytest.raises(ValueError, match=sentence):
        TaskSpec(**spec)


def test_masks_have_the_positions_of_the_inputs(tmp_path):
    flat = [Modality(name="t1", shape=(1, 4, 8))]
    spec = TaskSpec(kind="segmentation", labels=("a",), shape=(8, 4))
    with pytest.raises(EquipoiseError, match=r"Modality 't1' has positions \(4, 8\), and a mask has \(8, 4\)"):
        spec.check_modalities(flat)
    with pytest.raises(EquipoiseError, match="modality 'x' is text"):
        spec.check_modalities([Modality(name="x", kind="text", max_length=3)])
    with pytest.raises(EquipoiseError, match=r"has positions \(16, 16, 16\), and a mask has \(16, 16, 8\)"):
        prepare("volumes", tmp_path / "out", volumes=20, task={"shape": (16, 16, 8)})
    assert not (tmp_path / "out").exists()


def test_a_tolerance_goes_with_the_benefit_it_belongs_to(tmp_path):
    manifest = prepare("diabetes", tmp_path / "out", task={"benefit": "sign"})
    assert (manifest.task.benefit, manifest.task.tolerance) == ("sign", None)
