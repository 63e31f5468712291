"""A model from a configuration and the modalities of a data set."""

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Literal

import torch
from torch import Tensor, nn

from equipoise.models.config import EncoderConfig, EncoderKind, ModelConfig, meaningless
from equipoise.models.contract import MultimodalModel, Unimodal
from equipoise.models.dense import DenseFusion
from equipoise.models.dynamic_sharing import DynamicSharing
from equipoise.models.early_concat import EarlyConcat
from equipoise.models.early_fusion import EarlyFusion, Patches, Words, check_early
from equipoise.models.encoders import GRU, MLP, CNN1d, CNN2d, EmbeddingGRU
from equipoise.models.errors import EquipoiseError
from equipoise.models.fusion import check_combination
from equipoise.models.late_fusion import LateFusion
from equipoise.models.modality import Modality
from equipoise.models.presence import check_known, check_names
from equipoise.models.shared_trunk import SharedMLP
from equipoise.models.shared_unet import SharedUNet
from equipoise.models.unet import UNet

SMALL = 256
"""An array of up to this many values goes through an MLP."""


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
    if config.kind == "sharing":
        return _sharing(config, modalities, num_outputs, unimodal, sizes, dense)
    if config.kind == "early":
        check_early(absence, unimodal)
        return _early(config, modalities, num_outputs, sizes, dense, values)
    # Before the encoders: a refusal should not wait for weights.
    check_combination(fusion, absence, unimodal)
    encoders = {
        m.name: build_encoder(config.encoders.get(m.name, config.encoder), m, sizes.get(m.name), dense)
        for m in modalities
    }
    kind = DenseFusion if dense else LateFusion
    return kind(encoders, num_outputs, fusion, absence, unimodal, values, config.dim, config.scale)


def _early(
    config: ModelConfig,
    modalities: Sequence[Modality],
    num_outputs: int,
    sizes: Mapping[str, int],
    dense: bool,
    values: Mapping[str, Tensor] | None,
) -> MultimodalModel:
    """A transformer over tokens, or one network of inputs side by side."""
    if dense and config.join == "tokens":
        raise EquipoiseError(
            "model.join='tokens' gives one prediction a row, not one a position: segment with model.join='concat'."
        )
    if dense or config.join == "concat":
        other = ("dim", "depth", "heads", "tokens") if dense else ("width", "levels")
        _refuse(config, other, "early", dense)
        for m in modalities:
            if dense:
                encoder_kinds(m, dense)
            elif m.has_length:
                raise EquipoiseError(
                    f"model.join='concat' puts rows of one shape side by side, and modality {m.name!r} is {m.kind} of any "
                    "length: use model.join='tokens'."
                )
        shapes = {m.name: m.decoded_shape for m in modalities}
        dims = _axes(modalities) if dense else 0
        return EarlyConcat(
            shapes,
            num_outputs,
            dims,
            config.resolved_absence,
            values,
            config.dim,
            config.depth,
            config.width,
            config.levels,
        )
    _refuse(config, ("width", "levels"), "early", dense)
    tokenizers: dict[str, nn.Module] = {
        m.name: Words(sizes.get(m.name, m.vocabulary), m.decoded_shape[0], config.dim)
        if m.kind == "text"
        else Patches(m.decoded_shape, config.tokens, config.dim)
        for m in modalities
    }
    return EarlyFusion(
        tokenizers,
        num_outputs,
        config.dim,
        config.depth,
        config.heads,
        config.resolved_absence,
        absent_values=values,
    )


def _sharing(
    config: ModelConfig,
    modalities: Sequence[Modality],
    num_outputs: int,
    unimodal: Unimodal | Literal["auto"],
    sizes: Mapping[str, int],
    dense: bool,
) -> DynamicSharing:
    """One trunk. What is a modality's own before it: a Linear for arrays, else its encoder; in segmentation nothing, or a
    convolution of 1 each where they differ in channels.
    """
    names = tuple(m.name for m in modalities)
    encoders: dict[str, nn.Module] = {}
    if dense:
        _refuse(config, ("encoder", "encoders", "dim", "depth"), "sharing", dense)
        for m in modalities:
            encoder_kinds(m, dense)
        dims, channels = _axes(modalities), [m.decoded_shape[0] for m in modalities]
        convolution, most = nn.Conv2d if dims == 2 else nn.Conv3d, max(channels)
        for name, c in zip(names, channels):
            encoders[name] = nn.Identity() if set(channels) == {most} else convolution(c, most, 1)
        return DynamicSharing(
            encoders, SharedUNet(names, most, config.width, config.levels, dims), num_outputs, unimodal
        )
    _refuse(config, ("width", "levels"), "sharing", dense)
    for m in modalities:
        own = config.encoders.get(m.name, config.encoder)
        if own.out_features not in (None, config.dim):
            raise EquipoiseError(
                f"An encoder of model.kind='sharing' gives the trunk its width, model.dim={config.dim}, and not "
                f"out_features={own.out_features}: leave out_features out, or set model.dim."
            )
        if own.kind == "auto" and auto_encoder(m) == "mlp" and own.hidden is None and own.depth is None:
            encoders[m.name] = MLP(m.decoded_shape, (), config.dim)
        else:
            sized = own.model_copy(update={"out_features": config.dim})
            encoders[m.name] = build_encoder(sized, m, sizes.get(m.name))
    return DynamicSharing(encoders, SharedMLP(names, config.dim, config.depth), num_outputs, unimodal)


def _axes(modalities: Sequence[Modality]) -> int:
    """How many axes the positions of a segmentation have. Raises an `EquipoiseError` where modalities differ in them."""
    axes = {m.name: len(m.decoded_shape) - 1 for m in modalities}
    if len(set(axes.values())) > 1:
        found = ", ".join(f"{name}: {m.decoded_shape[1:]}" for name, m in zip(axes, modalities))
        raise EquipoiseError(f"One network for all needs positions of one kind, found {found}: bring them to one size.")
    return next(iter(axes.values()))


def _refuse(config: ModelConfig, fields: Sequence[str], kind: str, dense: bool) -> None:
    """Raise an `EquipoiseError` for a field that is set and would not be read."""
    for field in fields:
        if config.sets(field):
            raise meaningless(field, kind, " in segmentation" if dense else " outside segmentation")


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
