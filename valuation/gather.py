"""The values of a sweep, brought together by sample id: no row twice, none of other data, none forgotten."""

from collections.abc import Iterable
from fractions import Fraction
from math import factorial, fsum

import numpy as np
from numpy.typing import NDArray

from equipoise.models.errors import EquipoiseError
from equipoise.valuation.copies import on_grid
from equipoise.valuation.values import Values


def gather(values: Iterable[Values], num_rows: int, num_modalities: int) -> tuple[NDArray[np.float64], float | None]:
    """Contributions float64 [N, M] by sample id, every row valued exactly once; and the mean benefit of all present
    modalities, None for 0/1 benefits.
    """
    contributions = np.full((num_rows, num_modalities), np.nan)
    seen = np.zeros(num_rows, bool)
    benefits, graded = [], False
    for chunk in values:
        _claim(seen, chunk, num_modalities)
        contributions[chunk.sample_id] = chunk.contributions
        benefits.append(fsum(chunk.benefit))
        graded = chunk.graded
    if not seen.all():
        raise EquipoiseError(
            f"{int((~seen).sum())} of the {num_rows} rows have no values, the first is sample_id {int(np.argmin(seen))}: the "
            "sweep is unfinished. Run the valuation again; it goes on where it stopped."
        )
    return contributions, fsum(benefits) / num_rows if graded else None


def mean_contributions(values: Iterable[Values], present: NDArray[np.bool_]) -> dict[int, Fraction]:
    """Each modality's mean contribution over the valued rows that have it (any of the N rows of `present` bool [N, M]):
    exact for 0/1 benefits. A modality that no valued row has is left out.
    """
    num_modalities = present.shape[1]
    seen = np.zeros(len(present), bool)
    counts = np.zeros(num_modalities, np.int64)
    sums = [Fraction(0)] * num_modalities
    for chunk in values:
        _claim(seen, chunk, num_modalities)
        if (chunk.present != present[chunk.sample_id]).any():
            raise EquipoiseError(
                "The values know of other absent modalities than plan() was told of: give it `present` of all rows, as the "
                "manifest has it."
            )
        counts += chunk.present.sum(axis=0)
        sums = [a + b for a, b in zip(sums, _sums(chunk))]
    if not seen.any():
        raise EquipoiseError("There are no values of any row: value some first (see valued_ids).")
    return {m: sums[m] / int(counts[m]) for m in range(num_modalities) if counts[m]}


def _sums(chunk: Values) -> list[Fraction]:
    """The sum of each modality's contributions in a chunk, absent ones as 0."""
    phi = chunk.contributions
    if chunk.graded:
        return [Fraction(fsum(column)) for column in np.nan_to_num(phi).T]
    return [Fraction(int(k), factorial(phi.shape[1])) for k in on_grid(phi).sum(axis=0)]


def _claim(seen: NDArray[np.bool_], chunk: Values, num_modalities: int) -> None:
    """Mark a chunk's ids as seen; an `EquipoiseError` for one out of range or valued twice, or for other modalities."""
    ids = chunk.sample_id
    if chunk.present.shape[1] != num_modalities:
        raise EquipoiseError(f"The values are of {chunk.present.shape[1]} modalities, expected {num_modalities}.")
    if len(ids) and not (ids.min() >= 0 and ids.max() < len(seen)):
        raise EquipoiseError(
            f"The values hold sample ids {ids.min()} to {ids.max()}, and the split has rows 0 to {len(seen) - 1}: they are "
            "values of other data."
        )
    if seen[ids].any() or len(np.unique(ids)) < len(ids):
        raise EquipoiseError(
            "The values hold a sample more than once: delete the store's folder and value the split again."
        )
    seen[ids] = True
