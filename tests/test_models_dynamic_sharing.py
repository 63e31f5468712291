"""Dynamic Sharing: published sizes, absent modalities not computed, any set the mean of its members, who owns and learns what."""

from itertools import combinations, product

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn
from torch.nn import functional as F

from equipoise import balancers, valuation
from equipoise.models import (
    Classification,
    DynamicSharing,
    Modality,
    ModalityNorm,
    ModelConfig,
    Segmentation,
    SharedMLP,
    SharedUNet,
    build_model,
    check_ownership,
)
from equipoise.models.errors import EquipoiseError
from equipoise.models.shared_unet import groups_of
from equipoise.pipelines.config import load_config
from equipoise.valuation.coalitions import members

NAMES, K = ("a", "b", "c"), 3
SCANS = ("t1", "t1ce", "t2", "flair")


def vectors(unimodal="auto", dtype=torch.float64):
    torch.manual_seed(0)
    encoders = {m: nn.Linear(d, 8) for m, d in zip(NAMES, (7, 4, 3))}
    model = DynamicSharing(encoders, SharedMLP(NAMES, 8, 2), K, unimodal)
    return shaken(model).to(dtype)


def volumes(dims=2, unimodal="auto", dtype=torch.float64, names=NAMES):
    torch.manual_seed(0)
    trunk = SharedUNet(names, 1, width=1 / 8, levels=2, dims=dims)
    return shaken(DynamicSharing({m: nn.Identity() for m in names}, trunk, K, unimodal)).to(dtype)


def shaken(model):
    """Affines that differ: at first all are ones and zeros."""
    with torch.no_grad():
        for norm in model.modules():
            if isinstance(norm, ModalityNorm):
                for p in norm.parameters():
                    p.add_(0.3 * torch.randn(p.shape))
    return model


MODELS = {"vectors": vectors, "pictures": volumes, "volumes": lambda **how: volumes(3, **how)}
every = pytest.mark.parametrize("kind", list(MODELS))
complete = pytest.mark.parametrize("complete", [True, False])


def rows(kind, n=7, dtype=torch.float64, complete=False):
    g = torch.Generator().manual_seed(1)
    present = (torch.rand(n, 3, generator=g) < 0.6) | complete
    present[:, 0] |= ~present.any(dim=1)
    size = {"vectors": (), "pictures": (5, 6), "volumes": (4, 3, 4)}[kind]
    shapes = [(1, *size)] * 3 if size else [(7,), (4,), (3,)]
    target = torch.rand(n, K, *size, generator=g) < 0.4 if size else torch.randint(0, K, (n,), generator=g)
    return {
        "sample_id": torch.arange(n),
        "copy": torch.zeros(n, dtype=torch.int16),
        "inputs": {m: torch.randn(n, *s, generator=g, dtype=torch.float64).to(dtype) for m, s in zip(NAMES, shapes)},
        "present": present,
        "target": target.to(torch.uint8) if size else target,
    }


def task(kind):
    return Classification(K) if kind == "vectors" else Segmentation(["WT", "TC", "ET"])


def counted(model):
    """{modality: rows of each pass through its encoder}, [(modality, rows) of each pass through the trunk]."""
    own, trunk = {m: [] for m in model.modalities}, []
    for m in model.modalities:
        model.encoders[m].register_forward_pre_hook(lambda _, args, m=m: own[m].append(len(args[0])))
    model.trunk.register_forward_pre_hook(lambda _, args: trunk.append((args[1], len(args[0]))))
    return own, trunk


# Sizes


@pytest.mark.parametrize(("width", "all_", "specific"), [(0.5, 3_245_235, 8_832), (1, 12_960_099, 17_664)])
def test_the_published_sizes(width, all_, specific):
    modalities = [Modality(name=m, shape=(1, 16, 16, 16)) for m in SCANS]
    with torch.device("meta"):
        model = build_model(ModelConfig(kind="sharing", width=width), modalities, 3, dense=True)
    groups = check_ownership(model)
    assert sum(p.numel() for p in model.parameters()) == all_
    assert sum(p.numel() for m in SCANS for p in groups[m]) == specific
    assert {p.numel() for m in SCANS for p in groups[m]} <= {16, 32, 64, 128, 256, 512}
    assert sum(p.numel() for p in groups["shared"]) + sum(p.numel() for p in groups["head"]) == all_ - specific


