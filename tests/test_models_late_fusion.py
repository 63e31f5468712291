"""Late fusion: every legal combination of fusion, absence and unimodal logits keeps the model contract."""

from itertools import product

import pytest
import torch
from torch import nn

from equipoise.models import (
    GRU,
    MLP,
    CNN2d,
    EmbeddingGRU,
    EquipoiseError,
    LateFusion,
    absent_key,
    check_ownership,
)
from equipoise.models.contract import STANDS_IN, Absence
from equipoise.models.fusion import FUSIONS

NAMES = ("audio", "image", "text")
CLASSES = 4
LEGAL = [
    (fusion, absence, unimodal)
    for fusion, absence, unimodal in product(FUSIONS, Absence.__args__, ("split", "heads", "coalition"))
    if absence in FUSIONS[fusion].absences and (unimodal != "split" or FUSIONS[fusion].splits)
]
SAFE = ("feature", "drop")
every = pytest.mark.parametrize(("fusion", "absence", "unimodal"), LEGAL)
linear = pytest.mark.parametrize(("fusion", "absence", "unimodal"), [c for c in LEGAL if FUSIONS[c[0]].linear])


def build(fusion="concat", absence="feature", unimodal="auto", **kwargs):
    torch.manual_seed(0)
    encoders = {
        "audio": GRU(3, 12),
        "image": CNN2d(1, 12, hidden=8),
        "text": EmbeddingGRU(20, 6, 12),
    }
    return LateFusion(encoders, CLASSES, fusion, absence, unimodal, dim=10, **kwargs)


def rows(n=6, all_present=False):
    g = torch.Generator().manual_seed(1)
    inputs = {
        "audio": torch.randn(n, 5, 3, generator=g),
        "audio_length": torch.randint(1, 6, (n,), generator=g),
        "image": torch.randn(n, 1, 6, 6, generator=g),
        "text": torch.randint(1, 20, (n, 4), generator=g),
        "text_length": torch.randint(1, 5, (n,), generator=g),
    }
    pattern = torch.tensor([[1, 1, 1], [1, 0, 1], [0, 1, 0], [1, 1, 0], [0, 0, 1], [1, 1, 1]], dtype=torch.bool)
    present = torch.ones(n, 3, dtype=torch.bool) if all_present else pattern[:n]
    return inputs, present


def subset(c):
    return torch.tensor([bool(c >> m & 1) for m in range(3)])


def gradients(model, loss):
    model.zero_grad(set_to_none=True)
    loss.backward()
    return {name: p.grad for name, p in model.named_parameters()}


@every
def test_shapes_and_finite(fusion, absence, unimodal):
    model = build(fusion, absence, unimodal)
    inputs, present = rows()
    out = model(inputs, present)
    assert out.logits.shape == (6, CLASSES)
    assert out.logits.isfinite().all()
    keys = set(NAMES) | ({absent_key(m) for m in NAMES} if absence in STANDS_IN else set())
    assert set(out.features) == keys
    assert all(out.features[m].shape == (6, 12) for m in NAMES)
    if absence in STANDS_IN:
        assert all(out.features[absent_key(m)].shape == (1, 12) for m in NAMES)
    assert model.linear_head == FUSIONS[fusion].linear
    if unimodal == "coalition":
        assert out.unimodal_logits is None
        with pytest.raises(EquipoiseError, match="unimodal='coalition' has no unimodal logits"):
            model.unimodal_logits(out.features)
    else:
        assert {m: tuple(z.shape) for m, z in out.unimodal_logits.items()} == dict.fromkeys(NAMES, (6, CLASSES))


@every
@pytest.mark.parametrize("all_present", [False, True])
def test_cached_fuse_is_the_full_pass_bit_for_bit(fusion, absence, unimodal, all_present):
    model = build(fusion, absence, unimodal).eval()
    inputs, present = rows(all_present=all_present)
    with torch.no_grad():
        features = model.features(inputs, present)
        for c in range(8):
            assert torch.equal(model.fuse(features, present & subset(c)), model(inputs, present & subset(c)).logits), c


