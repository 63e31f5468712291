"""The model contract: what every balancer, the valuation and the pipelines may ask of a multimodal model."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal, NamedTuple

from torch import Tensor, nn

from equipoise.models.errors import EquipoiseError
from equipoise.models.presence import check_inputs, on_rows

Absence = Literal["feature", "input", "drop", "mean", "token"]
#: Where something stands in for an absent modality, beside zeros: features keep it under `absent_key`.
STANDS_IN: tuple[Absence, ...] = ("input", "mean", "token")
Unimodal = Literal["split", "heads", "coalition"]


class Outputs(NamedTuple):
    """What one forward pass gives.

    `logits` [B, K]; `unimodal_logits` {modality: [B, K]}, None where the model's `unimodal` is "coalition" (ask for the
    coalition instead); `features` as `MultimodalModel.features` returns them, None for early fusion.
    """

    logits: Tensor
    unimodal_logits: dict[str, Tensor] | None = None
    features: dict[str, Tensor] | None = None


def absent_key(modality: str) -> str:
    """The key under which `features` keeps what stands for an absent modality, [1, D] (absence="input", "mean", "token")."""
    return f"{modality}.absent"


class MultimodalModel(nn.Module):
    """A model over a fixed tuple of modalities, any of which may be absent in a row.

    Inputs are `{modality: Tensor[B, ...]}`, with `{modality}_length: int64[B]` beside a sequence or a text, and
    `present: bool[B, M]` in the order of `modalities`. What stands in the tensor of an absent modality is never read.

    - `late_fusion`: True where `fuse` is a function of one feature a modality, so that features can be encoded once and
      fused for many coalitions. False where modalities meet early: then only `forward` exists.
    - `absence`: how an absent modality enters: "feature" (its feature is zeros), "input" (the encoding of its absent
      value, computed once a batch, with gradient), "mean" (likewise, of the mean train input), "token" (a learned
      feature), "drop" (left out of a sum, mean or attention).
    - `fusion_name`: that of a late fusion of ours, for balancers that are defined for one alone; "" for any other.
    - `unimodal`: where unimodal logits come from: "split" (W_m f_m + b/M of a linear head), "heads" (an own linear head
      a modality), "coalition" (the model with the others absent).
    - `linear_head`: True where the logits are a sum of one term a modality and a bias (see `linear_terms`).
    - `sizes`: {modality: D}, the size of its feature; only `features` as it stands here reads it.
    """

    modalities: tuple[str, ...]
    late_fusion: bool = True
    absence: Absence = "feature"
    fusion_name: str = ""
    unimodal: Unimodal = "split"
    linear_head: bool = False
    sizes: Mapping[str, int] = MappingProxyType({})

    def encode(self, modality: str, x: Tensor, length: Tensor | None = None) -> Tensor:
        """Features [n, D] of n >= 1 rows of one modality. Late fusion only."""
        raise NotImplementedError

    def features(self, inputs: Mapping[str, Tensor], present: Tensor) -> dict[str, Tensor]:
        """Features {modality: [B, D]} of a batch: each encoder runs once, on the rows that have its modality, and not at
        all where none has; the other rows hold zeros. Under absence="input" also `{absent_key(m): [1, D]}`.

        As it stands it calls `encode` and needs `sizes`; with absence="input" it must be overridden.
        """
        check_inputs(inputs, present, self.modalities)
        if self.absence in STANDS_IN:
            raise EquipoiseError(
                f"{type(self).__name__} has absence={self.absence!r}: write its features(), which must also give what stands "
                "for the absent (see MultimodalModel.features), or use absence='feature'."
            )
        features = {}
        for i, m in enumerate(self.modalities):
            if m not in self.sizes:
                raise EquipoiseError(
                    f"{type(self).__name__} does not say how large the feature of modality {m!r} is: give it the attribute "
                    f"sizes = {{{m!r}: ...}}, or write its features()."
                )
            shape = (len(present), self.sizes[m])

            def run(x: Tensor, length: Tensor | None, m: str = m) -> tuple[Tensor]:
                return (self.encode(m, x, length),)

            has = present[:, i]
            found = on_rows(run, inputs[m], inputs.get(f"{m}_length"), has, int(has.sum()))
            features[m] = found[0] if found else next(self.parameters()).new_zeros(shape)
            if tuple(features[m].shape) != shape:
                raise EquipoiseError(
                    f"encode({m!r}, ...) of {type(self).__name__} must give a feature of {shape[1]} numbers a row, as `sizes` "
                    f"says, but it gave {tuple(features[m].shape[1:])}: correct sizes, or pool what encode gives."
                )
        return features

    def fuse(self, features: Mapping[str, Tensor], present: Tensor) -> Tensor:
        """Logits [B, K] from features and `present` bool[B, M], which may switch off more than the inputs lacked.

        A row with nothing present gives finite logits without a meaning.
        """
        raise NotImplementedError

    def linear_terms(self, features: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
        """For a linear head: bias [K], {m: term [B, K] where m is present}, {m: term [K] where m is absent}."""
        raise NotImplementedError

    def unimodal_logits(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Logits {modality: [B, K]} of each modality alone, for `unimodal` "split" and "heads"."""
        raise NotImplementedError

    def probe_logits(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """`unimodal_logits` of detached features: what trains or reads the heads without touching an encoder."""
        return self.unimodal_logits({name: f.detach() for name, f in features.items()})

    def forward(self, inputs: Mapping[str, Tensor], present: Tensor) -> Outputs:
        features = self.features(inputs, present)
        unimodal = None if self.unimodal == "coalition" else self.unimodal_logits(features)
        return Outputs(self.fuse(features, present), unimodal, features)

    def encoder_modules(self) -> list[nn.Module]:
        """The modules that do most of the work and may be compiled one by one; none where that is not said."""
        return []

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Who owns a parameter: {a modality | "shared" | "head": [parameters]}, every trainable one exactly once."""
        raise NotImplementedError


def check_ownership(model: MultimodalModel) -> dict[str, list[nn.Parameter]]:
    """The model's parameter groups in a fixed order (modalities, "shared", "head"), trainable parameters only.

    Raises `EquipoiseError` naming the parameter that nobody owns or that is owned twice, or an unknown group.
    """
    names = {id(p): name for name, p in model.named_parameters()}
    declared = model.parameter_groups()
    order = [*model.modalities, "shared", "head"]
    owner: dict[int, str] = {}
    for group, parameters in declared.items():
        if group not in order:
            raise EquipoiseError(
                f"parameter_groups() of {type(model).__name__} names the group {group!r}: it must be one of {', '.join(order)}."
            )
        for p in parameters:
            if id(p) in owner:
                raise EquipoiseError(
                    f"Parameter {names.get(id(p), '?')!r} is owned by both {owner[id(p)]!r} and {group!r}: "
                    "parameter_groups() must name each parameter once."
                )
            owner[id(p)] = group
    for name, p in model.named_parameters():
        if p.requires_grad and id(p) not in owner:
            raise EquipoiseError(
                f"Parameter {name!r} of {type(model).__name__} is owned by nobody: add it to a modality, to 'shared' or "
                "to 'head' in parameter_groups()."
            )
    return {group: [p for p in declared.get(group, []) if p.requires_grad] for group in order}
