"""torchmetrics of probabilities, updated with logits."""

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torchmetrics import MetricCollection

Readable = Callable[[Tensor, Tensor], Tensor]


class Probabilities(MetricCollection):
    """torchmetrics of probabilities, updated with logits: `readable(logits, target)` makes the ones of the others.

    torchmetrics takes what lies in [0, 1] for probabilities and anything else for logits, by the look of each update: a small
    chunk of small logits would be read otherwise than the rest.
    """

    def __init__(self, readable: Readable, metrics: dict[str, Any]) -> None:
        super().__init__(metrics, compute_groups=False)
        self.readable = readable

    def update(self, logits: Tensor, target: Tensor) -> None:  # type: ignore[override]
        super().update(self.readable(logits, target), target)
