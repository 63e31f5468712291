"""Tasks: what a prediction is, what it costs, and what it is worth.

torchmetrics takes longer to import than torch, and of the processes of a run only those that measure need it: tasks import it
where their metrics are made.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from equipoise.models.errors import EquipoiseError

if TYPE_CHECKING:
    from torchmetrics import MetricCollection

#: For every metric: never synced by torchmetrics, since a sweep's states are merged from its chunks, and inside a training
#: worker a `compute` that waits for the other ranks would wait for ever.
ALONE: dict[str, Any] = {"sync_on_compute": False}


class Task(ABC):
    """Losses, benefit and metrics of one kind of prediction. Stateless.

    `graded` is False where the benefit is 0 or 1 (a prediction is right or wrong), True where it lies between.
    `headline` names the metric of `metrics()` that selects the best model (`score` says which of two is better).
    `dense` is True where logits and target are maps, [B, num_outputs, *positions].
    """

    name: str
    num_outputs: int
    graded: bool = False
    headline: str
    lower_is_better: bool = False
    dense: bool = False

    @property
    def benefit_name(self) -> str:
        """What `benefit` is, in a word that a store keeps: values of another benefit are other values."""
        return self.name

    def score(self, metrics: Mapping[str, float]) -> float:
        """The headline as a number of which higher is better: its negative where lower is better, -inf where it is NaN."""
        value = metrics[self.headline]
        if math.isnan(value):
            return -math.inf
        return -value if self.lower_is_better else value

    @abstractmethod
    def losses(self, logits: Tensor, target: Tensor) -> Tensor:
        """The loss of every sample: float[B] from logits [B, num_outputs, ...] and target [B, ...]."""

    @abstractmethod
    def benefit(self, logits: Tensor, target: Tensor) -> Tensor:
        """What a prediction is worth: float[B] in [0, 1]."""

    @abstractmethod
    def predict(self, logits: Tensor) -> Tensor:
        """What a person reads in logits [B, num_outputs, ...]."""

    @abstractmethod
    def metrics(self, thorough: bool = False) -> MetricCollection:
        """Fresh torchmetrics, updated with (logits, target). `thorough` adds those whose state grows with the rows, for
        the last look at a model; without it an epoch's validation stays one cheap pass.
        """

    @abstractmethod
    def check(self, target: Tensor) -> None:
        """Raise an `EquipoiseError` that names the first bad target."""


class Classification(Task):
    """Single-label classification: cross-entropy; the benefit is 1 where the largest logit is the label's, else 0.

    Ties go to the lowest class. Logits of which one is not a number predict nothing, which is wrong.
    """

    name = "classification"
    headline = "accuracy"

    def __init__(self, num_classes: int) -> None:
        if num_classes < 2:
            raise EquipoiseError(f"Classification needs at least 2 classes, found num_classes={num_classes}.")
        self.num_outputs = num_classes

    def losses(self, logits: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(logits, target, reduction="none")

    def benefit(self, logits: Tensor, target: Tensor) -> Tensor:
        # argmax takes a NaN for the largest, so that a broken model would be right about class 0.
        right = (logits.argmax(dim=1) == target) & ~logits.isnan().any(dim=1)
        return right.to(torch.float32)

    def predict(self, logits: Tensor) -> Tensor:
        """The class: int64[B]."""
        return logits.argmax(dim=1)

    def metrics(self, thorough: bool = False) -> MetricCollection:
        """`accuracy` (micro-averaged F1 is the same number), `macro_f1`; thorough: `auroc`, one class against the rest."""
        from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score

        from equipoise.models.auroc import MeanAUROC
        from equipoise.models.probabilities import Probabilities

        alone: Any = {**ALONE, "validate_args": False}
        found: dict[str, Any] = {
            "accuracy": MulticlassAccuracy(self.num_outputs, average="micro", **alone),
            "macro_f1": MulticlassF1Score(self.num_outputs, average="macro", **alone),
        }
        if thorough:
            found["auroc"] = MeanAUROC(**ALONE)
        return Probabilities(_class_probabilities, found)

    def check(self, target: Tensor) -> None:
        if target.is_floating_point() or target.ndim != 1:
            raise EquipoiseError(
                f"Class labels must be integers of shape [B], found {target.dtype} {tuple(target.shape)}."
            )
        bad = (target < 0) | (target >= self.num_outputs)
        if bool(bad.any()):
            row = int(bad.nonzero()[0])
            raise EquipoiseError(
                f"Label {int(target[row])} in row {row} of the batch is outside the {self.num_outputs} classes "
                f"0..{self.num_outputs - 1}: give the task the right num_classes, or mend the label."
            )


def _class_probabilities(logits: Tensor, target: Tensor) -> Tensor:
    """float64[B, K]; certain of a wrong class where a logit is not a number."""
    broken = logits.isnan().any(dim=1)
    p = torch.nan_to_num(logits.double()).softmax(dim=1)
    wrong = F.one_hot((target.long() + 1) % p.shape[1], p.shape[1]).to(p)
    return torch.where(broken[:, None], wrong, p)
