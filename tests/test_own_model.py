"""A person's module as a MultimodalModel: what the contract does for it equals LateFusion, and what it lacks is said."""

from pathlib import Path

import pytest
import torch
from torch import nn

import equipoise
from equipoise import EquipoiseError, balancers, valuation
from equipoise.models import MLP, Batch, Classification, LateFusion, MultimodalModel

EXAMPLES = Path(equipoise.__file__).parents[1] / "examples"


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.out = MLP(6, out_features=7), MLP(3, out_features=5), nn.Linear(12, 4)

    def forward(self, one, two):
        return self.out(torch.cat([self.one(one), self.two(two)], dim=1))


class Mine(MultimodalModel, Net):
    modalities, sizes, unimodal = ("one", "two"), {"one": 7, "two": 5}, "coalition"

    def encode(self, modality, x, length=None):
        assert len(x)  # an encoder never gets nothing
        return {"one": self.one, "two": self.two}[modality](x)

    def fuse(self, features, present):
        there = [features[m].masked_fill(~present[:, [i]], 0) for i, m in enumerate(self.modalities)]
        return self.out(torch.cat(there, dim=1))

    def parameter_groups(self):
        parts = {"one": self.one, "two": self.two, "head": self.out}
        return {owner: list(part.parameters()) for owner, part in parts.items()}


def batch(n: int, seed: int, absent: int | None = None) -> Batch:
    made = torch.Generator().manual_seed(seed)
    present = torch.rand(n, 2, generator=made) < 0.7
    present[:, 0] |= ~present.any(dim=1)
    if absent is not None:
        present = torch.ones(n, 2, dtype=torch.bool)
        present[:, absent] = False
    inputs = {"one": torch.randn(n, 6, generator=made), "two": torch.randn(n, 3, generator=made)}
    for i, x in enumerate(inputs.values()):
        x[~present[:, i]] = torch.nan
    target = torch.randint(0, 4, (n,), generator=made)
    return Batch(sample_id=torch.arange(n), copy=torch.zeros(n).short(), inputs=inputs, present=present, target=target)


def twins() -> tuple[Mine, LateFusion]:
    """The same weights, once as somebody's own module and once as ours."""
    torch.manual_seed(0)
    mine = Mine()
    ours = LateFusion({"one": MLP(6, out_features=7), "two": MLP(3, out_features=5)}, 4, unimodal="coalition")
    for theirs, its in ((mine.one, ours.encoders["one"]), (mine.two, ours.encoders["two"])):
        its.load_state_dict(theirs.state_dict())
    ours.fusion.head.load_state_dict(mine.out.state_dict())
    return mine, ours


@pytest.mark.parametrize("absent", [None, 0, 1])
def test_an_own_model_is_late_fusion_bit_for_bit(absent):
    mine, ours = twins()
    rows = batch(20, 1, absent)
    torch.testing.assert_close(
        mine(rows["inputs"], rows["present"]).logits, ours(rows["inputs"], rows["present"]).logits, rtol=1e-6, atol=1e-6
    )
    features = [model.features(rows["inputs"], rows["present"]) for model in (mine, ours)]
    assert all(torch.equal(features[0][m], features[1][m]) for m in mine.modalities)
    tables = [valuation.sweep(model, rows, Classification(4)) for model in (mine, ours)]
    assert torch.equal(*tables)


def test_it_trains_like_late_fusion():
    models = twins()
    losses = []
    for model in models:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
        step = balancers.BalancedStep(model, Classification(4), balancers.get("modality_dropout"), optimizer)
        losses.append([step(batch(20, seed, [None, None, 0][seed % 3])).loss for seed in range(12)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert losses[0][9] < losses[0][0]


def test_weights_of_the_plain_module_load():
    net, mine = Net(), Mine()
    mine.load_state_dict(net.state_dict())
    rows = batch(8, 3)
    rows["present"][:] = True
    inputs = {m: x.nan_to_num() for m, x in rows["inputs"].items()}
    torch.testing.assert_close(mine(inputs, rows["present"]).logits, net(inputs["one"], inputs["two"]))


def test_what_an_own_model_lacks_is_said():
    rows = batch(8, 0)

    class Unsized(Mine):
        sizes = {"one": 7}  # noqa: RUF012

    class Wrong(Mine):
        sizes = {"one": 7, "two": 6}  # noqa: RUF012

    class FromInput(Mine):
        absence = "input"

    for kind, said in (
        (Unsized, r"Unsized does not say how large the feature of modality 'two' is: give it the attribute sizes"),
        (Wrong, r"encode\('two', \.\.\.\) of Wrong must give a feature of 6 numbers a row.*but it gave \(5,\)"),
        (FromInput, r"FromInput has absence='input': write its features\(\)"),
    ):
        with pytest.raises(EquipoiseError, match=said):
            kind().features(rows["inputs"], rows["present"])


def test_the_page_s_early_model_never_reads_what_is_absent():
    page = (EXAMPLES.parent / "docs" / "howto-own-model.md").read_text()
    code = "\n".join(part.partition("```")[0] for part in page.split("```python\n")[1:])
    there: dict = {}
    exec(code, there)
    model, clean, poisoned = there["Crossed"]().eval(), there["batch"](32, 5), there["batch"](32, 5)
    for i, m in enumerate(model.modalities):
        poisoned["inputs"][m][~clean["present"][:, i]] = torch.nan
    expected = model(clean["inputs"], clean["present"]).logits
    assert torch.equal(model(poisoned["inputs"], clean["present"]).logits, expected)