def test_the_released_levels():
    """gmd.md 3: levels 32, 64, 128, 256, 512 times the width, the lowest halved; middle channels of the way up half of what
    comes in; 8 groups.
    """
    with torch.device("meta"):
        trunk = SharedUNet(SCANS, 1, 0.5)
    found = [[(c.in_channels, c.out_channels) for c in level.convolutions] for level in (*trunk.down, *trunk.up)]
    down = [[(1, 16), (16, 16)], [(16, 32), (32, 32)], [(32, 64), (64, 64)], [(64, 128), (128, 128)]]
    up = [[(256, 128), (128, 64)], [(128, 64), (64, 32)], [(64, 32), (32, 16)], [(32, 16), (16, 16)]]
    assert found == [*down, [(128, 128), (128, 128)], *up]
    assert {norm.groups for norm in trunk.modules() if isinstance(norm, ModalityNorm)} == {8}


# The arithmetic, written a second time


def by_hand(level, x, m):
    for convolution, norm in zip(level.convolutions, level.norms):
        x = F.conv2d(x, convolution.weight, convolution.bias, padding=1)
        n, c = x.shape[:2]
        groups = x.reshape(n, norm.groups, -1)
        mean, variance = groups.mean(dim=2, keepdim=True), groups.var(dim=2, keepdim=True, correction=0)
        x = ((groups - mean) / (variance + 1e-5).sqrt()).reshape(x.shape)
        x = (x * norm.weight[m].reshape(c, 1, 1) + norm.bias[m].reshape(c, 1, 1)).clamp(min=0)
    return x


def stretch(x, n):
    """Linear along the last axis, corners aligned."""
    old = x.shape[-1]
    at = np.linspace(0, old - 1, n)
    low = np.minimum(at.astype(int), max(old - 2, 0))
    part = torch.from_numpy(at - low)
    return x[..., low] * (1 - part) + x[..., np.minimum(low + 1, old - 1)] * part