@linear
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_linear_terms_add_up_to_the_logits(fusion, absence, unimodal, dtype, tolerance):
    model = build(fusion, absence, unimodal).to(dtype).eval()
    inputs, present = rows()
    inputs = {name: x.to(dtype) if x.is_floating_point() else x for name, x in inputs.items()}
    with torch.no_grad():
        features = model.features(inputs, present)
        bias, terms, absent = model.linear_terms(features)
        assert bias.shape == (CLASSES,)
        assert all(terms[m].shape == (6, CLASSES) and absent[m].shape == (CLASSES,) for m in NAMES)
        for c in range(8):
            has = present & subset(c)
            added = bias + sum(torch.where(has[:, i, None], terms[m], absent[m]) for i, m in enumerate(NAMES))
            fused = model.fuse(features, has)
            assert (added - fused).abs().max() <= tolerance * fused.abs().max()


def test_a_fusion_that_is_not_linear_has_no_terms():
    model = build("gated")
    with pytest.raises(EquipoiseError, match="Gated is not a linear head"):
        model.linear_terms(model.features(*rows()))


@every
def test_garbage_in_absent_rows_changes_nothing(fusion, absence, unimodal):
    model = build(fusion, absence, unimodal)
    inputs, present = rows()
    dirty = {name: x.clone() for name, x in inputs.items()}
    for i, m in enumerate(NAMES):
        dirty[m][~present[:, i]] = float("nan") if dirty[m].is_floating_point() else -(10**9)
        if f"{m}_length" in dirty:
            dirty[f"{m}_length"][~present[:, i]] = 10**9
    results = []
    for x in (inputs, dirty):
        out = model(x, present)
        loss = out.logits.square().sum()
        for i, m in enumerate(NAMES):
            if out.unimodal_logits is not None:
                loss = loss + out.unimodal_logits[m][present[:, i]].square().sum()
        results.append((out.logits, gradients(model, loss)))
    (logits, expected), (found_logits, found) = results
    assert torch.equal(logits, found_logits)
    for name, gradient in expected.items():
        assert (gradient is None) == (found[name] is None), name
        assert gradient is None or (gradient.isfinite().all() and torch.equal(gradient, found[name])), name


@every
def test_garbage_in_absent_features_changes_nothing(fusion, absence, unimodal):
    model = build(fusion, absence, unimodal)
    inputs, present = rows()
    features = {k: f.detach() for k, f in model.features(inputs, present).items()}
    results = []
    for garbage in (0.0, float("nan")):
        leaves = {k: f.clone().requires_grad_() for k, f in features.items()}
        with torch.no_grad():
            for i, m in enumerate(NAMES):
                leaves[m][~present[:, i]] = garbage
        logits = model.fuse(leaves, present)
        found = gradients(model, logits.square().sum())
        results.append([logits, *(g for g in found.values() if g is not None), *(f.grad for f in leaves.values())])
    assert all(torch.equal(a, b) and a.isfinite().all() for a, b in zip(*results, strict=True))


@every
def test_a_modality_that_no_row_has(fusion, absence, unimodal):
    model = build(fusion, absence, unimodal)
    inputs, present = rows(all_present=True)
    present[:, 1] = False
    out = model(inputs, present)
    if absence in SAFE:
        assert not out.features["image"].requires_grad
    gradients(model, out.logits.square().sum())
    groups = check_ownership(model)
    encoder = set(model.encoders["image"].parameters())
    for p in groups["image"]:
        stands_in = (absence in ("input", "mean") and p in encoder) or (
            absence == "token" and p is model.tokens["image"]
        )
        assert (p.grad is not None) == stands_in
    assert all(p.grad is not None for p in groups["head"])
    assert all(p.grad is not None for p in model.encoders["audio"].parameters())


@pytest.mark.parametrize("fusion", [f for f in FUSIONS if "input" in FUSIONS[f].absences])
def test_input_runs_the_encoding_of_absence_in_every_forward(fusion):
    model = build(fusion, "input")
    calls = dict.fromkeys(NAMES, 0)
    for m, encoder in model.encoders.items():
        encoder.register_forward_pre_hook(lambda *_, m=m: calls.__setitem__(m, calls[m] + 1))
    inputs, present = rows(all_present=True)
    model(inputs, present)
    assert calls == dict.fromkeys(NAMES, 2)
    present[:, 0] = False
    model(inputs, present)
    assert calls == {"audio": 3, "image": 4, "text": 4}


