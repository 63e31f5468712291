"""Dynamic Sharing: one trunk for all modalities, an own normalisation for each, and the mean over what is present."""

from collections.abc import Mapping
from functools import partial
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from equipoise.models.contract import Absence, MultimodalModel, Unimodal
from equipoise.models.errors import EquipoiseError, unknown
from equipoise.models.presence import call, check_inputs, check_known, check_names, on_rows
from equipoise.models.shared_trunk import HEADS, ModalityNorm


class DynamicSharing(MultimodalModel):
    """Each modality alone through what is its own and then through one trunk, and the mean over those a row has
    (Wang et al., "Gradient-Guided Modality Decoupling for Missing-Modality Robustness", AAAI 2024: the forward half, of which
    the balancer `gmd` is the backward half).

        h_m = T(f_m(x_m); theta, gamma_m, beta_m);  logits = W mean over the present m of h_m, + b

    Nothing stands in for an absent modality and nothing is computed for it: all 2^M - 1 sets of modalities cost M passes and
    no parameters of their own. The head is linear, so the logits of a set are the mean of its members' logits. Modalities meet
    in theta alone; a modality owns its f_m and the scales and shifts (gamma, beta) of the trunk's norms.

    >>> trunk = SharedUNet(("t1", "flair"), width=0.5)                                          # doctest: +SKIP
    >>> model = DynamicSharing({"t1": nn.Identity(), "flair": nn.Identity()}, trunk, 3)         # doctest: +SKIP

    Args:
        encoders: {modality: module} in the order of the columns of `present`: what is a modality's own, before the trunk. For
            a modality with lengths it takes (x, length).
        trunk: takes (x, modality) and gives features: `SharedMLP` [n, D], `SharedUNet` [n, D, *positions], or a module of
            yours with `out_features` (D) and `dims` (0, or how many axes positions have), whose parameters are shared, but
            those in a `ModalityNorm`.
        num_classes: number of logits, at each position where the trunk gives maps.
        unimodal: "split" (the logits of the modality alone, W h_m + b), "heads" (an own linear head a modality) or
            "coalition"; "auto" means split.
    """

    absence: Absence = "drop"
    fusion_name = "sharing"  # not "average": `ensemble` trains models apart, and these share a trunk

    def __init__(
        self,
        encoders: Mapping[str, nn.Module],
        trunk: nn.Module,
        num_classes: int,
        unimodal: Unimodal | Literal["auto"] = "auto",
    ) -> None:
        super().__init__()
        self.modalities = check_names(encoders)
        if unimodal not in ("auto", *get_args(Unimodal)):
            raise unknown("unimodal", unimodal, ("auto", *get_args(Unimodal)))
        self.unimodal = "split" if unimodal == "auto" else unimodal
        size = getattr(trunk, "out_features", None)
        self.dims = getattr(trunk, "dims", None)
        if not isinstance(size, int) or self.dims not in HEADS:
            raise EquipoiseError(
                f"The trunk, {type(trunk).__name__}, must say what it gives: the attributes out_features (the size of a "
                "feature) and dims (0 for one vector a row, 2 or 3 for a map of a picture or a volume)."
            )
        self.sizes = dict.fromkeys(self.modalities, size)
        self.encoders = nn.ModuleDict(dict(encoders))
        self.trunk = trunk
        self.head = HEADS[self.dims](size, num_classes)
        heads = self.modalities if self.unimodal == "heads" else ()
        self.heads = nn.ModuleDict({m: HEADS[self.dims](size, num_classes) for m in heads})
        for norm in self._norms():
            if set(norm.weight) != set(self.modalities):
                raise EquipoiseError(
                    f"The trunk's norms have affines of {', '.join(norm.weight)}, but the model has the modalities "
                    f"{', '.join(self.modalities)}: build the trunk for these."
                )

    def encode(self, modality: str, x: Tensor, length: Tensor | None = None) -> Tensor:
        """Features [n, D], or maps [n, D, *positions], of n rows of one modality."""
        if modality not in self.modalities:
            raise unknown("modality", modality, self.modalities)
        feature: Tensor = self.trunk(call(self.encoders[modality], modality, x, length), modality)
        shape = (len(x), *self._feature_shape(modality, x))
        if tuple(feature.shape) != shape:
            raise EquipoiseError(
                f"The trunk must give [{', '.join(map(str, ('n', *shape[1:])))}] for n = {len(x)} rows of modality "
                f"{modality!r}, but it gave {tuple(feature.shape)}: correct its out_features, or what it does to positions."
            )
        return feature

    def features(self, inputs: Mapping[str, Tensor], present: Tensor) -> dict[str, Tensor]:
        """{modality: [B, D] or [B, D, *positions]}: encoder and trunk run on the rows that have a modality, and not at all
        where none has; the other rows hold zeros that no fusion reads.
        """
        check_inputs(inputs, present, self.modalities)
        if self.dims:
            self._check_positions(inputs)
        counts = present.sum(dim=0).tolist()  # the one place where a GPU is waited for
        features = {}
        for i, m in enumerate(self.modalities):
            x = inputs[m]
            found = on_rows(partial(self._encode, m), x, inputs.get(f"{m}_length"), present[:, i], counts[i])
            features[m] = (
                found[0] if found else next(self.head.parameters()).new_zeros(len(x), *self._feature_shape(m, x))
            )
        return features

    def fuse(self, features: Mapping[str, Tensor], present: Tensor) -> Tensor:
        self._check_features(features)
        first = features[self.modalities[0]]
        rows = (len(present), *(1,) * (first.ndim - 1))
        # A modality that no row has takes no part at all: what is its own then gets no gradient, not one of zeros.
        some, every = torch.stack([present.any(dim=0), present.all(dim=0)]).tolist()
        parts = [
            features[m] if every[i] else features[m].masked_fill(~present[:, i].reshape(rows), 0)
            for i, m in enumerate(self.modalities)
            if some[i]
        ]
        total = sum(parts[1:], parts[0]) if parts else torch.zeros_like(first)
        logits: Tensor = self.head(total / present.sum(dim=1).clamp(min=1).reshape(rows))
        return logits

    def unimodal_logits(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        self._check_features(features)
        if self.unimodal == "coalition":
            raise EquipoiseError(
                "A model with unimodal='coalition' has no unimodal logits of its own: fuse with the other modalities absent, "
                "or build it with unimodal='split', which is the same here, or 'heads'."
            )
        heads = self.heads if self.unimodal == "heads" else dict.fromkeys(self.modalities, self.head)
        return {m: heads[m](features[m]) for m in self.modalities}

    def encoder_modules(self) -> list[nn.Module]:
        return [*dict.fromkeys(self.encoders.values()), self.trunk]

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """A modality owns its encoder, its affines and its head where it has one; the rest of the trunk is "shared"."""
        groups: dict[str, list[nn.Parameter]] = {m: list(self.encoders[m].parameters()) for m in self.modalities}
        for m in self.modalities:
            groups[m] += [p for norm in self._norms() for p in norm.owned(m)]
            groups[m] += self.heads[m].parameters() if m in self.heads else []
        owned = {p for parameters in groups.values() for p in parameters}
        groups["shared"] = [p for p in self.trunk.parameters() if p not in owned]
        return groups | {"head": list(self.head.parameters())}

    def _norms(self) -> list[ModalityNorm]:
        return [module for module in self.trunk.modules() if isinstance(module, ModalityNorm)]

    def _encode(self, modality: str, x: Tensor, length: Tensor | None) -> tuple[Tensor]:
        return (self.encode(modality, x, length),)

    def _feature_shape(self, modality: str, x: Tensor) -> tuple[int, ...]:
        """Of one row's feature."""
        return (self.sizes[modality], *(x.shape[2:] if self.dims else ()))

    def _check_features(self, features: Mapping[str, Tensor]) -> None:
        for m in self.modalities:
            if m not in features:
                raise EquipoiseError(f"features lack {m!r}: take them from features(inputs, present) of this model.")
        check_known("features", features, self.modalities)

    def _check_positions(self, inputs: Mapping[str, Tensor]) -> None:
        first, *others = self.modalities
        for m in others:
            if inputs[m].shape[2:] != inputs[first].shape[2:]:
                raise EquipoiseError(
                    f"Segmentation takes the mean position by position, but modality {first!r} has positions "
                    f"{tuple(inputs[first].shape[2:])} and {m!r} {tuple(inputs[m].shape[2:])}: bring them to one size."
                )
