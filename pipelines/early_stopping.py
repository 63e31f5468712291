"""Early stopping on validation: the one rule, for runs under Ray and for light ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from equipoise.pipelines.config import EarlyStoppingConfig


class EarlyStopping:
    """Counts the epochs since the validation metric was last better than before by more than `min_delta`."""

    def __init__(self, config: EarlyStoppingConfig) -> None:
        self.config = config
        self.epoch = -1
        self.value = float("-inf")

    def update(self, epoch: int, value: float) -> None:
        """Take in an epoch's `Task.score`: higher is better."""
        if value > self.value + self.config.min_delta:
            self.epoch, self.value = epoch, value

    def over(self, next_epoch: int) -> bool:
        """Whether patience is spent before `next_epoch` is trained."""
        patience = self.config.patience
        # Epoch -1, where no epoch has had a metric that is a number: patience ends then, too.
        return patience is not None and next_epoch - 1 - self.epoch >= patience

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "value": self.value}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.epoch, self.value = int(state["epoch"]), float(state["value"])
