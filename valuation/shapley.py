"""What each modality contributed to each prediction: exact Shapley values of the coalition game.

Wei, Feng, Wang, Hu, "Enhancing Multimodal Cooperation via Sample-level Modality Valuation" (CVPR 2024,
arXiv 2309.06255): v(C) = |C| * score(C), and

    phi_i = sum over C in P \\ {i} of |C|! (p - |C| - 1)! / p! * (v(C + {i}) - v(C)),

with two readings of this project: the players P of a sample are its present modalities (p of them), and the score may be
graded (any float), where the paper has right = 1, wrong = 0.
"""

from functools import lru_cache
from math import factorial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from equipoise.models.errors import EquipoiseError
from equipoise.valuation.coalitions import as_array, bits, from_bits, members, num_modalities_of, presence

_BLOCK = 2**22  # scores turned into float64 at once: 32 MiB


def shapley(score: NDArray[Any] | Tensor, present: NDArray[np.bool_] | Tensor | None = None) -> NDArray[np.float64]:
    """Contributions float64 [N, M] from a score table [N, 2**M - 1] (column c - 1 = coalition id c), NaN where absent.

    `present` bool [N, M], by default all. Only the columns of coalitions of present modalities are read. For 0/1 scores
    the result is the exact rational, rounded once: equal to the average over all orders, not merely close to it.
    Contributions of a row add up to p * score(all present).

    >>> shapley(np.array([[True, False, True]]))        # modality 0 alone is right, 1 alone is wrong, both are right
    array([[1.5, 0.5]])
    """
    table = as_array(score)
    shape = (len(table), num_modalities_of(table))
    pattern = bits(presence(present, shape))
    if not pattern.all():
        raise EquipoiseError(
            f"Row {int(np.flatnonzero(pattern == 0)[0])} of the score table has no modality present, so nothing to value: "
            "drop the row, or mark at least one of its modalities as present."
        )
    contributions = np.full(shape, np.nan)
    for availability in np.unique(pattern):
        players, columns, weights = _weights(int(availability), shape[1])
        rows = np.flatnonzero(pattern == availability)
        step = max(1, _BLOCK // len(columns))
        for block in (rows[i : i + step] for i in range(0, len(rows), step)):
            scores = table[np.ix_(block, columns)].astype(np.float64)
            _check_numbers(scores, block)
            contributions[np.ix_(block, players)] = scores @ weights / factorial(len(players))
    return contributions


@lru_cache(maxsize=2**10)
def _weights(
    availability: int, num_modalities: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Players [p], columns [2**p - 1] of their coalitions, and integer weights [2**p - 1, p] of p! * phi.

    Collecting the terms of one coalition C of size s: each member i gains v(C) with (s - 1)! (p - s)!, each player outside
    loses it with s! (p - s - 1)!; v(C) itself is s * score(C). Sums stay far below 2**53 (M <= 10), so a float64 matrix
    product of them is exact.
    """
    players = np.flatnonzero(from_bits(np.array([availability]), num_modalities)[0])
    inside = members(len(players))
    columns = inside @ (1 << players) - 1
    p = len(players)
    gain = [factorial(s) * factorial(p - s) for s in range(1, p + 1)]
    loss = [s * factorial(s) * factorial(p - s - 1) if s < p else 0 for s in range(1, p + 1)]
    size = inside.sum(axis=1)[:, None] - 1
    return players, columns, np.where(inside, np.array(gain)[size], -np.array(loss)[size]).astype(np.float64)


def _check_numbers(scores: NDArray[np.float64], rows: NDArray[np.int64]) -> None:
    bad = ~np.isfinite(scores).all(axis=1)
    if bad.any():
        raise EquipoiseError(
            f"Row {int(rows[bad][0])} of the score table has a score that is not a number for a coalition of its present "
            "modalities: the model's outputs or the benefit of this sample are NaN or infinite."
        )
