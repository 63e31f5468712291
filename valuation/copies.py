"""How many unimodal copies a sample gets of each modality: the lower the contribution, the more.

Wei et al. (CVPR 2024, arXiv 2309.06255), sample-level re-sampling: a modality whose contribution is below 1, its fair share
of a right prediction, is learnt again from copies that keep this modality alone. Their function f_s is a table of bins in the
released code; bins are closed here (exactly 0.4 -> 1, exactly -0.1 -> 2), where the released comparisons let those two values
through.
"""

from math import factorial

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from equipoise.models.errors import EquipoiseError
from equipoise.valuation.coalitions import presence


def copies(
    contributions: NDArray[np.float64], present: NDArray[np.bool_] | Tensor | None = None, *, exact: bool = True
) -> NDArray[np.uint8]:
    """The bins rule: uint8 [N, M] from contributions [N, M].

    phi >= 1 -> 0;  0.4 <= phi < 1 -> 1;  -0.1 <= phi < 0.4 -> 2;  phi < -0.1 -> 3;  absent (NaN) -> 0.

    The bins are for 0/1 benefits, whose contributions are multiples of 1/M!: compared as integers, so no edge is missed by
    a rounding, and anything else is refused. `exact=False` compares floats: for averages of contributions over sweeps.
    """
    phi, mask = _present(contributions, present)
    if exact:
        unit = factorial(phi.shape[1])
        k = on_grid(phi)
        binned = np.select([k >= unit, 5 * k >= 2 * unit, 10 * k >= -unit], [0, 1, 2], 3)
    else:
        binned = np.select([phi >= 1.0, phi >= 0.4, phi >= -0.1], [0, 1, 2], 3)
    return np.where(mask, binned, 0).astype(np.uint8)


def linear_copies(
    contributions: NDArray[np.float64],
    u: NDArray[np.float64],
    tau: float = 1.0,
    scale: float = 2.0,
    cap: int = 3,
    present: NDArray[np.bool_] | Tensor | None = None,
) -> NDArray[np.uint8]:
    """The linear rule: min(cap, floor(scale * max(0, tau - phi) + u)), uint8 [N, M]; absent (NaN) -> 0.

    u [N, M] in [0, 1) rounds the fraction up at random, so that the expected number is the fraction itself. tau is the
    share below which a modality is learnt again: 1 for 0/1 benefits, the mean benefit of all present modalities for graded
    ones. At M = 2 on 0/1 benefits the defaults give the bins, whatever u.
    """
    phi, mask = _present(contributions, present)
    if u.shape != phi.shape or not ((u >= 0) & (u < 1)).all():
        raise EquipoiseError(f"u must be numbers in [0, 1) of shape {list(phi.shape)}, found shape {list(u.shape)}.")
    if not 0 <= cap <= 255:
        raise EquipoiseError(f"cap must be 0 to 255 copies, found {cap}.")
    wanted = scale * np.maximum(0.0, tau - phi)
    whole = np.floor(wanted)
    # floor(wanted + u) would be wrong where the sum rounds up: 2 + u == 3.0 for the largest u below 1.
    rounded = whole + (u >= 1.0 - (wanted - whole))
    return np.where(mask, np.minimum(cap, rounded), 0).astype(np.uint8)


def on_grid(contributions: NDArray[np.float64]) -> NDArray[np.int64]:
    """Contributions as the integers phi * M! [N, M] that they are for 0/1 benefits (0 where absent)."""
    scaled = np.nan_to_num(contributions, nan=0.0) * factorial(contributions.shape[1])
    k = np.rint(scaled)
    if (np.abs(scaled - k) > 1e-6).any():
        raise EquipoiseError(
            f"Contribution {contributions[np.abs(scaled - k) > 1e-6][0]:.6g} does not come from a benefit of 0 or 1, and the "
            "bins rule is for those: use the linear rule (rule=linear) for a graded benefit."
        )
    return k.astype(np.int64)


def _present(
    contributions: NDArray[np.float64], present: NDArray[np.bool_] | Tensor | None
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Contributions with 0 where absent, and who is present (by default: whose contribution is not NaN)."""
    known = ~np.isnan(contributions)
    mask = known if present is None else presence(present, contributions.shape)
    if (mask & ~known).any():
        row, modality = np.argwhere(mask & ~known)[0]
        raise EquipoiseError(
            f"Row {row} has no contribution (NaN) for modality {modality}, which is marked as present."
        )
    return np.where(mask, contributions, 0.0), mask
