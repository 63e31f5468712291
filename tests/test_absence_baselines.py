"""Sets whose samples lack modalities, under every way of standing in for them: trained, valued, exported."""

import io
from typing import get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from light_runs import light_run
from PIL import Image

import equipoise
from equipoise import EquipoiseError
from equipoise.datasets.manifest import Manifest
from equipoise.datasets.prepare import prepare
from equipoise.models.contract import Absence
from equipoise.models.modality import Modality
from equipoise.pipelines.card import _ABSENCE
from equipoise.pipelines.export import export
from equipoise.pipelines.trained import from_run
from equipoise.valuation.store import values_of

ROWS = 180
MODALITIES = (
    Modality(name="left", shape=(4,), transform="none"),
    Modality(name="right", shape=(3,), transform="standardize"),
    Modality(name="image", kind="image", shape=(3, 8, 8), transform="none"),
)


def png(pixels):
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(folder of the data set, its raw rows): the class shows in all three, and about a third of the cells is missing."""
    rng = np.random.default_rng(5)
    rows = []
    for i in range(ROWS):
        y = i % 3
        pixels = rng.integers(0, 60, (8, 8, 3)).astype(np.uint8)
        pixels[..., y] += 100
        cells = {
            "left": (5 + rng.normal(size=4) + 2 * np.eye(4)[y]).astype(np.float32).tolist(),
            "right": (-3 + rng.normal(size=3) + 2 * np.eye(3)[y]).astype(np.float32).tolist(),
            "image": png(pixels),
        }
        there = rng.random(3) < 0.65
        there[rng.integers(3)] |= not there.any()
        rows.append(
            {"source_id": f"r{i}", "target": f"c{y}", "split": ("train", "train", "validation", "test")[i // 3 % 4]}
            | {m: v if has else None for (m, v), has in zip(cells.items(), there, strict=True)}
        )
    folder = tmp_path_factory.mktemp("lacking") / "data"
    pq.write_table(pa.Table.from_pylist(rows), folder.with_suffix(".parquet"))
    prepare(folder.with_suffix(".parquet"), folder, modalities=MODALITIES)
    return folder, rows


def test_the_fitted_mean_is_that_of_the_train_rows_that_have_the_modality(made):
    folder, rows = made
    train = [r for r in rows if r["split"] == "train"]
    fitted = Manifest.load(folder).fitted
    left = np.mean([r["left"] for r in train if r["left"] is not None], axis=0)
    np.testing.assert_allclose(fitted["left"]["fill"], left, rtol=1e-6)
    pictures = [np.asarray(Image.open(io.BytesIO(r["image"]))) for r in train if r["image"] is not None]
    np.testing.assert_allclose(fitted["image"]["fill"], np.mean(pictures, axis=(0, 1, 2)) / 255, rtol=1e-5)
    assert "fill" not in fitted["right"], "standardized: its mean is zeros"


WAYS = [
    *({"absence": a} for a in ("feature", "input", "mean", "token")),
    {"absence": "token", "fusion": "gated"},
    {"absence": "mean", "kind": "early", "dim": 16, "depth": 1},
    {"absence": "drop", "fusion": "attention"},
    {"fusion": "average", "absence": "drop"},
    {"balancer": "ensemble"},
    {"absence": "drop", "kind": "sharing", "dim": 16},
    {"absence": "drop", "kind": "early", "join": "concat", "dim": 16},
    {"absence": "mean", "kind": "early", "join": "concat", "dim": 16},
]


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_training_valuing_and_exporting_rows_that_lack_modalities(made, tmp_path, way):
    folder, rows = made
    balancer = way.get("balancer", "joint")
    model = {k: v for k, v in way.items() if k != "balancer"}
    run = light_run(
        tmp_path / "run", folder, balancer=balancer, model=model, batch_size=32, max_steps=60, optimizer={"lr": 0.01}
    )
    trained = from_run(run)
    wanted = model.get("absence", "drop")
    assert run.config.model.resolved_absence == trained.model.absence == wanted
    run.matrix("test")
    values = values_of(run.values("test"))
    parts = values.present.sum(axis=1)
    assert set(parts) == {1, 2, 3}
    # Contributions of what is there add up to its worth; what is absent has none.
    assert np.array_equal(np.isnan(values.contributions), ~values.present)
    np.testing.assert_allclose(np.nansum(values.contributions, axis=1), parts * values.benefit, atol=1e-9)
    assert values.benefit.mean() > 0.6
    # The export has all that stands in for the absent: it predicts what the run predicts.
    lacking = [r for r in rows if r["split"] == "test"][:12]
    other = equipoise.load_exported(export(run, tmp_path / "exported"))
    assert other.predict(lacking) == trained.predict(lacking)
    if wanted == "mean":
        # The oracle: the mean train value given as if it had been measured.
        fitted = run.manifest.fitted
        alone = next(r for r in rows if r["left"] is not None and r["right"] is not None and r["image"] is not None)
        mean_left, mean_right = fitted["left"]["fill"], fitted["right"]["mean"]
        for m, value in (("left", mean_left), ("right", mean_right)):
            [a], [b] = trained.predict([{**alone, m: None}]), trained.predict([{**alone, m: value}])
            assert a == pytest.approx(b, abs=1e-5)
    if wanted == "token":
        assert all(float(t.detach().abs().max()) > 0 for t in trained.model.tokens.values())


def test_a_token_has_gradient_from_the_rows_that_lack_its_modality_alone(made):
    torch.manual_seed(0)
    config = equipoise.models.ModelConfig(absence="token")
    model = equipoise.models.build_model(config, MODALITIES[:2], 3)
    inputs = {"left": torch.randn(6, 4), "right": torch.randn(6, 3)}
    present = torch.tensor([[True, True], [False, True], [True, True], [False, True], [True, True], [True, False]])
    losses = model(inputs, present).logits.square().sum(dim=1)
    for row in range(6):
        for i, m in enumerate(model.modalities):
            [found] = torch.autograd.grad(losses[row], model.tokens[m], retain_graph=True)
            assert bool(found.abs().max() > 0) == (not present[row, i])


def test_the_card_has_words_for_every_absence():
    assert set(_ABSENCE) == set(get_args(Absence))


def test_a_mean_of_texts_is_refused():
    note = Modality(name="note", kind="text", max_length=5)
    with pytest.raises(
        EquipoiseError, match=r"absence='mean' has no meaning for modality 'note', a text, whose .* absence='token'"
    ):
        equipoise.models.build_model(equipoise.models.ModelConfig(absence="mean"), [MODALITIES[1], note], 3)
