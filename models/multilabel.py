"""Multi-label classification: any number of labels may be true of a sample."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from equipoise.models.errors import EquipoiseError, unknown
from equipoise.models.task import ALONE, Task

if TYPE_CHECKING:
    from torchmetrics import MetricCollection

LabelBenefit = Literal["labels", "exact"]


class MultiLabel(Task):
    """Binary cross-entropy, the mean over labels. Logits [B, L], target 0 or 1 [B, L] (any dtype).

    A label is predicted where its logit is above 0 (probability 0.5). `benefit="labels"`: the share of labels that are right
    (graded); `"exact"`: 1 where all of them are, else 0.
    """

    name = "multilabel"
    headline = "macro_f1"

    def __init__(self, num_labels: int, benefit: LabelBenefit = "labels") -> None:
        if num_labels < 1:
            raise EquipoiseError(f"MultiLabel needs at least 1 label, found num_labels={num_labels}.")
        if benefit not in get_args(LabelBenefit):
            raise unknown("benefit of MultiLabel", str(benefit), get_args(LabelBenefit))
        self.num_outputs = num_labels
        self.kind = benefit
        self.graded = benefit == "labels"

    @property
    def benefit_name(self) -> str:
        return f"{self.name}/{self.kind}"

    def losses(self, logits: Tensor, target: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(logits, target.to(logits.dtype), reduction="none").mean(dim=1)

    def benefit(self, logits: Tensor, target: Tensor) -> Tensor:
        # A logit that is not a number is no prediction, whatever the target.
        right = (self.predict(logits) == target.bool()) & ~logits.isnan()
        if self.graded:
            return right.to(torch.float64).mean(dim=1)
        return right.all(dim=1).to(torch.float32)

    def predict(self, logits: Tensor) -> Tensor:
        """Which labels: bool[B, L]."""
        return logits > 0

    def metrics(self, thorough: bool = False) -> MetricCollection:
        """`macro_f1`, `micro_f1`, `exact_match`, `label_accuracy`; thorough: `auroc`, the mean over labels.

        A label that is neither true nor predicted anywhere has an F1 of 0.
        """
        from torchmetrics.classification import MultilabelAccuracy, MultilabelExactMatch, MultilabelF1Score

        from equipoise.models.auroc import MeanAUROC
        from equipoise.models.probabilities import Probabilities

        alone: Any = {**ALONE, "validate_args": False}
        found: dict[str, Any] = {
            "macro_f1": MultilabelF1Score(self.num_outputs, average="macro", **alone),
            "micro_f1": MultilabelF1Score(self.num_outputs, average="micro", **alone),
            "exact_match": MultilabelExactMatch(self.num_outputs, **alone),
            "label_accuracy": MultilabelAccuracy(self.num_outputs, average="micro", **alone),
        }
        if thorough:
            found["auroc"] = MeanAUROC(**ALONE)
        return Probabilities(_label_probabilities, found)

    def check(self, target: Tensor) -> None:
        if target.ndim != 2 or target.shape[1] != self.num_outputs:
            raise EquipoiseError(
                f"Multi-label targets must be 0 or 1 of shape [B, {self.num_outputs}], found {target.dtype} "
                f"{tuple(target.shape)}."
            )
        bad = (target != 0) & (target != 1)
        if bool(bad.any()):
            row, label = bad.nonzero()[0].tolist()
            raise EquipoiseError(
                f"The target of label {label} in row {row} of the batch is {float(target[row, label])}: a label is 0 or 1."
            )


def _label_probabilities(logits: Tensor, target: Tensor) -> Tensor:
    """float64[B, L]; certain of the wrong answer where a logit is not a number."""
    return torch.where(logits.isnan(), 1.0 - target.double(), logits.double().sigmoid())
