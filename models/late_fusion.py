"""Late fusion: one encoder a modality, and a fusion of their features."""

from collections.abc import Mapping
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from equipoise.models.contract import STANDS_IN, Absence, MultimodalModel, Unimodal, absent_key
from equipoise.models.errors import EquipoiseError, unknown
from equipoise.models.fusion import FUSIONS, Cosine, Fusion, FusionName, LinearFusion, check_combination
from equipoise.models.presence import AbsentValues, call, check_inputs, check_known, check_names, on_rows


class LateFusion(MultimodalModel):
    """Encoders that never see each other's modality, then a fusion of one feature vector a modality.

    >>> model = LateFusion({"image": CNN2d(3), "audio": MLP(40)}, num_classes=10)   # doctest: +SKIP
    >>> model(inputs, present).logits                                               # doctest: +SKIP

    Args:
        encoders: {modality: module}, in the order of the columns of `present`. A module maps [n, ...] to [n, D]; for a
            modality with lengths it takes (x, length). D is its `out_features`, else that of its last Linear.
        num_classes: number of logits.
        fusion: "concat", "sum", "gated", "film", "attention", "average" or "cosine".
        absence: "feature" (zeros), "input" (the feature of the absent value), "mean" (that of the mean input, which
            `absent_values` holds), "token" (a learned feature) or "drop" (sum, attention and average only).
        unimodal: "split" (concat, sum, average, cosine), "heads", "coalition", or "auto": split where possible, else heads.
        absent_values: {modality: a row} for absence="input" and "mean", where zeros (and length 0) are not what absence means.
        dim: width inside gated, film and attention.
        scale: of the cosines of fusion="cosine".

    Raises:
        EquipoiseError: a combination without a meaning, an encoder of unknown size, a name that is no modality.
    """

    def __init__(
        self,
        encoders: Mapping[str, nn.Module],
        num_classes: int,
        fusion: FusionName = "concat",
        absence: Absence = "feature",
        unimodal: Unimodal | Literal["auto"] = "auto",
        absent_values: Mapping[str, Tensor] | None = None,
        dim: int = 64,
        scale: float = 10.0,
    ) -> None:
        super().__init__()
        self.modalities = check_names(encoders)
        self.unimodal = check_combination(fusion, absence, unimodal)
        self.absence, self.fusion_name = absence, fusion
        self.linear_head = FUSIONS[fusion].linear
        if absent_values and absence not in ("input", "mean"):
            raise EquipoiseError(
                f"absent_values are only read with absence='input' or 'mean', not with absence={absence!r}."
            )
        self.sizes = {m: feature_size(m, encoder) for m, encoder in encoders.items()}
        self.encoders = nn.ModuleDict(dict(encoders))
        self.absent_values = AbsentValues(self.modalities, absent_values)
        self.fusion: Fusion = FUSIONS[fusion](self.sizes, num_classes, dim)
        if isinstance(self.fusion, Cosine):
            self.fusion.scale = scale
        # Small, as the attention's query: a token of zeros would start as absence="feature" does.
        tokens = self.sizes if absence == "token" else {}
        self.tokens = nn.ParameterDict({m: nn.Parameter(0.02 * torch.randn(size)) for m, size in tokens.items()})
        heads = self.sizes if self.unimodal == "heads" else {}
        self.heads = nn.ModuleDict({m: nn.Linear(size, num_classes) for m, size in heads.items()})

    def encode(self, modality: str, x: Tensor, length: Tensor | None = None) -> Tensor:
        if modality not in self.modalities:
            raise unknown("modality", modality, self.modalities)
        feature = call(self.encoders[modality], modality, x, length)
        shape = (len(x), *self._feature_shape(modality, x))
        if not isinstance(feature, Tensor) or tuple(feature.shape) != shape:
            found = tuple(feature.shape) if isinstance(feature, Tensor) else type(feature).__name__
            whole = "pool its output to one vector a row" if len(shape) == 2 else "give a map of the input's size"
            raise EquipoiseError(
                f"The encoder of modality {modality!r} must give [{', '.join(map(str, ('n', *shape[1:])))}] for n = {len(x)} "
                f"rows, but it gave {found}: set its attribute out_features, or {whole}."
            )
        return feature

    def features(self, inputs: Mapping[str, Tensor], present: Tensor) -> dict[str, Tensor]:
        """{modality: [B, D]}, see `MultimodalModel.features`, and what stands for an absent one, [1, D], under `absent_key`."""
        check_inputs(inputs, present, self.modalities)
        counts = present.sum(dim=0).tolist()  # the one place where a GPU is waited for
        features: dict[str, Tensor] = {}
        for i, m in enumerate(self.modalities):
            x, length = inputs[m], inputs.get(f"{m}_length")
            found = on_rows(partial(self._encode, m), x, length, present[:, i], counts[i])
            features[m] = found[0] if found else self._weight.new_zeros(len(present), *self._feature_shape(m, x))
            # Also where no row lacks it: all DDP workers must run the same modules.
            if self.absence in ("input", "mean"):
                features[absent_key(m)] = self.encode(m, *self.absent_values(m, x, length))
            elif self.absence == "token":
                features[absent_key(m)] = self._token(m)
        return features

    def fuse(self, features: Mapping[str, Tensor], present: Tensor) -> Tensor:
        self._check_features(features)
        filled: dict[str, Tensor] = {}
        for i, m in enumerate(self.modalities):
            has = present[:, i : i + 1]
            # where and masked_fill, never a product: NaN * 0 is NaN, in values and in gradients.
            if self.absence in STANDS_IN:
                filled[m] = torch.where(has, features[m], features[absent_key(m)])
            else:
                filled[m] = features[m].masked_fill(~has, 0)
        logits: Tensor = self.fusion(filled, present if self.absence == "drop" else torch.ones_like(present))
        return logits

    def linear_terms(self, features: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
        """For a linear head: bias [K], {m: term [B, K] where m is present}, {m: term [K] where m is absent}.

        The rows of a term that lack its modality hold nothing of use: choose by `present`.
        """
        if not isinstance(self.fusion, LinearFusion):
            raise EquipoiseError(f"{type(self.fusion).__name__} is not a linear head: it has no terms, use fuse().")
        self._check_features(features)
        bias = self.fusion.bias
        terms = {m: self.fusion.term(m, features[m]) for m in self.modalities}
        if self.absence in STANDS_IN:
            absent = {m: self.fusion.term(m, features[absent_key(m)])[0] for m in self.modalities}
        else:
            absent = {m: torch.zeros_like(bias) for m in self.modalities}
        return bias, terms, absent

    def unimodal_logits(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        self._check_features(features)
        if self.unimodal == "heads":
            return {m: self.heads[m](features[m]) for m in self.modalities}
        if self.unimodal == "split":
            return {m: self.fusion.split(m, features[m]) for m in self.modalities}
        raise EquipoiseError(
            "A model with unimodal='coalition' has no unimodal logits of its own: fuse with the other modalities absent, or "
            "build it with unimodal='heads'."
        )

    def probe_logits(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """`unimodal_logits` of detached features: their gradient reaches the heads, never an encoder."""
        return self.unimodal_logits({name: feature.detach() for name, feature in features.items()})

    def encoder_modules(self) -> list[nn.Module]:
        return list(dict.fromkeys(self.encoders.values()))

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """An encoder, its token and its heads belong to their modality, what several encoders use to "shared", the rest of
        the fusion to "head".
        """
        seen: dict[nn.Parameter, list[str]] = {}
        for m in self.modalities:
            for p in self.encoders[m].parameters():
                seen.setdefault(p, []).append(m)
        groups: dict[str, list[nn.Parameter]] = {m: [] for m in (*self.modalities, "shared", "head")}
        for p, owners in seen.items():
            groups[owners[0] if len(owners) == 1 else "shared"].append(p)
        owned = self.fusion.owned()
        for m in self.modalities:
            groups[m].extend(self.heads[m].parameters() if m in self.heads else [])
            groups[m].extend([self.tokens[m]] if m in self.tokens else [])
            groups[m].extend(owned.get(m, []))
        given = {p for parameters in owned.values() for p in parameters}
        groups["head"].extend(p for p in self.fusion.parameters() if p not in given)
        return groups

    def _encode(self, modality: str, x: Tensor, length: Tensor | None) -> tuple[Tensor]:
        return (self.encode(modality, x, length),)

    def _token(self, modality: str) -> Tensor:
        """[1, D]"""
        return self.tokens[modality][None]

    def _feature_shape(self, modality: str, x: Tensor) -> tuple[int, ...]:
        """Of one row's feature."""
        return (self.sizes[modality],)

    @property
    def _weight(self) -> Tensor:
        return next(self.fusion.parameters())

    def _check_features(self, features: Mapping[str, Tensor]) -> None:
        needed = list(self.modalities)
        if self.absence in STANDS_IN:
            needed += [absent_key(m) for m in self.modalities]
        for name in needed:
            if name not in features:
                raise EquipoiseError(f"features lack {name!r}: take them from features(inputs, present) of this model.")
        check_known("features", (f.removesuffix(".absent") for f in features), self.modalities)


def feature_size(modality: str, encoder: nn.Module) -> int:
    """D of an encoder: its `out_features`, else that of its last Linear."""
    size = getattr(encoder, "out_features", None)
    if isinstance(size, int):
        return size
    linears = [layer for layer in encoder.modules() if isinstance(layer, nn.Linear)]
    if not linears:
        raise EquipoiseError(
            f"The size of the features of modality {modality!r} is unknown: {type(encoder).__name__} has no Linear layer, so "
            "give it an attribute `out_features`."
        )
    return linears[-1].out_features
