"""What stands for an absent modality: the mean train input, and a token with the gradient of the rows that lack it."""

import re

import numpy as np
import pyarrow as pa
import pytest
import torch

from equipoise.datasets.fitting import Fill, fit_of
from equipoise.models import Modality, ModelConfig, absent_key, build_model
from equipoise.pipelines.assembly import fills

FLAT = Modality(name="flat", shape=(4,), transform="none")
STEPS = Modality(name="steps", shape=(3, 2), transform="none")
VOLUME = Modality(name="volume", shape=(2, 3, 4, 5), transform="none")
SCALED = Modality(name="scaled", shape=(4,), transform="standardize")
ALL = (FLAT, STEPS, VOLUME, SCALED)


def stored(rows):
    return pa.array([row.astype("<f4").tobytes() for row in rows], pa.large_binary())


def fitted(modalities, n=5000, offset=1e4):
    """The fitted state of random rows, and the rows."""
    rng = np.random.default_rng(0)
    state, rows = {}, {}
    for m in modalities:
        rows[m.name] = (rng.normal(size=(n, *m.shape)) + offset).astype(np.float32)
        fit = fit_of(m)
        for part in np.array_split(rows[m.name], 3):
            fit.update(stored(part))
        state[m.name] = fit.state()
    return state, rows


def test_the_mean_is_one_of_float64_however_many_rows():
    state, rows = fitted((FLAT, STEPS, VOLUME))
    found = fills((FLAT, STEPS, VOLUME), state)
    for m in (FLAT, STEPS):
        np.testing.assert_allclose(found[m.name], rows[m.name].astype(np.float64).mean(axis=0), rtol=1e-12)
    channels = rows["volume"].astype(np.float64).mean(axis=(0, 2, 3, 4))
    np.testing.assert_allclose(found["volume"].numpy().ravel(), channels, rtol=1e-12)


@pytest.mark.parametrize("modality", [FLAT, STEPS, VOLUME], ids=lambda m: m.name)
def test_a_modality_that_no_train_row_has_is_zeros(modality):
    state = {modality.name: Fill(modality).state()}
    model = build_model(ModelConfig(absence="mean"), [modality, SCALED], 3, fills=fills([modality], state))
    row, _ = model.absent_values(modality.name, torch.ones(2, *modality.shape), None)
    assert torch.equal(row, torch.zeros(1, *modality.shape))


@pytest.mark.parametrize("fusion", ["concat", "sum", "gated", "film", "attention"])
def test_absence_mean_is_the_model_on_the_mean_input(fusion):
    state, rows = fitted(ALL, n=20, offset=3.0)
    torch.manual_seed(0)
    model = build_model(ModelConfig(absence="mean", fusion=fusion), ALL, 3, fills=fills(ALL, state)).double()
    rng = np.random.default_rng(1)
    inputs = {m.name: torch.from_numpy(rng.normal(size=(6, *m.shape))) for m in ALL}
    present = torch.from_numpy(rng.random((6, 4)) < 0.5)
    present[:, 3] |= ~present.any(dim=1)
    means = {m: rows[m].astype(np.float64).mean(axis=0) for m in rows}
    means["volume"] = np.broadcast_to(means["volume"].mean(axis=(1, 2, 3), keepdims=True), VOLUME.shape)
    means["scaled"] = np.zeros(4)
    filled = {
        m: torch.where(present[:, i].reshape(-1, *(1,) * (x.ndim - 1)), x, torch.from_numpy(means[m].copy()))
        for i, (m, x) in enumerate(inputs.items())
    }
    wanted = model(filled, torch.ones_like(present)).logits
    # The mean travels as float32.
    torch.testing.assert_close(model(inputs, present).logits, wanted, rtol=1e-5, atol=1e-6)
    features = model.features(inputs, present)
    for m in ALL:
        alone = model.encode(m.name, torch.from_numpy(means[m.name].copy())[None])
        torch.testing.assert_close(features[absent_key(m.name)], alone, rtol=1e-5, atol=1e-6)


def test_the_mean_travels_with_the_weights():
    state, _ = fitted((FLAT, SCALED), n=20)
    made = build_model(ModelConfig(absence="mean"), [FLAT, SCALED], 3, fills=fills([FLAT, SCALED], state))
    other = build_model(ModelConfig(absence="mean"), [FLAT, SCALED], 3, fills={"flat": torch.zeros(4)})
    other.load_state_dict(made.state_dict())
    inputs, present = {m: torch.randn(3, 4) for m in ("flat", "scaled")}, torch.tensor([[0, 1], [1, 0], [1, 1]]) > 0
    assert torch.equal(made(inputs, present).logits, other(inputs, present).logits)


@pytest.mark.parametrize("fusion", ["concat", "sum", "gated", "film", "attention"])
def test_a_tokens_gradient_is_that_of_finite_differences_and_of_the_rows_that_lack_it(fusion):
    torch.manual_seed(0)
    model = build_model(ModelConfig(absence="token", fusion=fusion, dim=6), [FLAT, SCALED], 3).double()
    inputs = {m: torch.randn(6, 4, dtype=torch.float64) for m in model.modalities}
    present = torch.tensor([[1, 1], [0, 1], [1, 0], [0, 1], [1, 1], [1, 0]]) > 0

    def losses():
        return model(inputs, present).logits.square().sum(dim=1)

    for i, m in enumerate(model.modalities):
        token, step = model.tokens[m], 1e-6
        rows = torch.stack([torch.autograd.grad(losses()[r], token)[0] for r in range(6)])
        numeric = torch.zeros_like(rows)
        for k in (0, 7, 63):
            with torch.no_grad():
                token[k] += step
                up = losses()
                token[k] -= 2 * step
                numeric[:, k] = (up - losses()) / (2 * step)
                token[k] += step
            torch.testing.assert_close(rows[:, k], numeric[:, k], rtol=1e-5, atol=1e-8)
        assert torch.equal(rows.abs().amax(dim=1) > 0, ~present[:, i])


@pytest.mark.parametrize(
    ("modalities", "config", "sentence"),
    [
        (
            [SCALED, Modality(name="note", kind="text", max_length=5)],
            {"absence": "mean"},
            "absence='mean' has no meaning for modality 'note', a text, whose rows have no common length: use absence='token'",
        ),
        (
            [SCALED, Modality(name="walk", kind="sequence", shape=(2,), max_length=5)],
            {"absence": "mean"},
            "absence='mean' has no meaning for modality 'walk', a sequence, whose rows have no common length",
        ),
        (
            [FLAT, SCALED],
            {"absence": "mean"},
            "needs the mean of modality 'flat' over the train rows, which this data set's manifest does not hold: prepare",
        ),
        ([FLAT, SCALED], {"absence": "token", "kind": "early"}, "absence='token' has no meaning for early fusion"),
        (
            [FLAT, SCALED],
            {"absence": "token", "fusion": "average"},
            "absence='token' has no meaning for fusion='average', which takes the mean over what is there: use absence='drop'",
        ),
    ],
)
def test_what_has_no_meaning_is_one_sentence(modalities, config, sentence):
    # What a configuration alone refuses comes through pydantic, which makes it a ValueError of several lines.
    with pytest.raises(ValueError, match=re.escape(sentence)):
        build_model(ModelConfig(**config), modalities, 3)
