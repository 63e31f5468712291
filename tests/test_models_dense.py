"""Dense fusion: at every position it is the late fusion of the features there."""

from itertools import product

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from equipoise import valuation
from equipoise.models import (
    DenseFusion,
    LateFusion,
    Modality,
    ModelConfig,
    Segmentation,
    UNet,
    absent_key,
    build_model,
    check_ownership,
)
from equipoise.models.contract import Absence
from equipoise.models.errors import EquipoiseError
from equipoise.models.fusion import FUSIONS
from equipoise.valuation.coalitions import members

NAMES, REGIONS, D = ("t1", "t2", "flair"), 2, 4
LEGAL = [(f, a) for f, a in product(FUSIONS, Absence.__args__) if a in FUSIONS[f].absences]
every = pytest.mark.parametrize(("fusion", "absence"), LEGAL)
counts = pytest.mark.parametrize("count", [2, 3])
complete = pytest.mark.parametrize("complete", [True, False])


class Given(nn.Module):
    """An encoder that gives its input: features are whatever a test wants."""

    def __init__(self, out_features):
        super().__init__()
        self.out_features = out_features
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x):
        return self.scale * x


def dense(fusion="concat", absence="feature", count=2, dims=2, unimodal="auto", dtype=torch.float64, **how):
    torch.manual_seed(0)
    encoders = {m: UNet(1, out_features=D, hidden=2, depth=1, dims=dims) for m in NAMES[:count]}
    return DenseFusion(encoders, REGIONS, fusion, absence, unimodal, dim=5, **how).to(dtype)


def batch(count=2, rows=7, size=(5, 3), complete=False, dtype=torch.float64, seed=1):
    g = torch.Generator().manual_seed(seed)
    present = (torch.rand(rows, count, generator=g) < 0.6) | complete
    present[:, 0] |= ~present.any(dim=1)
    return {
        "sample_id": torch.arange(rows),
        "copy": torch.zeros(rows, dtype=torch.int16),
        "inputs": {m: torch.randn(rows, 1, *size, generator=g, dtype=torch.float64).to(dtype) for m in NAMES[:count]},
        "present": present,
        "target": (torch.rand(rows, REGIONS, *size, generator=g) < 0.4).to(torch.uint8),
    }


@every
@counts
@complete
def test_cached_coalitions_are_full_passes_bit_for_bit(fusion, absence, count, complete):
    model, rows = (
        dense(fusion, absence, count, dtype=torch.float32),
        batch(count, complete=complete, dtype=torch.float32),
    )
    task, found = Segmentation(["WT", "ET"]), {}
    score = valuation.sweep(model, rows, task, observe=lambda c, z, there: found.update({c: z}))
    for c, inside in enumerate(torch.from_numpy(members(count)), start=1):
        both = rows["present"] & inside
        there = both.any(dim=1)
        with torch.no_grad():
            full = model(rows["inputs"], torch.where(there[:, None], both, rows["present"])).logits
        assert torch.equal(found[c][there], full[there])
        assert torch.equal(score[there, c - 1], task.benefit(full, rows["target"])[there])
        assert score[~there, c - 1].isnan().all()


@every
@pytest.mark.parametrize("size", [(5, 3), (1, 1), (2, 3, 2)])
def test_a_position_is_a_row_of_late_fusion(fusion, absence, size):
    torch.manual_seed(2)
    values = {m: torch.randn(D, *size).double() for m in NAMES} if absence in ("input", "mean") else None
    model = DenseFusion({m: Given(D) for m in NAMES}, REGIONS, fusion, absence, absent_values=values, dim=5).double()
    rows = batch(3, size=size)
    inputs = {m: torch.randn(7, D, *size, dtype=torch.float64) for m in NAMES}
    out = model(inputs, rows["present"])
    assert out.logits.shape == (7, REGIONS, *size)
    for position in product(*map(range, size)):
        at = (slice(None), slice(None), *position)
        one = LateFusion({m: Given(D) for m in NAMES}, REGIONS, fusion, absence, model.unimodal, dim=5).double()
        one.fusion, one.heads, one.tokens = model.fusion, model.heads, model.tokens
        here = None if values is None else {m: value[at[1:]] for m, value in values.items()}
        one.absent_values = type(one.absent_values)(NAMES, here)
        wanted = one({m: x[at] for m, x in inputs.items()}, rows["present"])
        torch.testing.assert_close(out.logits[at], wanted.logits, rtol=1e-12, atol=1e-13)
        for m, logits in wanted.unimodal_logits.items():
            # Of an absent modality unimodal logits mean nothing.
            has = rows["present"][:, NAMES.index(m)]
            torch.testing.assert_close(out.unimodal_logits[m][at][has], logits[has], rtol=1e-12, atol=1e-13)


