"""The Dice of a segmentation as a torchmetrics metric."""

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from equipoise.models.segmentation import case_dice


class CaseDice(Metric):
    """The mean over cases of `case_dice`: of one region, or of their mean. Two sums, whatever the number of cases.

    torchmetrics' `DiceScore` keeps every case's sums, and leaves a region that is empty in target and prediction out.
    """

    full_state_update = False
    higher_is_better = True
    total: Tensor
    cases: Tensor

    def __init__(self, region: int | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.region = region
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("cases", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, logits: Tensor, target: Tensor) -> None:
        part = slice(None) if self.region is None else slice(self.region, self.region + 1)
        self.total += case_dice(logits[:, part], target[:, part]).mean(dim=1).sum()
        self.cases += len(logits)

    def compute(self) -> Tensor:
        return self.total / self.cases
