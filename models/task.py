"""Tasks: what a prediction is, what it costs, and what it is worth."""

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score

from equipoise.models.errors import EquipoiseError


class Task(ABC):
    """Losses, benefit and metrics of one kind of prediction. Stateless.

    `graded` is False where the benefit is 0 or 1 (a prediction is right or wrong), True where it lies between.
    `headline` names the metric of `metrics()` that selects the best model; higher is better.
    """

    name: str
    num_outputs: int
    graded: bool = False
    headline: str

    @abstractmethod
    def losses(self, logits: Tensor, target: Tensor) -> Tensor:
        """The loss of every sample: float[B] from logits [B, num_outputs, ...] and target [B, ...]."""

    @abstractmethod
    def benefit(self, logits: Tensor, target: Tensor) -> Tensor:
        """What a prediction is worth: float[B] in [0, 1]."""

    @abstractmethod
    def metrics(self) -> MetricCollection:
        """Fresh torchmetrics, updated with (logits, target)."""

    @abstractmethod
    def check(self, target: Tensor) -> None:
        """Raise an `EquipoiseError` that names the first bad target."""


class Classification(Task):
    """Single-label classification: cross-entropy; the benefit is 1 where the largest logit is the label's, else 0.

    Ties go to the lowest class.
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
        return (logits.argmax(dim=1) == target).to(torch.float32)

    def metrics(self) -> MetricCollection:
        # Never synced by torchmetrics: a sweep's states are merged from its chunks, and inside a training worker a
        # `compute` that waits for the other ranks would wait for ever.
        alone: Any = {"sync_on_compute": False, "validate_args": False}
        return MetricCollection(
            {
                "accuracy": MulticlassAccuracy(self.num_outputs, average="micro", **alone),
                "macro_f1": MulticlassF1Score(self.num_outputs, average="macro", **alone),
            },
            compute_groups=False,
        )

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
