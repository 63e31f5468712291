"""Early fusion: a single-stream transformer whose absent tokens are never read."""

import pytest
import torch
from torch import nn

from equipoise.models import EarlyFusion, EquipoiseError, Patches, Words, check_ownership

NAMES = ("audio", "image", "text")
absences = pytest.mark.parametrize("absence", ["drop", "input"])


def build(absence="drop", **kwargs):
    torch.manual_seed(0)
    tokenizers = {"audio": Patches((5, 3), 3, 16), "image": Patches((1, 6, 6), 4, 16), "text": Words(20, 4, 16)}
    return EarlyFusion(tokenizers, 4, dim=16, heads=4, absence=absence, **kwargs)


def rows(n=6, all_present=False):
    g = torch.Generator().manual_seed(1)
    inputs = {
        "audio": torch.randn(n, 5, 3, generator=g),
        "audio_length": torch.tensor([0, 5, 2, 1, 3, 4])[:n],
        "image": torch.randn(n, 1, 6, 6, generator=g),
        "text": torch.randint(1, 20, (n, 4), generator=g),
        "text_length": torch.tensor([4, 2, 1, 3, 1, 0])[:n],
    }
    pattern = torch.tensor([[1, 1, 1], [1, 0, 1], [0, 1, 0], [1, 1, 0], [0, 0, 1], [1, 1, 1]], dtype=torch.bool)
    return inputs, torch.ones(n, 3, dtype=torch.bool) if all_present else pattern[:n]


@absences
def test_contract(absence):
    model = build(absence)
    out = model(*rows())
    assert out.logits.shape == (6, 4)
    assert out.unimodal_logits is None
    assert out.features is None
    assert model.late_fusion is False
    assert model.unimodal == "coalition"
    groups = check_ownership(model)
    assert list(groups) == [*NAMES, "shared", "head"]
    assert any(p is model.types["text"] for p in groups["text"])
    assert set(groups["shared"]) == {*model.blocks.parameters(), *model.norm.parameters()}
    assert sum(map(len, groups.values())) == len(list(model.parameters()))


@absences
@pytest.mark.parametrize("all_present", [False, True])
def test_eval_is_train(absence, all_present):
    model = build(absence)
    inputs, present = rows(all_present=all_present)
    trained = model.train()(inputs, present).logits
    evaluated = model.eval()(inputs, present).logits
    with torch.no_grad():
        without_gradient = model(inputs, present).logits
    with torch.inference_mode():
        inferred = model(inputs, present).logits
    assert torch.equal(trained, evaluated)
    assert torch.equal(trained, without_gradient)
    assert torch.equal(trained, inferred)


@absences
def test_garbage_in_absent_rows_and_padding_changes_nothing(absence):
    model = build(absence)
    inputs, present = rows()
    dirty = {name: x.clone() for name, x in inputs.items()}
    for m, garbage in (("audio", float("nan")), ("text", 10**9)):
        dirty[m][torch.arange(dirty[m].shape[1]) >= inputs[f"{m}_length"][:, None]] = garbage
    for i, m in enumerate(NAMES):
        dirty[m][~present[:, i]] = float("nan") if dirty[m].is_floating_point() else -5
    results = []
    for x in (inputs, dirty):
        logits = model(x, present).logits
        results.append([logits, *torch.autograd.grad(logits.square().sum(), list(model.parameters()))])
    assert all(torch.equal(a, b) and a.isfinite().all() for a, b in zip(*results, strict=True))


def test_drop_is_the_model_without_those_tokens():
    model = build("drop")
    inputs, present = rows(all_present=True)
    kept = present & torch.tensor([True, False, True])
    mixed = kept.clone()
    mixed[0] = True
    torch.testing.assert_close(model(inputs, mixed).logits[1:], model(inputs, kept).logits[1:], rtol=0, atol=1e-6)
    changed = inputs | {"image": inputs["image"] + 1}
    assert torch.equal(model(changed, kept).logits, model(inputs, kept).logits)


def test_input_is_the_absent_value_as_data():
    model = build("input", absent_values={"image": torch.full((1, 6, 6), 0.3)})
    inputs, present = rows(all_present=True)
    absent = present.clone()
    absent[::2, 1] = False
    absent[:, 0] = False
    replaced = {name: x.clone() for name, x in inputs.items()}
    replaced["image"][::2] = 0.3
    replaced["audio"].zero_()
    replaced["audio_length"].zero_()
    torch.testing.assert_close(model(inputs, absent).logits, model(replaced, present).logits, rtol=0, atol=1e-6)


