"""Random choices of rows and copies, by hash: the same whatever drew before, and whatever version of numpy draws."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from equipoise.models import rowhash
from equipoise.models.errors import EquipoiseError


def shuffled(ids: NDArray[np.int64], *key: int | str | ArrayLike) -> NDArray[np.int64]:
    """The distinct `ids` in the order of their hashes with the key: a random order that depends on the key and on them."""
    return ids[np.argsort(rowhash.words(*key, ids), kind="stable")]


def draw(ids: NDArray[np.int64], count: int, *key: int | str | ArrayLike) -> NDArray[np.int64]:
    """`count` of the distinct `ids` without replacement, ascending: those whose hash with the key is smallest."""
    return np.sort(shuffled(ids, *key)[:count])


def bounded(copies: NDArray[np.uint8], max_entries: int | None, seed: int, epoch: int) -> NDArray[np.uint8]:
    """Copies uint8 [N, M] thinned out at random so that originals and copies are at most `max_entries`."""
    total = int(copies.sum(dtype=np.int64))
    if max_entries is None or len(copies) + total <= max_entries:
        return copies
    if max_entries < len(copies):
        raise EquipoiseError(
            f"max_entries={max_entries} is less than the {len(copies)} rows of the split, and originals are never left out: "
            f"raise it to {len(copies)} or more."
        )
    kept = draw(np.arange(total), max_entries - len(copies), seed, "max_entries", epoch)
    cells = np.searchsorted(np.cumsum(copies, dtype=np.int64), kept, side="right")
    return np.bincount(cells, minlength=copies.size).astype(np.uint8).reshape(copies.shape)
