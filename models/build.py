"""A model from a configuration and the modalities of a data set."""

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from equipoise.models.contract import Absence, MultimodalModel, Unimodal
from equipoise.models.dense import DenseFusion
from equipoise.models.early_fusion import EarlyFusion, Patches, Words, check_early
from equipoise.models.encoders import GRU, MLP, CNN1d, CNN2d, EmbeddingGRU
from equipoise.models.errors import EquipoiseError
from equipoise.models.fusion import FUSIONS, FusionName, check_combination
from equipoise.models.late_fusion import LateFusion
from equipoise.models.modality import Modality
from equipoise.models.presence import check_known, check_names
from equipoise.models.unet import UNet

EncoderKind = Literal["mlp", "cnn1d", "cnn2d", "gru", "embedding_gru", "unet"]

SMALL = 256
"""An array of up to this many values goes through an MLP."""


class EncoderConfig(BaseModel):
    """The encoder of a modality. `kind="auto"` chooses by the modality's kind and shape, see `auto_encoder`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["auto", "mlp", "cnn1d", "cnn2d", "gru", "embedding_gru", "unet"] = "auto"
    hidden: int | None = Field(
        default=None, ge=1, description="width inside: mlp, cnn1d, embedding_gru 64, cnn2d 32, unet 8; gru has none"
    )
    depth: int | None = Field(
        default=None, ge=1, description="hidden or recurrent layers: mlp, gru 1, cnn1d, cnn2d 2; levels of a unet: 2"
    )
    out_features: int | None = Field(
        default=None, ge=1, description="size of the feature: 64; at each position of a unet: 16"
    )


class ModelConfig(BaseModel):
    """What model to build. `encoders` has an encoder for single modalities, `encoder` the one for all others."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["late", "early"] = "late"
    encoder: EncoderConfig = Field(default_factory=EncoderConfig)
    encoders: dict[str, EncoderConfig] = {}
    # Spelt out: pydantic's sentence on a union of literals names the union.
    fusion: Literal["concat", "sum", "gated", "film", "attention", "average", "auto"] = Field(
        "auto", description="late fusion only; auto: what the balancer needs, else concat"
    )
    absence: Literal["feature", "input", "drop", "mean", "token", "auto"] = Field(
        "auto", description="auto: feature for late fusion (average: drop), drop for early"
    )
    dim: int = Field(64, ge=1, description="width inside gated, film, attention, and of the early transformer")
    depth: int = Field(2, ge=1, description="layers of the early transformer")
    heads: int = Field(4, ge=1, description="attention heads of the early transformer")
    tokens: int = Field(4, ge=1, description="tokens of a modality that is not text, early fusion only")

    @model_validator(mode="after")
    def _has_a_meaning(self) -> "ModelConfig":
        if self.kind == "early" and self.fusion == "concat":
            # What configurations of early fusion held before "auto" was the default.
            object.__setattr__(self, "fusion", "auto")
        other = {"late": ("depth", "heads", "tokens"), "early": ("encoder", "encoders", "fusion")}[self.kind]
        for field in other:
            default = type(self).model_fields[field].get_default(call_default_factory=True)
            if getattr(self, field) != default:
                raise EquipoiseError(f"model.{field} has no meaning for model.kind={self.kind!r}: leave it out.")
        if self.kind == "late":
            check_combination(self.resolved_fusion, self.resolved_absence, "auto")
        else:
            check_early(self.resolved_absence, "auto")
        return self

    @property
    def resolved_fusion(self) -> FusionName:
        return "concat" if self.fusion == "auto" else self.fusion

    @property
    def resolved_absence(self) -> Absence:
        if self.absence == "auto":
            return FUSIONS[self.resolved_fusion].absences[0] if self.kind == "late" else "drop"
        return self.absence


def auto_encoder(modality: Modality, dense: bool = False) -> EncoderKind:
    """Segmentation (`dense`): unet. Text: embedding_gru. Image: cnn2d. Sequence, audio: gru. Array: mlp where it is
    one-dimensional or small (up to 256 values), cnn1d for [T, C], cnn2d for [C, H, W], mlp above.
    """
    if dense:
        return "unet"
    if modality.kind == "array":
        if prod(modality.shape) <= SMALL:
            return "mlp"
        by_rank: dict[int, EncoderKind] = {2: "cnn1d", 3: "cnn2d"}
        return by_rank.get(len(modality.shape), "mlp")
    by_kind: dict[str, EncoderKind] = {"text": "embedding_gru", "image": "cnn2d", "sequence": "gru", "audio": "gru"}
    return by_kind[modality.kind]


def encoder_kinds(modality: Modality, dense: bool = False) -> tuple[EncoderKind, ...]:
    """The encoders that a modality may have. Raises an `EquipoiseError` for one that has no positions to segment."""
    if dense:
        if modality.kind == "image" or (modality.kind == "array" and len(modality.shape) in (3, 4)):
            return ("unet",)
        raise EquipoiseError(
            f"Segmentation needs images, or arrays of shape (channels, H, W) or (channels, D, H, W), and modality "
            f"{modality.name!r} is {modality.kind} of shape {modality.shape}: leave it out, or choose another task."
        )
    if modality.kind == "text":
        return ("embedding_gru",)
    if modality.kind == "image":
        return ("cnn2d", "mlp")
    if modality.kind in ("sequence", "audio"):
        return ("gru", "cnn1d", "mlp")
    return ("mlp", "cnn1d", "gru", "cnn2d") if len(modality.shape) == 3 else ("mlp", "cnn1d", "gru")