def test_a_concat_head_is_a_convolution_of_one():
    model, rows = dense(count=3), batch(3, complete=True)
    features = model.features(rows["inputs"], rows["present"])
    head = model.fusion.head
    maps = torch.cat([features[m] for m in NAMES], dim=1)
    wanted = F.conv2d(maps, head.weight[:, :, None, None], head.bias)
    torch.testing.assert_close(model.fuse(features, rows["present"]), wanted, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("fusion", [f for f in FUSIONS if FUSIONS[f].splits and FUSIONS[f].linear])
def test_split_maps_add_up_to_the_fused_ones(fusion):
    model, rows = dense(fusion, unimodal="split"), batch(complete=True)
    out = model(rows["inputs"], rows["present"])
    torch.testing.assert_close(sum(out.unimodal_logits.values()), out.logits, rtol=1e-12, atol=1e-13)


@every
def test_rows_are_independent_and_absent_pictures_are_never_read(fusion, absence):
    model, rows = dense(fusion, absence, 3), batch(3)
    whole = model(rows["inputs"], rows["present"]).logits
    order = torch.tensor([4, 2, 0, 6, 1, 5, 3])
    mixed = model({m: x[order] for m, x in rows["inputs"].items()}, rows["present"][order]).logits
    torch.testing.assert_close(mixed, whole[order], rtol=1e-11, atol=1e-12)
    for i in range(7):
        alone = model({m: x[i : i + 1] for m, x in rows["inputs"].items()}, rows["present"][i : i + 1]).logits
        torch.testing.assert_close(alone[0], whole[i], rtol=1e-11, atol=1e-12)
    garbage = {
        m: torch.where(rows["present"][:, i, None, None, None], x, torch.nan)
        for i, (m, x) in enumerate(rows["inputs"].items())
    }
    assert torch.equal(model(garbage, rows["present"]).logits, whole)


@every
def test_no_rows_one_position_and_a_modality_that_no_row_has(fusion, absence):
    model, rows = dense(fusion, absence, 3), batch(3, size=(1, 1))
    none = model({m: x[:0] for m, x in rows["inputs"].items()}, rows["present"][:0])
    assert none.logits.shape == (0, REGIONS, 1, 1)
    none.logits.sum().backward()
    for lacking in range(3):
        present = torch.ones(7, 3, dtype=torch.bool)
        present[:, lacking] = False
        assert model(rows["inputs"], present).logits.isfinite().all()
    # Nothing at all: finite, without a meaning.
    assert model(rows["inputs"], torch.zeros(7, 3, dtype=torch.bool)).logits.isfinite().all()


@pytest.mark.parametrize("absence", ["feature", "input", "token", "drop"])
def test_an_encoder_runs_on_the_rows_that_have_its_modality_alone(absence):
    model = dense("attention", absence, 3)
    rows = batch(3)
    rows["present"][:, 2] = False
    rows["present"][:, 0] |= ~rows["present"].any(dim=1)
    seen = {m: [] for m in NAMES}
    for m in NAMES:
        model.encoders[m].register_forward_hook(lambda _, args, out, m=m: seen[m].append(len(args[0])))
    valuation.sweep(model, rows, Segmentation(["WT", "ET"]))
    stands_in = [1] if absence == "input" else []
    have = rows["present"].sum(dim=0).tolist()
    assert seen == {m: ([have[i]] if have[i] else []) + stands_in for i, m in enumerate(NAMES)}


@pytest.mark.parametrize(
    ("fusion", "absence", "unimodal"),
    [(f, a, u) for f, a in LEGAL for u in ("split", "heads", "coalition") if u != "split" or FUSIONS[f].splits],
)
def test_every_parameter_has_one_owner(fusion, absence, unimodal):
    model = dense(fusion, absence, 3, unimodal=unimodal)
    groups = check_ownership(model)
    assert sum(map(len, groups.values())) == len(list(model.parameters()))
    for m in NAMES:
        assert {id(p) for p in model.encoders[m].parameters()} <= {id(p) for p in groups[m]}
    assert not groups["shared"]


def test_what_stands_for_an_absent_modality_is_in_every_position():
    model, rows = dense("sum", "token", 2), batch(2)
    features = model.features(rows["inputs"], rows["present"])
    assert features[absent_key("t1")].shape == (1, D)
    rows["present"][0] = torch.tensor([True, False])
    out = model.fuse(features, rows["present"])[0]
    head = model.fusion.head
    wanted = F.conv2d(features["t1"][0] + model.tokens["t2"][:, None, None], head.weight[:, :, None, None], head.bias)
    torch.testing.assert_close(out, wanted, rtol=1e-12, atol=1e-13)


def test_no_shortcut_of_maps():
    model, rows = dense("concat", "feature", 2), batch(2)
    assert not model.linear_head
    with pytest.raises(EquipoiseError, match="DenseFusion has none: use shortcut=False"):
        next(valuation.coalition_logits(model, rows, shortcut=True))
    with pytest.raises(EquipoiseError, match="DenseFusion has no terms a modality"):
        model.linear_terms(model.features(rows["inputs"], rows["present"]))


def volumes(name="t1", shape=(1, 4, 4, 4), **how):
    return Modality(name=name, shape=shape, **how)


def build(modalities, **config):
    return build_model(ModelConfig(**config), modalities, REGIONS, dense=True)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (
            lambda: build([volumes(), Modality(name="note", kind="text", max_length=5)]),
            "Segmentation needs images, or arrays of shape (channels, H, W) or (channels, D, H, W), and modality 'note' is "
            "text",
        ),
        (lambda: build([volumes(), volumes("vector", (6,))]), "modality 'vector' is array of shape (6,): leave it out"),
        (
            lambda: build([volumes()], kind="early", join="tokens"),
            "model.join='tokens' gives one prediction a row, not one a",
        ),
        (
            lambda: build([volumes(shape=(1, 4, 4))], encoder={"kind": "cnn2d"}),
            "Encoder kind 'cnn2d' has no meaning for modality 't1' (array of shape (1, 4, 4)) in segmentation: use 'auto', "
            "'unet'.",
        ),
        (
            lambda: dense()({"t1": torch.zeros(2, 1, 4, 4), "t2": torch.zeros(2, 1, 4, 5)}, torch.ones(2, 2) > 0),
            "modality 't1' has positions (4, 4) and 't2' (4, 5): bring them to one size.",
        ),
        (
            lambda: DenseFusion({"t1": nn.Conv2d(1, 3, 3)}, 2),
            "has no Linear layer, so give it an attribute `out_features`.",
        ),
    ],
)
def test_what_has_no_meaning_is_one_sentence(make, sentence):
    with pytest.raises(EquipoiseError) as error:
        make()
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


def test_an_encoder_that_gives_no_map_of_the_inputs_size_is_named():
    class Shrinks(nn.Conv2d):
        out_features = 3

    model = DenseFusion({"t1": Shrinks(1, 3, 3)}, 2)
    with pytest.raises(EquipoiseError) as error:
        model({"t1": torch.zeros(2, 1, 4, 4)}, torch.ones(2, 1) > 0)
    assert "must give [n, 3, 4, 4] for n = 2 rows, but it gave (2, 3, 2, 2)" in str(error.value)
    assert "give a map of the input's size" in str(error.value)
