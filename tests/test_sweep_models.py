"""The sweep against full passes, on the real models: bit for bit through head calls, to rounding through additions."""

from itertools import product

import numpy as np
import pytest
import torch

from equipoise import valuation
from equipoise.models import Classification, EarlyFusion, LateFusion, Patches
from equipoise.models.contract import Absence
from equipoise.models.encoders import GRU, MLP, CNN1d
from equipoise.models.errors import EquipoiseError
from equipoise.models.fusion import FUSIONS
from equipoise.valuation.coalitions import members

CLASSES, ROWS = 4, 37
LEGAL = [(f, a) for f, a in product(FUSIONS, Absence.__args__) if a in FUSIONS[f].absences]


def encoders(count):
    made = {"vector": MLP(6, out_features=8), "signal": CNN1d(3, out_features=8), "steps": GRU(2, out_features=8)}
    return dict(list(made.items())[:count])


def batch(count, seed=0, dtype=torch.float32, complete=False):
    rng = np.random.default_rng(seed)
    present = torch.from_numpy(rng.random((ROWS, count)) < 0.7) | complete
    present[:, 0] |= ~present.any(dim=1)
    inputs = {
        "vector": torch.from_numpy(rng.normal(size=(ROWS, 6))).to(dtype),
        "signal": torch.from_numpy(rng.normal(size=(ROWS, 20, 3))).to(dtype),
        "steps": torch.from_numpy(rng.normal(size=(ROWS, 9, 2))).to(dtype),
        "steps_length": torch.from_numpy(rng.integers(0, 10, ROWS)),
    }
    return {
        "sample_id": torch.arange(ROWS),
        "copy": torch.zeros(ROWS, dtype=torch.int16),
        "inputs": {m: x for m, x in inputs.items() if m.split("_")[0] in list(encoders(count))},
        "present": present,
        "target": torch.from_numpy(rng.integers(0, CLASSES, ROWS)),
    }


@torch.no_grad()
def naive(model, rows):
    """{coalition: (logits of a full pass, which rows have any of it)}"""
    out = {}
    model.eval()
    for c, inside in enumerate(torch.from_numpy(members(len(model.modalities))), start=1):
        both = rows["present"] & inside
        there = both.any(dim=1)
        out[c] = model(rows["inputs"], torch.where(there[:, None], both, rows["present"])).logits, there
    return out


def check_exact(model, rows):
    task = Classification(CLASSES)
    expected = naive(model, rows)
    for c, logits in valuation.coalition_logits(model, rows):
        # Rows without a modality of the coalition have no prediction: both passes run them as something else.
        full, there = expected[c]
        assert torch.equal(logits[there], full[there]), c
    score = valuation.sweep(model, rows, task)
    for c, (logits, there) in expected.items():
        right = (logits.argmax(dim=1) == rows["target"]) & there
        assert torch.equal(score[:, c - 1], right)


@pytest.mark.parametrize("complete", [True, False])
@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize(("fusion", "absence"), LEGAL)
def test_cached_sweep_equals_full_passes_bit_for_bit(fusion, absence, count, complete):
    torch.manual_seed(count)
    model = LateFusion(encoders(count), CLASSES, fusion=fusion, absence=absence)
    check_exact(model, batch(count, complete=complete))


@pytest.mark.parametrize("complete", [True, False])
@pytest.mark.parametrize("absence", ["drop", "input"])
def test_early_fusion_sweep_equals_full_passes_bit_for_bit(absence, complete):
    torch.manual_seed(0)
    tokenizers = {"vector": Patches(6, 2, 16), "signal": Patches((20, 3), 4, 16), "steps": Patches((9, 2), 3, 16)}
    check_exact(EarlyFusion(tokenizers, CLASSES, dim=16, absence=absence), batch(3, complete=complete))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
@pytest.mark.parametrize(("fusion", "absence"), [c for c in LEGAL if FUSIONS[c[0]].linear])
def test_additions_equal_full_passes_to_rounding(fusion, absence, dtype, tolerance):
    torch.manual_seed(1)
    model = LateFusion(encoders(3), CLASSES, fusion=fusion, absence=absence).to(dtype)
    rows, task = batch(3, dtype=dtype), Classification(CLASSES)
    expected = naive(model, rows)
    score = valuation.sweep(model, rows, task, shortcut=True)
    for c, logits in valuation.coalition_logits(model, rows, shortcut=True):
        full, there = expected[c]
        scale = full[there].abs().max()
        assert ((logits - full)[there].abs().max() / scale) < tolerance
        top = full.topk(2, dim=1).values
        clear = there & ((top[:, 0] - top[:, 1]) > 2 * tolerance * scale)
        assert torch.equal(score[clear, c - 1], (full.argmax(dim=1) == rows["target"])[clear])
        # Without a bias, a feature of zeros makes equal logits: nothing is then to be told apart.
        assert clear.sum() > (there & (full != 0).any(dim=1)).sum() * 0.9


def test_each_modality_is_encoded_once_and_only_where_it_is_present():
    torch.manual_seed(2)
    model, rows = LateFusion(encoders(3), CLASSES), batch(3)
    seen = {m: [] for m in model.modalities}
    for m, encoder in zip(model.modalities, model.encoders.values(), strict=True):
        encoder.register_forward_hook(lambda module, args, out, m=m: seen[m].append(len(args[0])))
    valuation.sweep(model, rows, Classification(CLASSES))
    assert seen == {m: [int(rows["present"][:, i].sum())] for i, m in enumerate(model.modalities)}


def test_an_early_fusion_model_has_no_shortcut():
    model = EarlyFusion({"vector": Patches(6, 2, 16), "signal": Patches((20, 3), 4, 16)}, CLASSES, dim=16)
    with pytest.raises(EquipoiseError, match="shortcut=True adds the terms of a linear head"):
        valuation.sweep(model, batch(2), Classification(CLASSES), shortcut=True)
