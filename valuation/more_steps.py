"""Control: as many optimiser steps as sample-level resampling takes, without any unimodal copy."""

import numpy as np
from numpy.typing import NDArray

from equipoise.valuation.draws import draw
from equipoise.valuation.plan import Plan
from equipoise.valuation.sample import SampleLevel


class MoreSteps(SampleLevel):
    """As many extra entries as the sample rule gives, as repeats of whole samples, spread evenly: no two samples differ by
    more than one repeat, and who gets one more is drawn at random.
    """

    name = "more_steps"

    def _arrange(self, counts: NDArray[np.uint8], present: NDArray[np.bool_], epoch: int, seed: int) -> Plan:
        each, rest = divmod(int(counts.sum(dtype=np.int64)), len(counts))
        repeats = np.full(len(counts), each, np.uint8)
        repeats[draw(np.arange(len(counts)), rest, seed, "more_steps", epoch)] += 1
        return Plan(np.zeros_like(counts), repeats)
