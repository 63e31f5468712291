"""Early fusion by concatenation: zeros are what absence is, everything is one full pass; and as a run, beside Dynamic Sharing."""

import pytest
import torch
from light_runs import light_run
from pydantic import ValidationError
from task_runs import OPTIONS

import equipoise
from equipoise import valuation
from equipoise.datasets import sources
from equipoise.datasets.prepare import prepare
from equipoise.models import (
    Classification,
    DynamicSharing,
    EarlyConcat,
    EquipoiseError,
    Modality,
    ModelConfig,
    Segmentation,
    build_model,
    check_ownership,
)
from equipoise.pipelines.export import export
from equipoise.pipelines.trained import from_run
from equipoise.valuation.coalitions import members

SHAPES = {0: {"a": (3,), "b": (2, 4)}, 2: {"a": (1, 5, 4), "b": (2, 5, 4)}}
dims = pytest.mark.parametrize("dims", [0, 2])


def model(dims, absence="drop", **how):
    torch.manual_seed(0)
    small = {"dim": 8, "depth": 1, "width": 1 / 8, "levels": 1}
    return EarlyConcat(SHAPES[dims], 3, dims, absence, **small, **how).double()


def rows(dims, n=7):
    g = torch.Generator().manual_seed(1)
    present = torch.rand(n, 2, generator=g) < 0.6
    present[:, 0] |= ~present.any(dim=1)
    target = torch.rand(n, 3, 5, 4, generator=g) < 0.4 if dims else torch.randint(0, 3, (n,), generator=g)
    return {
        "sample_id": torch.arange(n),
        "copy": torch.zeros(n, dtype=torch.int16),
        "inputs": {m: torch.randn(n, *shape, generator=g, dtype=torch.float64) for m, shape in SHAPES[dims].items()},
        "present": present,
        "target": target.to(torch.uint8) if dims else target,
    }


@dims
@pytest.mark.parametrize("absence", ["drop", "input", "mean"])
def test_absent_is_zeros_or_the_mean_given_as_if_measured(dims, absence):
    given = {"b": torch.full(SHAPES[dims]["b"], 0.7)} if absence == "mean" else None
    found, batch = model(dims, absence, absent_values=given), rows(dims)
    filled = {
        m: torch.where(
            batch["present"][:, i].reshape(7, *[1] * (x.ndim - 1)), x, 0.7 * (m == "b" and absence == "mean")
        )
        for i, (m, x) in enumerate(batch["inputs"].items())
    }
    wanted = found(filled, torch.ones(7, 2, dtype=torch.bool)).logits
    for i, m in enumerate(batch["inputs"]):
        batch["inputs"][m][~batch["present"][:, i]] = torch.nan
    torch.testing.assert_close(found(batch["inputs"], batch["present"]).logits, wanted, rtol=0, atol=1e-7)
    assert found(batch["inputs"], batch["present"]).features is None


@dims
def test_a_sweep_is_full_passes_and_nobody_owns_the_first_layer(dims):
    found, batch = model(dims), rows(dims)
    for c, logits in valuation.coalition_logits(found, batch):
        both = batch["present"] & torch.from_numpy(members(2)[c - 1])
        there = both.any(dim=1)
        with torch.no_grad():
            full = found(batch["inputs"], torch.where(there[:, None], both, batch["present"])).logits
        assert torch.equal(logits[there], full[there])
    task = Segmentation(["WT", "TC", "ET"]) if dims else Classification(3)
    assert valuation.sweep(found, batch, task).shape == (7, 3)
    groups = check_ownership(found)
    assert not groups["a"]
    assert not groups["b"]
    assert len(groups["shared"]) + len(groups["head"]) == len(list(found.parameters()))


def test_it_is_the_network_of_dynamic_sharing_but_for_the_first_layer_and_the_affines():
    scans = [Modality(name=m, shape=(1, 8, 8, 8)) for m in ("t1", "t1ce", "t2", "flair")]
    size = {"width": 0.25, "levels": 2}
    early = build_model(ModelConfig(kind="early", **size), scans, 3, dense=True)
    sharing = build_model(ModelConfig(kind="sharing", **size), scans, 3, dense=True)
    counts = {
        type(m): sum(p.numel() for name, p in m.named_parameters() if "norms" not in name) for m in (early, sharing)
    }
    assert counts[EarlyConcat] - counts[DynamicSharing] == 27 * 3 * 8  # three channels more into 8


def build(modalities, dense=False, **config):
    return build_model(ModelConfig(kind="early", **config), modalities, 3, dense=dense)


ARRAY, SCAN = Modality(name="a", shape=(6,)), Modality(name="a", shape=(1, 4, 4))
SONG = Modality(name="b", kind="sequence", max_length=5)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: build([ARRAY, SONG], join="concat"), "puts rows of one shape side by side, and modality 'b' is sequence"),
        (lambda: build([SCAN], True, dim=8), "model.dim has no meaning for model.kind='early' in segmentation: leave it out"),
        (lambda: build([ARRAY], width=1), "model.width has no meaning for model.kind='early' outside segmentation: leave"),
        (lambda: build([ARRAY], join="concat", heads=2), "for model.kind='early' and model.join='concat': leave it out."),
        (lambda: build([ARRAY], join="concat", absence="token"), "absence='token' has no meaning for early fusion"),
        (lambda: EarlyConcat({"a": (3,)}, 2, absence="feature"), "absence='feature' has no meaning for early fusion by conc"),
        (lambda: model(2)({"a": torch.ones(1, 1, 5, 4), "b": torch.ones(1, 2, 5, 5)}, torch.ones(1, 2) > 0),
         "modality 'a' has positions (5, 4) and 'b' (5, 5): bring them to one size."),
    ],
)  # fmt: skip
def test_what_has_no_meaning_is_one_sentence(make, sentence):
    with pytest.raises((EquipoiseError, ValidationError)) as error:
        make()
    assert sentence in str(error.value)


@pytest.fixture(scope="module")
def volumes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("volumes") / "data"
    prepare("volumes", folder, **OPTIONS["segmentation"])
    return folder


@pytest.mark.parametrize(
    ("kind", "balancer", "words"),
    [("sharing", "gmd", "run: Dynamic Sharing of t1"), ("early", "joint", "run: early fusion of t1")],
)
def test_a_run_of_a_segmentation_from_training_to_export(volumes, tmp_path, kind, balancer, words):
    how = {"kind": kind, "width": 0.125, "levels": 2}
    run = light_run(tmp_path / "run", volumes, model=how, balancer=balancer, batch_size=8, max_steps=3)
    matrix = run.matrix("validation")
    assert len(matrix) == 15
    assert len(run.values("validation")) == 6
    [row] = [
        {k: v.tolist() if hasattr(v, "tolist") else v for k, v in row.items()}
        for row in sources.load("volumes", **OPTIONS["segmentation"]).rows
        if row["source_id"] == "volume-00039"
    ]
    row["t1"] = None
    trained, other = from_run(run), equipoise.load_exported(export(run, tmp_path / "exported"))
    [a], [b] = trained.predict([row]), other.predict([row])
    assert all((a[region] == b[region]).all() for region in ("WT", "TC", "ET"))
    assert words in (tmp_path / "exported" / "README.md").read_text()
