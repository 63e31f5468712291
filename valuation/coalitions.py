"""Coalitions of modalities, and the one order they are kept in.

Coalition id c = 1 .. 2**M - 1 holds modality m where bit m of c is set; in every table its column (and its bit in the
store) is c - 1. M = 3: 0, 1, 01, 2, 02, 12, 012.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from equipoise.models.errors import EquipoiseError

MAX_MODALITIES = 10


def check_modalities(num_modalities: int) -> None:
    """Raise an `EquipoiseError` unless all coalitions of this many modalities can be tried."""
    if not 1 <= num_modalities <= MAX_MODALITIES:
        raise EquipoiseError(
            f"Valuation tries every coalition of modalities, which is done for 1 to {MAX_MODALITIES} of them, not for "
            f"{num_modalities}: join modalities that belong together into one, or value a subset of them."
        )


def members(num_modalities: int) -> NDArray[np.bool_]:
    """Who is in which coalition: bool [2**M - 1, M], row c - 1 holds the bits of coalition id c."""
    check_modalities(num_modalities)
    ids = np.arange(1, 2**num_modalities)
    return from_bits(ids, num_modalities)


def bits(present: NDArray[np.bool_] | Tensor) -> NDArray[np.int64]:
    """The coalition id of each row of bool [N, M]: int64 [N], 0 where nothing is present."""
    mask = as_array(present).astype(bool)
    return mask.astype(np.int64) @ (1 << np.arange(mask.shape[1], dtype=np.int64))


def from_bits(ids: NDArray[Any], num_modalities: int) -> NDArray[np.bool_]:
    """The inverse of `bits`: bool [N, M] from coalition ids [N]."""
    return (ids.astype(np.int64)[:, None] >> np.arange(num_modalities) & 1).astype(bool)


def coalition_name(coalition: int, modalities: Sequence[str]) -> str:
    """The name people read: "audio", "audio+visual"."""
    if not 1 <= coalition < 2 ** len(modalities):
        raise EquipoiseError(
            f"Coalition {coalition} does not exist: {len(modalities)} modalities have coalitions 1 to {2 ** len(modalities) - 1}."
        )
    return "+".join(name for m, name in enumerate(modalities) if coalition >> m & 1)


def num_modalities_of(score: NDArray[Any]) -> int:
    """M of a score table [N, 2**M - 1]; an `EquipoiseError` for any other shape."""
    width = score.shape[1] if score.ndim == 2 else 0
    num_modalities = (width + 1).bit_length() - 1
    if width < 1 or width != 2**num_modalities - 1:
        raise EquipoiseError(
            f"A score table has one column a coalition, [N, 2**M - 1] (3 columns for 2 modalities, 7 for 3), "
            f"found shape {tuple(score.shape)}."
        )
    check_modalities(num_modalities)
    return num_modalities


def presence(present: NDArray[np.bool_] | Tensor | None, shape: tuple[int, int]) -> NDArray[np.bool_]:
    """`present` as bool [N, M] of the given shape; None means that nothing is absent."""
    if present is None:
        return np.ones(shape, bool)
    mask = as_array(present)
    if mask.dtype != np.bool_ or mask.shape != shape:
        raise EquipoiseError(f"present must be bool {list(shape)}, found {mask.dtype} {list(mask.shape)}.")
    return mask


def as_array(x: NDArray[Any] | Tensor) -> NDArray[Any]:
    """A torch tensor (any device, any float type) or anything numpy takes, as a numpy array."""
    if isinstance(x, Tensor):
        x = x.detach().cpu()
        return np.asarray((x.double() if x.is_floating_point() else x).numpy())
    return np.asarray(x)