@absences
def test_a_modality_that_no_row_has(absence):
    model = build(absence)
    inputs, present = rows(all_present=True)
    present[:, 1] = False
    model(inputs, present).logits.square().sum().backward()
    groups = check_ownership(model)
    assert all((p.grad is not None) == (absence == "input") for p in groups["image"])
    assert all(p.grad is not None for group in ("audio", "text", "shared", "head") for p in groups[group])


@absences
def test_zero_rows_and_nothing_present(absence):
    model = build(absence)
    inputs, present = rows(0)
    logits = model(inputs, present).logits
    assert logits.shape == (0, 4)
    logits.sum().backward()
    inputs, present = rows()
    present = present.clone()
    present[2] = False
    for p in (present, torch.zeros_like(present)):
        model.zero_grad(set_to_none=True)
        logits = model(inputs, p).logits
        logits.square().sum().backward()
        assert logits.isfinite().all()
        assert all(q.grad is None or q.grad.isfinite().all() for q in model.parameters())


@absences
def test_permuting_the_batch_permutes_the_outputs(absence):
    model = build(absence)
    inputs, present = rows()
    order = torch.tensor([3, 5, 0, 4, 2, 1])
    permuted = model({name: x[order] for name, x in inputs.items()}, present[order]).logits
    logits = model(inputs, present).logits
    torch.testing.assert_close(permuted, logits[order], rtol=0, atol=1e-6)
    alone = torch.cat(
        [model({k: x[i : i + 1] for k, x in inputs.items()}, present[i : i + 1]).logits for i in range(6)]
    )
    torch.testing.assert_close(alone, logits, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"absence": "feature"}, "absence='feature' has no meaning for early fusion, which has no feature a modality"),
        ({"absence": "dropp"}, "Unknown absence 'dropp': did you mean 'drop'?"),
        (
            {"unimodal": "heads"},
            "unimodal='heads' has no meaning for early fusion, which has no feature a modality: use",
        ),
        ({"unimodal": "split"}, "unimodal='split' has no meaning for early fusion"),
        ({"absent_values": {"image": torch.zeros(1, 6, 6)}}, "absent_values are only read with absence='input'"),
    ],
)
def test_refusals_are_sentences(arguments, message):
    with pytest.raises(EquipoiseError) as error:
        build(**arguments)
    assert str(error.value).startswith(message)


def test_a_tokenizer_of_ones_own():
    class Pixels(nn.Module):
        def forward(self, x):
            return x.flatten(2).transpose(1, 2).expand(-1, -1, 8)

    model = EarlyFusion({"image": Pixels(), "table": Patches(10, 4, 8)}, 3, dim=8, heads=2)
    inputs = {"image": torch.randn(2, 1, 2, 2), "table": torch.randn(2, 10)}
    assert model(inputs, torch.ones(2, 2, dtype=torch.bool)).logits.shape == (2, 3)
    wide = EarlyFusion({"image": Pixels()}, 3, dim=16)
    with pytest.raises(EquipoiseError, match=r"must give \[n, tokens, 16\], but it gave \(2, 4, 8\)"):
        wide(inputs, torch.ones(2, 1, dtype=torch.bool))
    with pytest.raises(EquipoiseError, match="dim=10 must be a multiple of heads=4"):
        EarlyFusion({"image": Pixels()}, 3, dim=10)


@pytest.mark.parametrize(("values", "tokens", "expected"), [(10, 4, 4), (9, 4, 3), (3, 8, 3), (8, 1, 1)])
def test_patches_have_no_empty_token(values, tokens, expected):
    found, valid = Patches(values, tokens, 8)(torch.randn(2, values))
    assert found.shape == (2, expected, 8)
    assert valid.all()


def test_patches_of_a_sequence_count_where_they_have_begun():
    _, valid = Patches((6, 2), 3, 8)(torch.randn(4, 6, 2), torch.tensor([0, 1, 3, 6]))
    assert valid.sum(dim=1).tolist() == [1, 1, 2, 3]


def test_words_beyond_the_length_take_no_part():
    model = build()
    inputs, present = rows()
    _, valid = model.tokenizers["text"](inputs["text"], inputs["text_length"])
    assert valid.sum(dim=1).tolist() == [4, 2, 1, 3, 1, 1]
    short = inputs | {"text": inputs["text"][:, :2], "text_length": inputs["text_length"].clamp(max=2)}
    padded = inputs | {"text_length": short["text_length"]}
    torch.testing.assert_close(model(short, present).logits, model(padded, present).logits, rtol=0, atol=1e-6)
