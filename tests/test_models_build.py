"""Models from configurations; the page that documents them; what importing them costs."""

import re
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

import equipoise.models as models
from equipoise.models import (
    DynamicSharing,
    EarlyFusion,
    EncoderConfig,
    EquipoiseError,
    LateFusion,
    Modality,
    ModelConfig,
    build_model,
)
from equipoise.models.build import auto_encoder, encoder_kinds
from equipoise.models.fusion import FUSIONS

ROOT = Path(__file__).resolve().parents[1]
MODALITIES = [
    Modality(name="table", kind="array", shape=(10,)),
    Modality(name="half", kind="array", shape=(8, 4)),
    Modality(name="signal", kind="array", shape=(100, 3)),
    Modality(name="audio", kind="sequence", shape=(5,), max_length=12),
    Modality(name="pulse", kind="sequence", max_length=12),
    Modality(name="photo", kind="image", shape=(3, 16, 16)),
    Modality(name="note", kind="text", max_length=9),
]
MODALITIES[1] = MODALITIES[1].model_copy(update={"name": "small", "column": "small"})
AUTO = {
    "table": "mlp", "small": "mlp", "signal": "cnn1d", "audio": "gru", "pulse": "gru", "photo": "cnn2d",
    "note": "embedding_gru",
}  # fmt: skip


def rows(n=4):
    inputs = {}
    for m in MODALITIES:
        shape = (n, *m.decoded_shape)
        inputs[m.name] = torch.randint(0, 30, shape) if m.kind == "text" else torch.randn(shape)
        if m.has_length:
            inputs[f"{m.name}_length"] = torch.randint(0, m.max_length + 1, (n,))
    return inputs, torch.rand(n, len(MODALITIES)) < 0.7


def test_auto_encoders():
    assert {m.name: auto_encoder(m) for m in MODALITIES} == AUTO
    assert auto_encoder(Modality(name="x", shape=(3, 20, 20))) == "cnn2d"
    assert auto_encoder(Modality(name="x", shape=(1000,))) == "mlp"


KINDS = {"late": LateFusion, "early": EarlyFusion, "sharing": DynamicSharing}


@pytest.mark.parametrize(
    ("kind", "absence"), [(k, a) for k in KINDS for a in ("auto", "input") if (k, a) != ("sharing", "input")]
)
def test_every_kind_of_modality_trains(kind, absence):
    torch.manual_seed(0)
    model = build_model(ModelConfig(kind=kind, absence=absence), MODALITIES, 5, vocabulary_sizes={"note": 30})
    assert isinstance(model, KINDS[kind])
    assert model.modalities == tuple(AUTO)
    logits = model(*rows()).logits
    assert logits.shape == (4, 5)
    logits.square().sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    models.check_ownership(model)


@pytest.mark.parametrize("modality", MODALITIES, ids=lambda m: m.name)
def test_every_allowed_encoder_reads_its_modality(modality):
    inputs, _ = rows()
    for kind in encoder_kinds(modality):
        config = EncoderConfig(kind=kind, hidden=16, depth=2, out_features=8)
        encoder = models.build_encoder(config, modality, 30)
        assert encoder(inputs[modality.name], inputs.get(f"{modality.name}_length")).shape == (4, 8)


@pytest.mark.parametrize("kind", KINDS)
def test_weights_are_a_function_of_the_seed(kind):
    def weights():
        torch.manual_seed(3)
        return build_model(ModelConfig(kind=kind), MODALITIES, 5).state_dict()

    first, second = weights(), weights()
    assert list(first) == list(second)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_encoders_of_single_modalities_and_the_default():
    config = ModelConfig(
        encoder=EncoderConfig(out_features=24), encoders={"audio": EncoderConfig(kind="cnn1d", out_features=8)}
    )
    model = build_model(config, MODALITIES, 5, unimodal="heads")
    assert model.sizes == dict.fromkeys(AUTO, 24) | {"audio": 8}
    assert isinstance(model.encoders["audio"], models.CNN1d)
    assert model.unimodal == "heads"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"encoders": {"audi": {}}}, "Unknown modality in model.encoders 'audi': did you mean 'audio'?"),
        ({"encoders": {"note": {"kind": "cnn2d"}}}, "Encoder kind 'cnn2d' has no meaning for modality 'note' (text): use"),
        ({"encoders": {"photo": {"kind": "gru"}}}, "Encoder kind 'gru' has no meaning for modality 'photo' (image): use "
         "'auto', 'cnn2d', 'mlp'."),
        ({"encoders": {"table": {"kind": "cnn2d"}}}, "Encoder kind 'cnn2d' has no meaning for modality 'table' (array of"),
        ({"fusion": "sum", "encoders": {"note": {"out_features": 8}}}, "fusion='sum' adds features, so encoders must agree"),
    ],
)  # fmt: skip
def test_what_does_not_fit_the_data_is_a_sentence(config, message):
    with pytest.raises(EquipoiseError) as error:
        build_model(ModelConfig.model_validate(config), MODALITIES, 5)
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"fusion": "film", "absence": "drop"}, "absence='drop' has no meaning for fusion='film'"),
        ({"kind": "early", "absence": "feature"}, "absence='feature' has no meaning for early fusion"),
        ({"kind": "early", "fusion": "sum"}, "model.fusion has no meaning for model.kind='early': leave it out."),
        ({"tokens": 9}, "model.tokens has no meaning for model.kind='late': leave it out."),
        ({"fussion": "sum"}, "Extra inputs are not permitted"),
    ],
)
def test_what_has_no_meaning_is_refused_by_the_configuration(config, message):
    with pytest.raises(ValidationError, match=re.escape(message)):
        ModelConfig.model_validate(config)


