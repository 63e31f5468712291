"""Early fusion by concatenation: all modalities as one input, zeros where one is absent."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from equipoise.models.contract import Absence, MultimodalModel, Outputs
from equipoise.models.errors import EquipoiseError
from equipoise.models.presence import AbsentValues, check_inputs, check_names
from equipoise.models.shared_trunk import HEADS, SharedMLP
from equipoise.models.shared_unet import SharedUNet

#: The one owner of affines: to a trunk of early fusion everything is one modality.
JOINED = "joined"


class EarlyConcat(MultimodalModel):
    """The modalities of a row joined along their first axis, and one network for the whole: the zero-fill baseline.

    Arrays: the flattened modalities side by side, a Linear to `dim`, and `SharedMLP`. Segmentation (`dims` 2 or 3): the
    channels side by side, and `SharedUNet`. Both are the trunks of `DynamicSharing` with one set of affines, so that the two
    can be compared. What stands for an absent modality: zeros (absence="drop": its term of the first layer is left out; or
    "input", which is the same), or its mean input (absence="mean", from `absent_values`). Every coalition is a full pass.

    Args:
        shapes: {modality: shape of a row}, in the order of the columns of `present`.
        num_classes: number of logits, at each position in segmentation.
        dims: 0, or the axes of positions.
        dim, depth: of `SharedMLP`. width, levels: of `SharedUNet`.
    """

    late_fusion = False
    unimodal = "coalition"

    def __init__(
        self,
        shapes: Mapping[str, Sequence[int]],
        num_classes: int,
        dims: int = 0,
        absence: Absence = "drop",
        absent_values: Mapping[str, Tensor] | None = None,
        dim: int = 64,
        depth: int = 2,
        width: float = 0.5,
        levels: int = 4,
    ) -> None:
        super().__init__()
        self.modalities = check_names(shapes)
        if absence not in ("drop", "input", "mean"):
            raise EquipoiseError(
                f"absence={absence!r} has no meaning for early fusion by concatenation, which has no feature a modality: use "
                "absence='drop' (zeros), 'input' or 'mean'."
            )
        self.absence, self.dims = absence, dims
        self.absent_values = AbsentValues(self.modalities, absent_values)
        if dims:
            self.input: nn.Module = nn.Identity()
            channels = sum(shape[0] for shape in shapes.values())
            self.trunk: nn.Module = SharedUNet((JOINED,), channels, width, levels, dims)
        else:
            self.input = nn.Linear(sum(torch.Size(shape).numel() for shape in shapes.values()), dim)
            self.trunk = SharedMLP((JOINED,), dim, depth)
        self.head = HEADS[dims](self.trunk.out_features, num_classes)

    def forward(self, inputs: Mapping[str, Tensor], present: Tensor) -> Outputs:
        check_inputs(inputs, present, self.modalities)
        first, *others = self.modalities
        for m in others if self.dims else ():
            if inputs[m].shape[2:] != inputs[first].shape[2:]:
                raise EquipoiseError(
                    f"Channels are put side by side, but modality {first!r} has positions {tuple(inputs[first].shape[2:])} and "
                    f"{m!r} {tuple(inputs[m].shape[2:])}: bring them to one size."
                )
        parts = []
        for i, m in enumerate(self.modalities):
            x = inputs[m]
            has = present[:, i].reshape(len(x), *(1,) * (x.ndim - 1))
            # where, not a product: what stands in the tensor of an absent modality is never read, NaN included.
            x = torch.where(has, x, self.absent_values(m, x, None)[0])
            parts.append(x if self.dims else x.flatten(1))
        feature = self.trunk(self.input(torch.cat(parts, dim=1)), JOINED)
        return Outputs(self.head(feature))

    def encoder_modules(self) -> list[nn.Module]:
        return [self.trunk]

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """No modality owns anything: the first layer mixes them already."""
        return {
            "shared": [*self.input.parameters(), *self.trunk.parameters()],
            "head": list(self.head.parameters()),
        }