@pytest.mark.parametrize("m", NAMES)
def test_a_pass_through_the_shared_unet(m):
    trunk, x = volumes().trunk, rows("pictures")["inputs"][m]
    maps = [by_hand(trunk.down[0], x, m)]
    for level in trunk.down[1:]:
        # Maxima of 2 x 2 corners; the last position of an odd size alone.
        padded = F.pad(maps[-1], (0, maps[-1].shape[3] % 2, 0, maps[-1].shape[2] % 2), value=-torch.inf)
        pooled = torch.stack([padded[..., a::2, b::2] for a in (0, 1) for b in (0, 1)]).amax(dim=0)
        maps.append(by_hand(level, pooled, m))
    wanted = maps.pop()
    for level in trunk.up:
        skip = maps.pop()
        wide = stretch(wanted, skip.shape[3])
        wanted = by_hand(level, torch.cat([skip, stretch(wide.mT, skip.shape[2]).mT], dim=1), m)
    torch.testing.assert_close(trunk(x, m), wanted, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("m", NAMES)
def test_a_pass_through_the_shared_mlp(m):
    model, x = vectors(), rows("vectors")["inputs"][m]
    h = x.numpy() @ model.encoders[m].weight.detach().numpy().T + model.encoders[m].bias.detach().numpy()
    for norm, layer in zip(model.trunk.norms, [None, *model.trunk.layers]):
        if layer is not None:
            h = h @ layer.weight.detach().numpy().T + layer.bias.detach().numpy()
        h = (h - h.mean(1, keepdims=True)) / np.sqrt(h.var(1, keepdims=True) + 1e-5)
        h = np.maximum(h * norm.weight[m].detach().numpy() + norm.bias[m].detach().numpy(), 0)
    np.testing.assert_allclose(model.encode(m, x).detach().numpy(), h, rtol=1e-10, atol=1e-12)


SIZES = [(8, 8), (7, 5), (1, 1), (1, 9), (3, 2), (4, 6, 8), (5, 3, 7), (1, 1, 1)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("levels", [1, 3])
def test_a_map_of_any_size_has_the_size_of_its_input_and_rows_never_meet(size, levels):
    torch.manual_seed(0)
    trunk = shaken(SharedUNet(NAMES, 2, 1 / 8, levels, len(size))).double()
    x = torch.randn(3, 2, *size, dtype=torch.float64, requires_grad=True)
    found = trunk(x, "b")
    assert found.shape == (3, 4, *size)
    [g] = torch.autograd.grad(found[1].square().sum(), x)
    assert g.isfinite().all()
    assert g[[0, 2]].abs().max() == 0
    assert trunk(x[:0], "b").shape == (0, 4, *size)


# Sets of modalities


@every
@complete
def test_any_set_is_the_mean_of_its_members_logits(kind, complete):
    model, batch = MODELS[kind](), rows(kind, complete=complete)
    alone = {m: model.head(model.encode(m, batch["inputs"][m])).detach().numpy() for m in NAMES}
    features = model.features(batch["inputs"], batch["present"])
    for size in (1, 2, 3):
        for chosen in combinations(range(3), size):
            inside = batch["present"] & torch.tensor([i in chosen for i in range(3)])
            fused = model.fuse(features, inside).detach().numpy()
            for row in range(7):
                there = [NAMES[i] for i in range(3) if inside[row, i]]
                if there:
                    wanted = np.mean([alone[m][row] for m in there], axis=0)
                    np.testing.assert_allclose(fused[row], wanted, rtol=1e-10, atol=1e-11)


@every
@complete
def test_a_sweep_is_the_naive_one_for_all_sets_bit_for_bit(kind, complete):
    model, batch = MODELS[kind](dtype=torch.float32), rows(kind, dtype=torch.float32, complete=complete)
    found = {}
    score = valuation.sweep(model, batch, task(kind), observe=lambda c, z, there: found.update({c: z}))
    for c, inside in enumerate(torch.from_numpy(members(3)), start=1):
        both = batch["present"] & inside
        there = both.any(dim=1)
        with torch.no_grad():
            full = model(batch["inputs"], torch.where(there[:, None], both, batch["present"])).logits
        assert torch.equal(found[c][there], full[there])
        wanted = task(kind).benefit(full, batch["target"])[there]
        assert torch.equal(score[there, c - 1].double(), wanted.double())


@every
def test_what_is_absent_is_not_computed(kind):
    model, batch = MODELS[kind](), rows(kind)
    batch["present"][:, 2] = False
    batch["present"][:, 0] |= ~batch["present"].any(dim=1)
    own, trunk = counted(model)
    have = batch["present"].sum(dim=0).tolist()
    model(batch["inputs"], batch["present"])
    assert own == {"a": [have[0]], "b": [have[1]], "c": []}
    assert trunk == [("a", have[0]), ("b", have[1])]
    # A sweep of all seven sets encodes once, and GMD's seven losses do too.
    valuation.sweep(model, batch, task(kind))
    assert own == {"a": [have[0]] * 2, "b": [have[1]] * 2, "c": []}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    balancers.BalancedStep(model, task(kind), balancers.get("gmd"), optimizer)(batch)
    assert own == {"a": [have[0]] * 3, "b": [have[1]] * 3, "c": []}


@every
def test_what_is_absent_is_not_read(kind):
    model, batch = MODELS[kind](), rows(kind)
    wanted = model(batch["inputs"], batch["present"]).logits
    for i, m in enumerate(NAMES):
        batch["inputs"][m][~batch["present"][:, i]] = torch.nan
    found = model(batch["inputs"], batch["present"]).logits
    assert torch.equal(found, wanted)
    found.square().sum().backward()
    assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in model.parameters())
    # Nothing at all: finite, without a meaning, as are no rows.
    assert model(batch["inputs"], torch.zeros(7, 3, dtype=torch.bool)).logits.isfinite().all()
    none = model({m: x[:0] for m, x in batch["inputs"].items()}, batch["present"][:0]).logits
    none.sum().backward()
    assert none.shape == (0, *wanted.shape[1:])


# Who owns and learns what


@every
@pytest.mark.parametrize("unimodal", ["split", "heads", "coalition"])
def test_a_modality_owns_its_affines_its_input_and_its_head(kind, unimodal):
    model = MODELS[kind](unimodal=unimodal)
    groups = check_ownership(model)
    assert sum(map(len, groups.values())) == len(list(model.parameters()))
    names = {id(p): name for name, p in model.named_parameters()}
    for owner, parameters in groups.items():
        for name in (names[id(p)] for p in parameters):
            if owner in NAMES:
                assert name.endswith(
                    f"norms.{name.split('norms.')[-1].split('.')[0]}.{name.split('.')[-2]}.{owner}"
                ) or (name.startswith((f"encoders.{owner}.", f"heads.{owner}."))), name
            else:
                assert name.startswith({"shared": "trunk.", "head": "head."}[owner])
                assert "norm" not in name
    norms = [norm for norm in model.modules() if isinstance(norm, ModalityNorm)]
    assert all({id(p) for norm in norms for p in norm.owned(m)} <= {id(p) for p in groups[m]} for m in NAMES)


@every
def test_affines_learn_from_exactly_the_sets_that_hold_their_modality(kind):
    """Not zeros but no gradient from the others: what "reached by all objectives" is decided by."""
    model, batch = MODELS[kind](), rows(kind, complete=True)
    features, groups = model.features(batch["inputs"], batch["present"]), check_ownership(model)
    for inside in torch.from_numpy(members(3)):
        loss = task(kind).losses(model.fuse(features, batch["present"] & inside), batch["target"]).sum()
        for i, m in enumerate(NAMES):
            found = torch.autograd.grad(loss, groups[m], retain_graph=True, allow_unused=True)
            if inside[i]:
                assert all(bool(g.abs().sum() > 0) for g in found)
            else:
                assert found == (None,) * len(found)
        shared = torch.autograd.grad(loss, [*groups["shared"], *groups["head"]], retain_graph=True)
        assert all(bool(g.isfinite().all()) for g in shared)


@pytest.mark.parametrize(("kind", "each"), [("vectors", 8), ("pictures", 10 * 2)])
def test_all_objectives_reach_the_trunk_and_the_head_alone(kind, each):
    """gmd.md 3: by the masks of the objectives, shared is all convolutions and what is not is all norms."""
    model, batch, seen = MODELS[kind](), rows(kind, complete=True), []

    class Looks(balancers.get("gmd").__class__):
        name = ""

        def combine(self, gradients, ctx):
            seen.append((gradients.names, gradients.reached))
            return super().combine(gradients, ctx)

    step = balancers.BalancedStep(model, task(kind), Looks(), torch.optim.SGD(model.parameters(), lr=0.1))
    step(batch)
    [(names, reached)] = seen
    assert len(names) == 7
    assert each * 3 == sum(len(check_ownership(model)[m]) for m in NAMES)
    owner = [o for o, ps in check_ownership(model).items() for _ in ps]
    for name, row in zip(names, reached.tolist()):
        assert row == [o in ("shared", "head") or o in name.split("+") for o in owner]


@every
def test_unimodal_logits_are_the_model_with_the_others_absent(kind):
    model, batch = MODELS[kind](), rows(kind)
    out = model(batch["inputs"], batch["present"])
    for i, m in enumerate(NAMES):
        only = torch.zeros_like(batch["present"])
        only[:, i] = batch["present"][:, i]
        wanted = model(batch["inputs"], only).logits
        has = batch["present"][:, i]
        torch.testing.assert_close(out.unimodal_logits[m][has], wanted[has], rtol=1e-12, atol=1e-13)
    heads = MODELS[kind](unimodal="heads")
    features = heads.features(batch["inputs"], batch["present"])
    probe = sum(z.square().sum() for z in heads.probe_logits(features).values())
    reached = {n for n, p in heads.named_parameters() if torch.autograd.grad(probe, p, retain_graph=True, allow_unused=True)[0] is not None}  # fmt: skip  # noqa: E501
    assert reached == {n for n, _ in heads.named_parameters() if n.startswith("heads.")}
    coalition = MODELS[kind](unimodal="coalition")
    assert coalition(batch["inputs"], batch["present"]).unimodal_logits is None
    with pytest.raises(EquipoiseError, match=r"build it with unimodal='split', which is the same here, or 'heads'"):
        coalition.unimodal_logits(features)


# With balancers


@pytest.mark.parametrize("name", ["joint", "gmd", "ogm", "balgrad", "summed"])
def test_workers_do_not_change_training(gloo, name):
    """Absent modalities, in rows, on a worker and in all rows; one worker without rows."""
    how = {"sharing": True, "unimodal": balancers.get(name).accepts[0]}
    wanted, *others = [
        found
        for world in (1, 2)
        for found in gloo.run("world_cases", "train", world, name, {}, how, "float64", "empty", 1, "sgd")
    ]
    for found in others:
        for parameter, value in found.items():
            np.testing.assert_allclose(value, wanted[parameter], rtol=1e-9, atol=1e-11, err_msg=parameter)


@pytest.mark.parametrize("name", balancers.names())
def test_every_balancer_trains_it_or_says_why_not(name):
    """By the kind of unimodal logits that `fit` would build: the model's own where that will do, else the first accepted."""
    if name == "jd":
        pytest.importorskip("torchjd", reason="TorchJD is not installed: pip install 'equipoise[jd]'")
    balancer, batch = balancers.get(name), rows("vectors")
    model = vectors("split" if "split" in balancer.accepts else balancer.accepts[0])
    before = [p.detach().clone() for p in model.parameters()]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    if balancer.fusions is not None or (balancer.max_modalities or 3) < 3:
        with pytest.raises(EquipoiseError, match=f"Balancer '{name}' is defined for"):
            balancers.BalancedStep(model, Classification(K), balancer, optimizer)
        return
    result = balancers.BalancedStep(model, Classification(K), balancer, optimizer)(batch)
    assert np.isfinite(result.loss)
    assert any(not torch.equal(p, q) for p, q in zip(model.parameters(), before))
    assert all(bool(p.isfinite().all()) for p in model.parameters())


def test_an_ensemble_is_of_models_apart():
    model = vectors()
    with pytest.raises(
        EquipoiseError, match="'ensemble' is defined for the fusion 'average', not for that of the model"
    ):
        balancers.BalancedStep(model, Classification(K), balancers.get("ensemble"), torch.optim.SGD(model.parameters()))
    with pytest.raises(
        EquipoiseError, match=r"defined for model\.fusion=average, not for sharing: leave model\.fusion"
    ):
        load_config({"data": "d", "out": "o", "max_steps": 1, "balancer": "ensemble", "model": {"kind": "sharing"}})


# Configurations


def built(modalities, dense=False, **config):
    return build_model(ModelConfig(kind="sharing", **config), modalities, K, dense=dense)


def test_arrays_get_a_linear_and_all_else_its_encoder():
    from test_models_build import MODALITIES

    model = built(MODALITIES, dim=16, encoders={"table": {"hidden": 5}, "signal": {"kind": "gru"}})
    kinds = {m: type(model.encoders[m]).__name__ for m in model.modalities}
    assert kinds == {
        "table": "MLP", "small": "MLP", "signal": "GRU", "audio": "GRU", "pulse": "GRU", "photo": "CNN2d",
        "note": "EmbeddingGRU",
    }  # fmt: skip
    linears = {m: [p.shape for p in model.encoders[m].parameters()] for m in ("table", "small")}
    assert linears == {"table": [(5, 10), (5,), (16, 5), (16,)], "small": [(16, 32), (16,)]}
    assert set(model.sizes.values()) == {16}


def test_sequences_that_differ_in_channels_get_a_convolution_of_one():
    same = built([Modality(name=m, shape=(2, 4, 4)) for m in "ab"], True, width=1 / 8, levels=1)
    assert not list(same.encoders.parameters())
    assert same.trunk.down[0].convolutions[0].in_channels == 2
    modalities = [Modality(name="a", shape=(1, 4, 4)), Modality(name="b", kind="image", shape=(3, 4, 4))]
    model = built(modalities, True, width=1 / 8, levels=1)
    assert [p.shape for p in model.encoders["a"].parameters()] == [(3, 1, 1, 1), (3,)]
    assert [p.shape for p in model.encoders["b"].parameters()] == [(3, 3, 1, 1), (3,)]
    inputs = {"a": torch.randn(2, 1, 4, 4), "b": torch.randn(2, 3, 4, 4)}
    assert model(inputs, torch.ones(2, 2, dtype=torch.bool)).logits.shape == (2, K, 4, 4)
    assert len(check_ownership(model)["a"]) == 2 + 2 * 2 * 3


SCAN, VECTOR = Modality(name="a", shape=(1, 4, 4)), Modality(name="a", shape=(6,))
VOLUME = Modality(name="b", shape=(1, 4, 4, 4))


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: built([VECTOR], absence="mean"), "model.absence='mean' has no meaning for model.kind='sharing', where absent"),
        (lambda: built([VECTOR], fusion="average"), "model.fusion has no meaning for model.kind='sharing': leave it out."),
        (lambda: built([VECTOR], join="concat"), "model.join has no meaning for model.kind='sharing': leave it out."),
        (lambda: ModelConfig(width=1), "model.width has no meaning for model.kind='late': leave it out."),
        (lambda: built([VECTOR], width=1), "model.width has no meaning for model.kind='sharing' outside segmentation: leave"),
        (lambda: built([SCAN], True, dim=8), "model.dim has no meaning for model.kind='sharing' in segmentation: leave"),
        (lambda: built([SCAN], True, encoder={"hidden": 8}), "model.encoder has no meaning for model.kind='sharing' in seg"),
        (lambda: built([VECTOR], encoder={"out_features": 8}), "gives the trunk its width, model.dim=64, and not out_features=8"),
        (lambda: built([SCAN, VOLUME], True), "needs positions of one kind, found a: (4, 4), b: (4, 4, 4): bring them to one"),
        (lambda: built([VECTOR], True), "Segmentation needs images, or arrays of shape"),
        (lambda: built([SCAN], True, width=0.1), "width=0.1 gives 3.2: use 0.25, 0.5 or 1, for example."),
        (lambda: SharedUNet(NAMES, dims=1), "SharedUNet is for pictures (dims=2) and volumes (dims=3), not dims=1."),
        (lambda: SharedUNet(NAMES, levels=0), "goes down at least one level, found levels=0."),
        (lambda: SharedMLP(NAMES, 1), "dim must be 2 or more, found dim=1."),
        (lambda: DynamicSharing({"a": nn.Identity()}, nn.Linear(3, 2), 2), "The trunk, Linear, must say what it gives"),
        (lambda: DynamicSharing({"a": nn.Identity()}, SharedMLP("ab", 4), 2), "have affines of a, b, but the model has the"),
        (lambda: vectors("splits"), "Unknown unimodal 'splits': did you mean 'split'?"),
        (lambda: vectors().encode("d", torch.ones(1, 7)), "Unknown modality 'd'"),
        (lambda: vectors().fuse({"a": torch.ones(1, 8)}, torch.ones(1, 3) > 0), "features lack 'b': take them from"),
        (lambda: volumes()({m: torch.ones(1, 1, 4 + (m == "b"), 4).double() for m in NAMES}, torch.ones(1, 3) > 0),
         "modality 'a' has positions (4, 4) and 'b' (5, 4): bring them to one size."),
    ],
)  # fmt: skip
def test_what_has_no_meaning_is_one_sentence(make, sentence):
    with pytest.raises((EquipoiseError, ValidationError)) as error:
        make()
    assert sentence in str(error.value)