def test_each_encoder_sees_only_the_rows_that_have_its_modality_and_a_whole_batch_is_not_copied():
    seen = {}

    class Spy(nn.Module):
        out_features = 3

        def forward(self, x):
            seen["x"] = x
            return x.flatten(1)[:, :3]

    model = LateFusion({"a": Spy(), "b": MLP(4)}, 2)
    x = torch.randn(4, 5)
    inputs = {"a": x, "b": torch.randn(4, 4)}
    present = torch.ones(4, 2, dtype=torch.bool)
    model(inputs, present)
    assert seen["x"] is x
    present[1:3, 0] = False
    model(inputs, present)
    assert torch.equal(seen["x"], x[[0, 3]])
    seen.clear()
    present[:, 0] = False
    model(inputs, present)
    assert not seen


@pytest.mark.parametrize("fusion", ["concat", "sum"])
@pytest.mark.parametrize("absence", ["feature", "input", "mean", "token"])
def test_split_logits_add_up_to_the_fused_ones(fusion, absence):
    model = build(fusion, absence).double()
    assert model.unimodal == "split"
    inputs, present = rows(all_present=True)
    inputs = {name: x.double() if x.is_floating_point() else x for name, x in inputs.items()}
    out = model(inputs, present)
    torch.testing.assert_close(sum(out.unimodal_logits.values()), out.logits, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_auto_is_split_for_linear_heads_else_heads(fusion):
    made = build(fusion, FUSIONS[fusion].absences[0])
    assert made.unimodal == ("split" if fusion in ("concat", "sum", "average", "cosine") else "heads")


@pytest.mark.parametrize("unimodal", ["split", "heads"])
def test_probe_logits_are_the_same_values_and_leave_encoders_alone(unimodal):
    model = build(unimodal=unimodal)
    features = model.features(*rows())
    logits, probes = model.unimodal_logits(features), model.probe_logits(features)
    assert all(torch.equal(logits[m], probes[m]) for m in NAMES)
    gradients(model, sum(z.square().sum() for z in probes.values()))
    assert all(p.grad is None for p in model.encoders.parameters())
    trained = model.heads if unimodal == "heads" else model.fusion
    assert all(p.grad is not None for p in trained.parameters())


@every
def test_ownership_is_complete(fusion, absence, unimodal):
    model = build(fusion, absence, unimodal)
    groups = check_ownership(model)
    assert list(groups) == [*NAMES, "shared", "head"]
    assert sum(map(len, groups.values())) == len(list(model.parameters()))
    owned = {p: m for m, parameters in model.fusion.owned().items() for p in parameters}
    assert set(groups["head"]) == set(model.fusion.parameters()) - set(owned)
    assert all(p in set(groups[m]) for p, m in owned.items())
    assert all(model.tokens[m] in set(groups[m]) for m in model.tokens)
    if unimodal == "heads":
        assert set(model.heads["text"].parameters()) <= set(groups["text"])


def test_an_encoder_of_two_modalities_is_shared():
    encoder = MLP(4)
    model = LateFusion({"left": encoder, "right": encoder}, 2)
    groups = check_ownership(model)
    assert set(groups["shared"]) == set(encoder.parameters())
    assert not groups["left"]
    assert not groups["right"]


def test_a_planted_parameter_that_nobody_owns_is_an_error():
    model = build()
    model.temperature = nn.Parameter(torch.ones(()))
    with pytest.raises(EquipoiseError, match="'temperature' of LateFusion is owned by nobody"):
        check_ownership(model)


@every
def test_zero_rows_forward_and_backward(fusion, absence, unimodal):
    model = build(fusion, absence, unimodal)
    inputs, present = rows(0)
    out = model(inputs, present)
    assert out.logits.shape == (0, CLASSES)
    found = gradients(model, out.logits.sum())
    assert all(g is None or not g.any() for g in found.values())
    encoders = [name for name in found if name.startswith("encoders")]
    assert all((found[name] is not None) == (absence in ("input", "mean")) for name in encoders)


@every
def test_nothing_present_is_finite(fusion, absence, unimodal):
    model = build(fusion, absence, unimodal)
    inputs, present = rows()
    present = present.clone()
    present[2] = False
    for p in (present, torch.zeros_like(present)):
        logits = model(inputs, p).logits
        assert logits.isfinite().all()
        assert all(g is None or g.isfinite().all() for g in gradients(model, logits.square().sum()).values())


@every
def test_permuting_the_batch_permutes_the_outputs(fusion, absence, unimodal):
    model = build(fusion, absence, unimodal).eval()
    inputs, present = rows()
    order = torch.tensor([3, 5, 0, 4, 2, 1])
    out = model(inputs, present)
    permuted = model({name: x[order] for name, x in inputs.items()}, present[order])
    torch.testing.assert_close(permuted.logits, out.logits[order], rtol=0, atol=1e-6)
    for m in NAMES:
        torch.testing.assert_close(permuted.features[m], out.features[m][order], rtol=0, atol=1e-6)


@pytest.mark.parametrize(("fusion", "absence"), [("sum", "drop"), ("attention", "drop")])
def test_drop_leaves_the_modality_out(fusion, absence):
    """Dropping a modality gives what the fusion gives without that modality's column."""
    model = build(fusion, absence).eval()
    inputs, present = rows(all_present=True)
    features = model.features(inputs, present)
    kept = present & torch.tensor([True, False, True])
    if fusion == "sum":
        expected = model.fusion.head(features["audio"] + features["text"])
    else:
        tokens = torch.stack([model.fusion.token[m](features[m]) for m in ("audio", "text")], dim=1)
        weights = (tokens @ model.fusion.query / 10**0.5).softmax(dim=1)
        expected = model.fusion.head((weights[:, :, None] * tokens).sum(dim=1))
    torch.testing.assert_close(model.fuse(features, kept), expected)


@pytest.mark.parametrize("fusion", ["sum", "attention"])
def test_with_everything_dropped_the_bias_is_left(fusion):
    model = build(fusion, "drop")
    inputs, present = rows()
    logits = model(inputs, torch.zeros_like(present)).logits
    assert torch.equal(logits, model.fusion.head.bias.expand(6, -1))


def test_formulas_of_gated_and_film():
    features = {m: torch.randn(5, 12) for m in NAMES}
    taking_part = torch.ones(5, 3, dtype=torch.bool)
    gated = build("gated").fusion
    everything = torch.cat(list(features.values()), dim=1)
    h = 0
    for m in NAMES:
        h = h + torch.sigmoid(everything @ gated.gate[m].weight.T) * torch.tanh(features[m] @ gated.value[m].weight.T)
    torch.testing.assert_close(gated(features, taking_part), gated.head(h))
    film = build("film").fusion
    h = film.projection(features["audio"])
    for m in ("image", "text"):
        both = film.modulation[m](features[m])
        h = (1 + both[:, :10]) * h + both[:, 10:]
    torch.testing.assert_close(film(features, taking_part), film.head(h))


def test_absent_values():
    """Zeros and length 0 unless given; a given value that is not all zeros counts in full."""
    value = torch.randn(5, 3)
    inputs, present = rows()
    given = build("concat", "input", absent_values={"audio": value, "text": torch.tensor([3, 4, 0, 0]),
                                                    "text_length": torch.tensor(2)})  # fmt: skip
    features = given.features(inputs, present)
    full = given.encoders["audio"](value[None], torch.tensor([5]))
    assert torch.equal(features[absent_key("audio")], full)
    two = given.encoders["text"](torch.tensor([[3, 4, 0, 0]]), torch.tensor([2]))
    assert torch.equal(features[absent_key("text")], two)
    default = build("concat", "input")
    features = default.features(inputs, present)
    assert not features[absent_key("audio")].any()
    assert torch.equal(features[absent_key("image")], default.encoders["image"](torch.zeros(1, 1, 6, 6)))
    assert "absent_values.audio" in given.state_dict()
    with pytest.raises(EquipoiseError, match=r"absent_values\['audio'\] has shape \(4, 3\), but a row"):
        build("concat", "input", absent_values={"audio": value[:4]}).features(inputs, present)
    with pytest.raises(EquipoiseError, match="did you mean 'audio'"):
        build("concat", "input", absent_values={"audi": value})
    with pytest.raises(EquipoiseError, match="only read with absence='input'"):
        build("concat", "feature", absent_values={"audio": value})
    with pytest.raises(EquipoiseError, match="has 'audio_length' but no 'audio'"):
        build("concat", "input", absent_values={"audio_length": torch.tensor(1)})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"fusion": "concat", "absence": "drop"}, "absence='drop' has no meaning for fusion='concat', which needs a feature"
         " of every modality: use absence='feature' or 'input' or 'mean' or 'token', or fusion='sum' or 'attention' or"
         " 'average'."),
        ({"fusion": "gated", "absence": "drop"}, "absence='drop' has no meaning for fusion='gated'"),
        ({"fusion": "film", "absence": "drop"}, "absence='drop' has no meaning for fusion='film'"),
        ({"fusion": "gated", "unimodal": "split"}, "unimodal='split' has no meaning for fusion='gated', whose logits are not"
         " a sum of one term a modality: use unimodal='heads' or 'coalition', or fusion='concat' or 'sum' or 'average' or"
         " 'cosine'."),
        ({"fusion": "average", "absence": "feature"}, "absence='feature' has no meaning for fusion='average', which takes the"
         " mean over what is there: use absence='drop', or fusion="),
        ({"fusion": "film", "unimodal": "split"}, "unimodal='split' has no meaning for fusion='film'"),
        ({"fusion": "attention", "unimodal": "split"}, "unimodal='split' has no meaning for fusion='attention'"),
        ({"fusion": "concatenate"}, "Unknown fusion 'concatenate': did you mean 'concat'?"),
        ({"absence": "inputs"}, "Unknown absence 'inputs': did you mean 'input'?"),
        ({"unimodal": "head"}, "Unknown unimodal 'head': did you mean 'heads'?"),
    ],
)  # fmt: skip
def test_refused_combinations_are_sentences(arguments, message):
    with pytest.raises(EquipoiseError) as error:
        build(**arguments)
    assert str(error.value).startswith(message)


