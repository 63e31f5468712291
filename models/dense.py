"""Late fusion position by position, for segmentation."""

from collections.abc import Mapping
from math import prod
from typing import Any

from torch import Tensor

from equipoise.models.contract import absent_key
from equipoise.models.errors import EquipoiseError
from equipoise.models.late_fusion import LateFusion


class DenseFusion(LateFusion):
    """Encoders that give a feature map a modality, [n, D, *positions], and a fusion of them at every position.

    A position is to the fusion what a row is in `LateFusion`: the maps are laid out as rows [B * positions, D], and logits
    come back as [B, K, *positions]. So every fusion, absence and kind of unimodal logits of `LateFusion` is there; a linear
    head is a 1 x 1 convolution. Modalities must agree in their positions.

    >>> model = DenseFusion({"t1": UNet(1), "flair": UNet(1)}, num_classes=3)     # doctest: +SKIP
    >>> model(inputs, present).logits.shape                                      # doctest: +SKIP
    (8, 3, 16, 16, 16)
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.linear_head = False  # its terms are maps, which the additions of a sweep do not take

    def features(self, inputs: Mapping[str, Tensor], present: Tensor) -> dict[str, Tensor]:
        """Feature maps {modality: [B, D, *positions]}, see `LateFusion.features`."""
        shapes = {m: tuple(inputs[m].shape[2:]) for m in self.modalities if m in inputs}
        first = next(iter(shapes), None)
        for m, shape in shapes.items():
            if first is not None and shape != shapes[first]:
                raise EquipoiseError(
                    f"Segmentation fuses position by position, but modality {first!r} has positions {shapes[first]} and "
                    f"{m!r} {shape}: bring them to one size."
                )
        return super().features(inputs, present)

    def fuse(self, features: Mapping[str, Tensor], present: Tensor) -> Tensor:
        self._check_features(features)
        rows, *positions = self._layout(features)
        logits = super().fuse(self._rows(features), present.repeat_interleave(prod(positions), 0))
        return self._maps(logits, rows, *positions)

    def linear_terms(self, features: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
        raise EquipoiseError("DenseFusion has no terms a modality: they would be maps, so use fuse().")

    def unimodal_logits(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        self._check_features(features)
        layout = self._layout(features)
        found = super().unimodal_logits(self._rows(features))
        return {m: self._maps(z, *layout) for m, z in found.items()}

    def _feature_shape(self, modality: str, x: Tensor) -> tuple[int, ...]:
        return (self.sizes[modality], *x.shape[2:])

    def _layout(self, features: Mapping[str, Tensor]) -> tuple[int, ...]:
        """Rows of the batch, then the positions."""
        shape = features[self.modalities[0]].shape
        return (shape[0], *shape[2:])

    def _rows(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """[B, D, *positions] as [B * positions, D]; what stands for an absent modality, one row or one token, everywhere."""
        rows, *positions = self._layout(features)
        absent = {absent_key(m) for m in self.modalities}
        out = {}
        for name, f in features.items():
            if name in absent:
                f = f.reshape(*f.shape, *(1,) * (2 + len(positions) - f.ndim)).expand(rows, -1, *positions)
            out[name] = f.movedim(1, -1).flatten(0, -2)
        return out

    @staticmethod
    def _maps(logits: Tensor, *layout: int) -> Tensor:
        return logits.reshape(*layout, logits.shape[1]).movedim(-1, 1)
