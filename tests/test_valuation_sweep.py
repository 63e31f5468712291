"""The sweep of toy models against full passes, bit for bit."""

import numpy as np
import pytest
import torch
from oracles import valuation as oracle
from torch import nn

from equipoise.models.contract import MultimodalModel, Outputs
from equipoise.models.errors import EquipoiseError
from equipoise.models.task import Classification
from equipoise.valuation import coalition_logits, copies, from_bits, shapley, sweep


class Late(MultimodalModel):
    """One linear encoder a modality, features zeroed where absent; a linear head, or one that is not."""

    def __init__(self, dims, width=6, classes=4, linear=True):
        super().__init__()
        self.modalities = tuple(dims)
        self.linear_head = linear
        self.encoders = nn.ModuleDict({m: nn.Sequential(nn.Linear(d, width), nn.Tanh()) for m, d in dims.items()})
        self.head = nn.Linear(width * len(dims), classes)
        self.calls = dict.fromkeys(dims, 0)

    def features(self, inputs, present):
        out = {}
        for i, m in enumerate(self.modalities):
            self.calls[m] += 1
            rows = present[:, i]
            encoded = self.encoders[m](inputs[m][rows])
            out[m] = encoded.new_zeros(len(rows), self.head.in_features // len(self.modalities))
            out[m][rows] = encoded
        return out

    def fuse(self, features, present):
        parts = [features[m] * present[:, i, None] for i, m in enumerate(self.modalities)]
        logits = self.head(torch.cat(parts, dim=1))
        return logits if self.linear_head else logits.sin()

    def linear_terms(self, features):
        blocks = dict(zip(self.modalities, self.head.weight.chunk(len(self.modalities), dim=1)))
        terms = {m: features[m] @ blocks[m].T for m in self.modalities}
        return self.head.bias, terms, {m: torch.zeros_like(self.head.bias) for m in self.modalities}

    def unimodal_logits(self, features):
        return {}


class Early(MultimodalModel):
    """Modalities meet in the first layer; refuses a row with nothing present."""

    late_fusion = False

    def __init__(self, dims, classes=4):
        super().__init__()
        self.modalities = tuple(dims)
        self.net = nn.Sequential(nn.Linear(sum(dims.values()), 8), nn.Dropout(0.5), nn.ReLU(), nn.Linear(8, classes))

    def forward(self, inputs, present):
        assert present.any(dim=1).all(), "a row with nothing present"
        parts = [torch.where(present[:, i, None], inputs[m], 0.0) for i, m in enumerate(self.modalities)]
        return Outputs(self.net(torch.cat(parts, dim=1)))


class Confidence(Classification):
    """A graded benefit: the probability of the label."""

    graded = True

    def benefit(self, logits, target):
        return logits.softmax(dim=1).gather(1, target[:, None])[:, 0]


DIMS = {"a": 3, "b": 5, "c": 2}


def make_batch(rows=64, seed=0, absent=True, dims=DIMS):
    g = torch.Generator().manual_seed(seed)
    pattern = torch.randint(1, 2 ** len(dims), (rows,), generator=g).numpy()
    present = torch.from_numpy(from_bits(pattern, len(dims)))
    return {
        "sample_id": torch.arange(rows),
        "copy": torch.zeros(rows, dtype=torch.int16),
        "inputs": {m: torch.randn(rows, d, generator=g) for m, d in dims.items()},
        "present": present if absent else torch.ones_like(present),
        "target": torch.randint(0, 4, (rows,), generator=g),
    }


MODELS = {
    "linear": lambda: Late(DIMS),
    "late": lambda: Late(DIMS, linear=False),
    "early": lambda: Early(DIMS),
}


@pytest.mark.parametrize("absent", [False, True])
@pytest.mark.parametrize("kind", MODELS)
def test_sweep_is_the_naive_sweep_bit_for_bit(kind, absent):
    torch.manual_seed(0)
    model, batch = MODELS[kind](), make_batch(absent=absent)
    naive = oracle.naive_scores(model, batch, Classification(4))
    found = sweep(model.train(), batch, Classification(4))
    assert found.dtype == torch.bool
    assert torch.equal(found, naive.nan_to_num(0).bool())

    naive = oracle.naive_scores(model, batch, Confidence(4))
    found = sweep(model.train(), batch, Confidence(4))
    assert torch.equal(found.isnan(), naive.isnan())
    assert torch.equal(found.double().nan_to_num(-1), naive.nan_to_num(-1))


def test_logits_are_those_of_full_passes_bit_for_bit():
    torch.manual_seed(0)
    model, batch = Late(DIMS, linear=False).eval(), make_batch()
    for coalition, logits in coalition_logits(model, batch):
        inside = batch["present"] & torch.tensor([bool(coalition >> m & 1) for m in range(3)])
        rows = inside.any(dim=1)
        full = model(batch["inputs"], torch.where(rows[:, None], inside, batch["present"])).logits
        assert torch.equal(logits[rows], full[rows])
        assert not logits.requires_grad


def test_late_fusion_encodes_each_modality_once():
    model = Late(DIMS)
    sweep(model, make_batch(), Classification(4))
    assert model.calls == {"a": 1, "b": 1, "c": 1}


def test_shortcut_adds_up_to_the_same_logits():
    torch.manual_seed(1)
    model, batch = Late(DIMS), make_batch()
    pairs = zip(coalition_logits(model, batch), coalition_logits(model, batch, shortcut=True))
    for (coalition, full), (same, added) in pairs:
        assert coalition == same
        torch.testing.assert_close(added, full, rtol=1e-5, atol=1e-6)
    with pytest.raises(EquipoiseError, match="Late has none: use shortcut=False"):
        sweep(Late(DIMS, linear=False), batch, Classification(4), shortcut=True)


def test_scores_are_independent_of_the_batch_and_of_what_absent_tensors_hold():
    torch.manual_seed(2)
    model, batch = Late(DIMS).double(), make_batch()
    batch["inputs"] = {m: x.double() for m, x in batch["inputs"].items()}
    whole = sweep(model, batch, Classification(4))
    part = {k: v[10:20] for k, v in batch.items() if k != "inputs"}
    part["inputs"] = {m: x[10:20].clone() for m, x in batch["inputs"].items()}
    for i, m in enumerate(DIMS):
        part["inputs"][m][~part["present"][:, i]] = torch.nan
    assert torch.equal(sweep(model, part, Classification(4)), whole[10:20])


def test_training_modes_and_grad_mode_are_put_back():
    model, batch = Early(DIMS), make_batch()
    model.train()
    model.net[1].eval()  # a part that was frozen on purpose stays frozen
    modes = [m.training for m in model.modules()]
    for coalition, _ in coalition_logits(model, batch):
        assert torch.is_grad_enabled(), "the caller's own code keeps its gradients between two coalitions"
        if coalition == 3:
            break
    sweep(model, batch, Classification(4))
    assert [m.training for m in model.modules()] == modes

    class Broken(Late):
        def fuse(self, features, present):
            raise RuntimeError("broken")

    broken = Broken(DIMS).train()
    with pytest.raises(RuntimeError, match="broken"):
        sweep(broken, batch, Classification(4))
    assert broken.training


def test_observe_sees_the_logits_of_the_same_pass():
    model, batch, seen = Late(DIMS), make_batch(), {}
    score = sweep(model, batch, Classification(4), observe=lambda c, logits, rows: seen.update({c: (logits, rows)}))
    assert list(seen) == list(range(1, 8))
    for c, (logits, rows) in seen.items():
        assert torch.equal(score[:, c - 1], (logits.argmax(1) == batch["target"]) & rows)


def test_a_row_with_nothing_present_is_refused():
    batch = make_batch()
    batch["present"][5] = False
    with pytest.raises(EquipoiseError, match=r"sample_id 5 .* has no modality present"):
        sweep(Late(DIMS), batch, Classification(4))


VECTORS_7_6 = [  # a, v, label, right (all, a, v), phi, copies
    ((1, 0), (0, 1), 0, (0, 1, 0), (0.5, -0.5), (1, 3)),
    ((1, 0), (0, 1), 1, (1, 0, 1), (0.5, 1.5), (1, 0)),
    ((2, 0), (0, 1), 0, (1, 1, 0), (1.5, 0.5), (0, 1)),
    ((0, 0), (0, 0), 2, (1, 1, 1), (1, 1), (0, 0)),
    ((0, 3), (1, 0), 2, (0, 0, 1), (-0.5, 0.5), (3, 1)),
    ((0, 3), (3, 0), 2, (1, 0, 1), (0.5, 1.5), (1, 0)),
]


@pytest.mark.parametrize("shortcut", [False, True])
def test_vectors_7_6_linear_concat_head(shortcut):
    model = Late({"a": 2, "v": 2}, width=2, classes=3)
    model.encoders = nn.ModuleDict({"a": nn.Identity(), "v": nn.Identity()})
    with torch.no_grad():
        model.head.weight.copy_(torch.tensor([[2, 0, 0, 0], [0, 1, 0, 3], [0, 0, 1, 0]]))
        model.head.bias.copy_(torch.tensor([0, 0, 1]))
    a, v, label, right, phi, counts = zip(*VECTORS_7_6)
    batch = {
        "sample_id": torch.arange(6),
        "copy": torch.zeros(6, dtype=torch.int16),
        "inputs": {"a": torch.tensor(a, dtype=torch.float32), "v": torch.tensor(v, dtype=torch.float32)},
        "present": torch.ones(6, 2, dtype=torch.bool),
        "target": torch.tensor(label),
    }
    score = sweep(model, batch, Classification(3), shortcut)
    assert score.int().tolist() == [[a, v, together] for together, a, v in right]
    np.testing.assert_array_equal(shapley(score), phi)
    np.testing.assert_array_equal(copies(shapley(score)), counts)
    logits = dict(coalition_logits(model, batch, shortcut))
    assert logits[3].tolist() == [[2, 3, 1], [2, 3, 1], [4, 3, 1], [0, 0, 1], [0, 3, 2], [0, 3, 4]]
    assert logits[1].tolist() == [[2, 0, 1], [2, 0, 1], [4, 0, 1], [0, 0, 1], [0, 3, 1], [0, 3, 1]]
    assert logits[2].tolist() == [[0, 3, 1], [0, 3, 1], [0, 3, 1], [0, 0, 1], [0, 0, 2], [0, 0, 4]]