def test_a_trunk_that_gives_something_else_is_named():
    class Loses(nn.Module):
        out_features, dims = 4, 0

        def forward(self, x, modality):
            return x[:, :3]

    model = DynamicSharing({"a": nn.Identity()}, Loses(), 2)
    with pytest.raises(
        EquipoiseError, match=r"must give \[n, 4\] for n = 2 rows of modality 'a', but it gave \(2, 3\)"
    ):
        model({"a": torch.ones(2, 4)}, torch.ones(2, 1) > 0)


def test_every_combination_of_dims_levels_and_widths_has_its_size():
    for dims, levels, width in product((2, 3), (1, 2), (1 / 16, 1 / 4)):
        trunk = SharedUNet(NAMES, 1, width, levels, dims)
        assert trunk.out_features == 32 * width
        assert trunk(torch.zeros(1, 1, *[4] * dims), "c").shape == (1, 32 * width, *[4] * dims)


def test_norms_have_eight_groups_of_two_or_more_channels_where_they_can():
    found = {c: groups_of(c) for c in (2, 4, 6, 8, 12, 16, 24, 32, 40, 48)}
    assert found == {2: 1, 4: 2, 6: 2, 8: 4, 12: 4, 16: 8, 24: 8, 32: 8, 40: 8, 48: 8}