def test_a_configuration_survives_a_round_trip():
    for config in (
        ModelConfig(),
        ModelConfig(kind="early", absence="input", tokens=2),
        ModelConfig(fusion="gated"),
        ModelConfig(kind="sharing", width=0.25),
    ):
        assert ModelConfig.model_validate(config.model_dump()) == config


def test_unimodal_of_a_balancer_is_checked():
    with pytest.raises(EquipoiseError, match="unimodal='heads' has no meaning for early fusion"):
        build_model(ModelConfig(kind="early"), MODALITIES, 5, unimodal="heads")
    with pytest.raises(EquipoiseError, match="unimodal='split' has no meaning for fusion='gated'"):
        build_model(ModelConfig(fusion="gated"), MODALITIES, 5, unimodal="split")
    with pytest.raises(EquipoiseError, match="Unknown modality in vocabulary_sizes 'notes'"):
        build_model(ModelConfig(), MODALITIES, 5, vocabulary_sizes={"notes": 3})
    with pytest.raises(EquipoiseError, match="'table' is there twice"):
        build_model(ModelConfig(), [MODALITIES[0], MODALITIES[0]], 5)


def test_the_table_of_the_page_is_the_table_of_the_code():
    """docs/models.md: one row a fusion; yes where a combination is built, no where it is refused."""
    page = (ROOT / "docs" / "models.md").read_text()
    columns = ("feature", "input", "mean", "token", "drop", "split", "heads", "coalition")
    table = {}
    for line in page.splitlines():
        cells = [c.strip(" `") for c in line.strip().strip("|").split("|")]
        if len(cells) == 9 and set(cells[1:]) <= {"yes", "no"}:
            table[cells[0]] = dict(zip(columns, cells[1:], strict=True))
    assert list(table) == [*FUSIONS, "early", "sharing"]
    small = [Modality(name="a", shape=(3,), transform="standardize"), Modality(name="b", shape=(4,))]
    fills = {"b": torch.arange(4.0)}
    for name, absence, unimodal in product(table, columns[:5], columns[5:]):
        legal = table[name][absence] == table[name][unimodal] == "yes"
        try:
            kind = {"fusion": name} if name in FUSIONS else {"kind": name}
            build_model(ModelConfig(absence=absence, **kind), small, 3, unimodal=unimodal, fills=fills)
        except (EquipoiseError, ValidationError):
            assert not legal, (name, absence, unimodal)
        else:
            assert legal, (name, absence, unimodal)


def test_the_pages_own_model_keeps_the_contract():
    """The ten lines of docs/models.md run."""
    page = (ROOT / "docs" / "models.md").read_text()
    names: dict = {}
    for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(block, names)
    model = names["model"]
    models.check_ownership(model)
    present = torch.tensor([[True, True], [True, False], [False, True]])
    inputs = {m: torch.randn(3, 8) for m in model.modalities}
    out = model(inputs, present)
    assert torch.equal(model.fuse(out.features, present), out.logits)
    present[:, 1] = False
    model(inputs, present).logits.sum().backward()
    assert all(p.grad is None for p in model.encoders["right"].parameters())


def test_every_public_name_is_there_and_importing_them_is_cheap():
    assert all(getattr(models, name) is not None for name in models.__all__)
    assert set(models.__all__) == set(models._HOME_OF)
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = models.Nothing
    code = (
        "import sys, equipoise.models.modality; assert 'torch' not in sys.modules\n"
        "from equipoise.models import LateFusion, EarlyFusion, build_model\n"
        "assert not {'transformers', 'ray', 'torchmetrics'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
