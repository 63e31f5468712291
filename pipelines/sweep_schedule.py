"""After which epochs train is swept, and which of its rows: the one rule, for runs under Ray and for light ones."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from equipoise.balancers import Balancer
from equipoise.models import rowhash
from equipoise.pipelines.config import Config
from equipoise.valuation import Resampler


class SweepSchedule:
    """A function of the configuration alone, so that a resumed run asks for the same sweeps."""

    def __init__(self, config: Config, balancer: Balancer, resampler: Resampler, num_rows: int) -> None:
        self.config, self.balancer, self.resampler, self.num_rows = config, balancer, resampler, num_rows
        self.lag: int = config.valuation.lag

    def steers(self, epoch: int, last: bool) -> bool:
        """Whether the resampler plans an epoch by the sweep after `epoch`; `last`: the run ends with this one."""
        end = self.config.max_epochs
        if last or (end is not None and epoch + 1 + self.lag >= end):
            return False
        return self.resampler.wants_values(epoch, self.lag)

    def records(self, epoch: int) -> bool:
        """Whether `valuation.every` asks for the sweep."""
        every, warmup = self.config.valuation.every, self.config.valuation.warmup
        return every is not None and epoch >= warmup and (epoch - warmup) % every == 0

    def wants(self, epoch: int, last: bool) -> bool:
        """Whether train is swept with the weights after `epoch`."""
        return epoch >= 0 and (self.balancer.needs_values or self.steers(epoch, last) or self.records(epoch))

    def ids(self, epoch: int, last: bool) -> NDArray[np.int64] | None:
        """The rows that this sweep values, ascending; None for all. What a plan needs is valued whatever else is asked for."""
        if self.balancer.needs_values:
            return None
        if self.steers(epoch, last):
            found = self.resampler.valued_ids(self.num_rows, epoch, self.config.seed)
            return None if found is None else np.sort(found)
        count = max(1, round(self.config.valuation.sample * self.num_rows))
        if count == self.num_rows:
            return None
        order = np.argsort(rowhash.words(self.config.seed, "valued", epoch, np.arange(self.num_rows)), kind="stable")
        return np.sort(order[:count])
