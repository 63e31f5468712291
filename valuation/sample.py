"""Sample-level resampling: each sample's low-contributing modalities are learnt again, from unimodal copies of it."""

from collections.abc import Iterable
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from equipoise.models import rowhash
from equipoise.models.errors import EquipoiseError
from equipoise.valuation.copies import copies, linear_copies
from equipoise.valuation.draws import bounded
from equipoise.valuation.gather import gather
from equipoise.valuation.plan import Plan
from equipoise.valuation.resampler import Resampler, Schedule
from equipoise.valuation.values import Values


class SampleOptions(Schedule):
    """- `rule`: "bins" or "linear" (see `copies` and `linear_copies`); "auto" = bins for 0/1 benefits, linear for graded.
    - `scale`, `cap`: of the linear rule.
    - `smoothing`: weight of the earlier sweeps in an exponential average of contributions; 0 = the last sweep alone.
    """

    rule: Literal["auto", "bins", "linear"] = "auto"
    scale: float = Field(2.0, gt=0)
    cap: int = Field(3, ge=1, le=25)  # 10 modalities of 25 copies are still counted in a byte
    smoothing: float = Field(0.0, ge=0, lt=1)


class SampleLevel(Resampler):
    """copies[i, m] = bins or linear rule of phi[i, m]. Wei et al. (CVPR 2024), sample-level.

    At M = 2 with bins an epoch has N (1 + 4 err + q) entries: err the share of samples that all modalities together get
    wrong, q the share that they get right with exactly one modality right alone.

    Differences from the authors' code: any number of modalities, absent ones get no copies, closed bins; graded benefits by
    the linear rule, below the mean benefit of the sweep instead of below 1; averaging over sweeps is ours.
    """

    name = "sample"
    needs_values = True
    Options = SampleOptions
    options: SampleOptions

    @property
    def keeps_state(self) -> bool:
        return self.options.smoothing > 0

    def state(
        self, values: Iterable[Values], num_rows: int, num_modalities: int, previous: NDArray[np.float64] | None = None
    ) -> NDArray[np.float64] | None:
        """The averaged contributions [N, M] after this sweep: s * previous + (1 - s) * current."""
        if not self.keeps_state:
            return None
        current = gather(values, num_rows, num_modalities)[0]
        # Written as a step from current, so that an average of equal values is that value and falls in its bin.
        return current if previous is None else current + self.options.smoothing * (previous - current)

    def _plan(
        self,
        epoch: int,
        values: Iterable[Values],
        num_rows: int,
        num_modalities: int,
        seed: int,
        present: NDArray[np.bool_] | None,
        state: NDArray[np.float64] | None,
    ) -> Plan:
        contributions, tau = gather(values, num_rows, num_modalities)
        if self.keeps_state:
            if state is None or state.shape != contributions.shape:
                raise EquipoiseError(
                    f"smoothing={self.options.smoothing} averages contributions over sweeps: give plan() the state of this "
                    f"sweep, float64 {list(contributions.shape)}, as state() returned it."
                )
            contributions = np.asarray(state)
        counts = bounded(self._copies(contributions, tau, epoch, seed), self.options.max_entries, seed, epoch)
        return self._arrange(counts, ~np.isnan(contributions), epoch, seed)

    def _copies(
        self, contributions: NDArray[np.float64], tau: float | None, epoch: int, seed: int
    ) -> NDArray[np.uint8]:
        """tau: the mean benefit of graded values, None for 0/1 ones."""
        rule = self.options.rule
        if rule == "bins" and tau is not None:
            raise EquipoiseError(
                "rule='bins' is for benefits of 0 or 1 and these are graded: use rule='linear' or 'auto'."
            )
        if rule == "linear" or tau is not None:
            ids, modalities = np.ogrid[: contributions.shape[0], : contributions.shape[1]]
            u = rowhash.uniform(seed, "copies", modalities, epoch, ids)
            return linear_copies(contributions, u, 1.0 if tau is None else tau, self.options.scale, self.options.cap)
        return copies(contributions, exact=not self.keeps_state)

    def _arrange(self, counts: NDArray[np.uint8], present: NDArray[np.bool_], epoch: int, seed: int) -> Plan:
        """Where the copies go; the controls put them elsewhere."""
        return Plan(counts, np.zeros(len(counts), np.uint8))
