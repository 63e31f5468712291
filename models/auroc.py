"""Area under the ROC curve of many classes or labels, exact: a state that grows with the rows."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import Metric
from torchmetrics.functional.classification import binary_auroc


class MeanAUROC(Metric):
    """The mean over classes (or labels) of the area under the ROC curve of one against the rest.

    Updated with probabilities [n, K] and the classes int64[n], or 0 and 1 for every label [n, K]. The mean is over the
    columns that some rows have and some have not: the others have no curve, and torchmetrics' own means count them as 0. NaN
    where no column has one.
    """

    full_state_update = False
    higher_is_better = True
    scores: Any
    truth: Any

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("scores", [], dist_reduce_fx="cat")
        self.add_state("truth", [], dist_reduce_fx="cat")

    def update(self, probabilities: Tensor, target: Tensor) -> None:
        classes = target.ndim == 1
        self.scores.append(probabilities)
        self.truth.append(F.one_hot(target.long(), probabilities.shape[1]).bool() if classes else target.bool())

    def compute(self) -> Tensor:
        if isinstance(self.scores, list) and not self.scores:
            return torch.tensor(torch.nan)
        scores, truth = (torch.cat(x) if isinstance(x, list) else x for x in (self.scores, self.truth))
        mixed = truth.any(dim=0) & ~truth.all(dim=0)
        curves = zip(scores.T[mixed], truth.T[mixed].long(), strict=True)
        areas = [binary_auroc(score, true, validate_args=False) for score, true in curves]
        return torch.stack(areas).mean() if areas else torch.tensor(torch.nan)
