"""Control: as many unimodal copies as sample-level resampling makes, of random samples."""

import numpy as np
from numpy.typing import NDArray

from equipoise.valuation.coalitions import bits
from equipoise.valuation.draws import shuffled
from equipoise.valuation.plan import Plan
from equipoise.valuation.sample import SampleLevel


class RandomCopies(SampleLevel):
    """The sample rule's rows of copies, dealt out at random among samples with the same present modalities.

    So each modality gets exactly as many copies as under `sample`, and only the choice of samples is lost: what `sample`
    gains over this is what valuing each sample is worth.
    """

    name = "random_copies"

    def _arrange(self, counts: NDArray[np.uint8], present: NDArray[np.bool_], epoch: int, seed: int) -> Plan:
        dealt = np.empty_like(counts)
        pattern = bits(present)
        for availability in np.unique(pattern):
            rows = np.flatnonzero(pattern == availability)
            dealt[rows] = counts[shuffled(rows, seed, "random_copies", epoch)]
        return Plan(dealt, np.zeros(len(dealt), np.uint8))