def build_encoder(
    config: EncoderConfig, modality: Modality, vocabulary_size: int | None = None, dense: bool = False
) -> nn.Module:
    """The encoder of one modality. Raises an `EquipoiseError` where its kind cannot read the modality."""
    allowed = encoder_kinds(modality, dense)
    kind: EncoderKind = auto_encoder(modality, dense) if config.kind == "auto" else config.kind
    if kind not in allowed:
        shape = f" of shape {modality.shape}" if modality.kind == "array" else ""
        raise EquipoiseError(
            f"Encoder kind {kind!r} has no meaning for modality {modality.name!r} ({modality.kind}{shape})"
            f"{' in segmentation' if dense else ''}: use "
            f"{', '.join(map(repr, ('auto', *allowed)))}."
        )
    out = config.out_features or (16 if kind == "unet" else 64)
    width = {} if config.hidden is None else {"hidden": config.hidden}
    depth = {} if config.depth is None else {"depth": config.depth}
    row = modality.decoded_shape
    make: dict[EncoderKind, Callable[[], nn.Module]] = {
        "mlp": lambda: MLP(row, (config.hidden or 64,) * (config.depth or 1), out),
        "cnn1d": lambda: CNN1d(prod(row[1:]), out, **width, **depth),
        "cnn2d": lambda: CNN2d(row[0], out, **width, **depth),
        "gru": lambda: GRU(prod(row[1:]), out, **depth),
        "embedding_gru": lambda: EmbeddingGRU(
            vocabulary_size or modality.vocabulary, config.hidden or 64, out, **depth
        ),
        "unet": lambda: UNet(row[0], out, **width, **depth, dims=len(row) - 1),
    }
    return make[kind]()


def build_model(
    config: ModelConfig,
    modalities: Sequence[Modality],
    num_outputs: int,
    unimodal: Unimodal | Literal["auto"] = "auto",
    vocabulary_sizes: Mapping[str, int] | None = None,
    dense: bool = False,
    fills: Mapping[str, Tensor] | None = None,
) -> MultimodalModel:
    """The model of a configuration, on the CPU; its weights are a function of torch's seed.

    Args:
        config: what to build.
        modalities: those of the data set, in the order of the columns of `present`.
        num_outputs: number of logits (`Task.num_outputs`).
        unimodal: what the balancer needs; "auto": split for concat and sum, heads for other late fusions, coalition for
            early fusion.
        vocabulary_sizes: {text modality: ids in its fitted vocabulary, padding included}; else `Modality.vocabulary`.
        dense: logits at every position (`Task.dense`): a `DenseFusion` of U-Nets.
        fills: {modality: its mean train input} for absence="mean", where that is not zeros.

    Raises:
        EquipoiseError: a combination without a meaning, or a name that is no modality.
    """
    names = check_names(m.name for m in modalities)
    sizes = dict(vocabulary_sizes or {})
    check_known("model.encoders", config.encoders, names)
    check_known("vocabulary_sizes", sizes, names)
    absence, fusion = config.resolved_absence, config.resolved_fusion
    values = _mean_inputs(modalities, fills or {}) if absence == "mean" else None
    if config.kind == "early":
        if dense:
            raise EquipoiseError(
                "model.kind='early' gives one prediction a row, not one a position: segment with 'late'."
            )
        check_early(absence, unimodal)
        tokenizers: dict[str, nn.Module] = {
            m.name: Words(sizes.get(m.name, m.vocabulary), m.decoded_shape[0], config.dim)
            if m.kind == "text"
            else Patches(m.decoded_shape, config.tokens, config.dim)
            for m in modalities
        }
        return EarlyFusion(
            tokenizers, num_outputs, config.dim, config.depth, config.heads, absence, absent_values=values
        )
    # Before the encoders: a refusal should not wait for weights.
    check_combination(fusion, absence, unimodal)
    encoders = {
        m.name: build_encoder(config.encoders.get(m.name, config.encoder), m, sizes.get(m.name), dense)
        for m in modalities
    }
    kind = DenseFusion if dense else LateFusion
    return kind(encoders, num_outputs, fusion, absence, unimodal, values, config.dim)


def _mean_inputs(modalities: Sequence[Modality], fills: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """{modality: the mean of its train rows, as its encoder gets it}: zeros where it is standardized, and left out then."""
    found = {}
    for m in modalities:
        if m.has_length:
            raise EquipoiseError(
                f"absence='mean' has no meaning for modality {m.name!r}, a {m.kind}, whose rows have no common length: use "
                "absence='token', 'feature' or 'drop'."
            )
        if m.transform == "standardize":
            continue
        if m.name not in fills:
            raise EquipoiseError(
                f"absence='mean' needs the mean of modality {m.name!r} over the train rows, which this data set's manifest does "
                "not hold: prepare it again."
            )
        found[m.name] = fills[m.name].to(torch.float32).expand(m.decoded_shape)
    return found