def test_sizes_come_from_out_features_or_the_last_linear():
    own = nn.Sequential(nn.Flatten(), nn.Linear(4, 9), nn.Tanh())
    assert LateFusion({"a": own, "b": MLP(3, (), 5)}, 2).sizes == {"a": 9, "b": 5}
    with pytest.raises(
        EquipoiseError, match=r"features of modality 'a' is unknown: Flatten has no Linear.*`out_features`"
    ):
        LateFusion({"a": nn.Flatten()}, 2)
    with pytest.raises(EquipoiseError, match="must agree in out_features, found a: 9, b: 5: make them equal"):
        LateFusion({"a": own, "b": MLP(3, (), 5)}, 2, fusion="sum")


def test_wrong_names_and_shapes_are_sentences():
    model = build()
    inputs, present = rows()
    with pytest.raises(EquipoiseError, match="inputs lack modality 'image'"):
        model({k: x for k, x in inputs.items() if k != "image"}, present)
    with pytest.raises(EquipoiseError, match=r"present must be bool \[B, 3\]"):
        model(inputs, present[:, :2])
    with pytest.raises(EquipoiseError, match="Unknown modality 'audioo': did you mean 'audio'"):
        model.encode("audioo", inputs["audio"])
    with pytest.raises(EquipoiseError, match="features lack 'text'"):
        model.fuse({m: torch.zeros(6, 12) for m in ("audio", "image")}, present)
    with pytest.raises(EquipoiseError, match="name of a parameter group"):
        LateFusion({"head": MLP(3)}, 2)
    with pytest.raises(EquipoiseError, match=r"'values' is not a plain identifier, or torch's modules use it"):
        LateFusion({"values": MLP(3)}, 2)
    with pytest.raises(EquipoiseError, match="where the lengths of 'a' stand"):
        LateFusion({"a": MLP(3), "a_length": MLP(3)}, 2)
    with pytest.raises(EquipoiseError, match="at least one modality"):
        LateFusion({}, 2)
    pooled = MLP(3)
    pooled.out_features = 7
    with pytest.raises(EquipoiseError, match=r"must give \[n, 7\] for n = 2 rows, but it gave \(2, 64\)"):
        LateFusion({"a": pooled}, 2)({"a": torch.zeros(2, 3)}, torch.ones(2, 1, dtype=torch.bool))


def test_an_encoder_that_cannot_take_a_length_is_a_sentence():
    model = LateFusion({"a": nn.Sequential(nn.Flatten(), nn.Linear(6, 4))}, 2)
    inputs = {"a": torch.zeros(2, 6), "a_length": torch.tensor([1, 2])}
    with pytest.raises(EquipoiseError, match="Sequential of modality 'a' would read padding as data"):
        model(inputs, torch.ones(2, 1, dtype=torch.bool))


def test_autocast_and_one_modality():
    model = build()
    inputs, present = rows()
    with torch.autocast("cpu", torch.bfloat16):
        out = model(inputs, present)
    assert out.logits.isfinite().all()
    out.logits.float().sum().backward()
    for fusion in FUSIONS:
        single = LateFusion({"a": MLP(3)}, 2, fusion, FUSIONS[fusion].absences[0])
        assert single({"a": torch.zeros(2, 3)}, torch.ones(2, 1, dtype=torch.bool)).logits.shape == (2, 2)
