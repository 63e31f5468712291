"""Segmentation: each position of an image or volume belongs to a region or not; regions may overlap or nest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from equipoise.models.errors import EquipoiseError
from equipoise.models.task import ALONE, Task

if TYPE_CHECKING:
    from torchmetrics import MetricCollection


class Segmentation(Task):
    """Per-sample Dice. Logits [B, R, *positions], target 0 or 1 of the same shape.

    The loss of a sample is the mean over regions of 1 - (2 sum p t + 1) / (sum p + sum t + 1), p = sigmoid(logits), the sums
    over its own positions: the loss of the GMD paper (Wang et al., AAAI 2024; see `pooled_dice_loss` for the one its code
    has). The benefit is the mean over regions of the Dice of the positions with p > 0.5, 1 where a region is neither there
    nor predicted, 0 where a logit of it is not a number.
    """

    name = "segmentation"
    headline = "dice"
    graded = True
    dense = True

    def __init__(self, regions: Sequence[str]) -> None:
        self.regions = tuple(regions)
        if not self.regions or len(set(map(str.lower, self.regions))) < len(self.regions):
            raise EquipoiseError(f"Segmentation needs the names of its regions, all different, found {self.regions}.")
        self.num_outputs = len(self.regions)

    @property
    def benefit_name(self) -> str:
        return f"{self.name}/dice"

    def losses(self, logits: Tensor, target: Tensor) -> Tensor:
        check_shapes(logits, target)
        p, t = logits.sigmoid().flatten(2), target.to(logits.dtype).flatten(2)
        overlap = (2 * (p * t).sum(dim=2) + 1) / (p.sum(dim=2) + t.sum(dim=2) + 1)
        return (1 - overlap).mean(dim=1)

    def benefit(self, logits: Tensor, target: Tensor) -> Tensor:
        return case_dice(logits, target).mean(dim=1)

    def predict(self, logits: Tensor) -> Tensor:
        """The positions of each region: bool[B, R, *positions]."""
        return logits > 0

    def metrics(self, thorough: bool = False) -> MetricCollection:
        """`dice`, the mean over regions, and `dice_<region>`, each the mean over cases of the Dice at 0.5."""
        from torchmetrics import MetricCollection

        from equipoise.models.dice import CaseDice

        found: dict[str, Any] = {"dice": CaseDice(**ALONE)}
        found |= {f"dice_{name.lower()}": CaseDice(r, **ALONE) for r, name in enumerate(self.regions)}
        return MetricCollection(found, compute_groups=False)

    def check(self, target: Tensor) -> None:
        if target.ndim < 3 or target.shape[1] != self.num_outputs:
            raise EquipoiseError(
                f"Masks must be 0 or 1 of shape [B, {self.num_outputs}, ...] (regions {', '.join(self.regions)}), found "
                f"{target.dtype} {tuple(target.shape)}."
            )
        bad = ((target != 0) & (target != 1)).flatten(1).any(dim=1)
        if bool(bad.any()):
            row = int(bad.nonzero()[0])
            raise EquipoiseError(f"The mask in row {row} of the batch holds something else than 0 and 1: mend it.")


def check_shapes(logits: Tensor, target: Tensor) -> None:
    """Raise an `EquipoiseError` unless masks have the positions that are predicted: sums over positions would not notice."""
    if logits.shape != target.shape:
        raise EquipoiseError(
            f"The model predicts maps of shape {tuple(logits.shape[1:])} and the masks have {tuple(target.shape[1:])}: give "
            "masks the positions of the inputs, in their order."
        )


def case_dice(logits: Tensor, target: Tensor) -> Tensor:
    """float64[B, R]: 2 |P and T| / (|P| + |T|) of each case and region, P where the logit is above 0; 1 where both are
    empty, 0 where a logit is not a number (it would count as a rightly empty region).
    """
    check_shapes(logits, target)
    p, t = (logits > 0).flatten(2), target.bool().flatten(2)
    both, either = 2.0 * (p & t).sum(dim=2).double(), (p.sum(dim=2) + t.sum(dim=2)).double()
    dice = torch.where(either > 0, both / either.clamp(min=1), 1.0)
    return dice.masked_fill(logits.isnan().flatten(2).any(dim=2), 0.0)


def pooled_dice_loss(logits: Tensor, target: Tensor) -> Tensor:
    """The Dice loss with sums over the whole batch, as the released code of GMD has it: a scalar.

    Not what `Segmentation` trains on: the loss of a sample then depends on which others share its batch, so that two
    workers of half a batch each do not learn what one worker does.
    """
    p, t = (x.flatten(2).transpose(0, 1).flatten(1) for x in (logits.sigmoid(), target.to(logits.dtype)))
    overlap = (2 * (p * t).sum(dim=1) + 1) / (p.sum(dim=1) + t.sum(dim=1) + 1)
    return (1 - overlap).mean()
