"""Random numbers that belong to a row, not to its place in a batch.

A random choice about a row (drop this modality? round this copy up?) is a counter-based hash of
(seed, purpose, epoch, sample_id, copy), so it does not depend on the number of workers, on the batch it came in, or on
what was drawn before. The mixing function is the finaliser of SplitMix64 (Steele, Lea, Flood, "Fast splittable
pseudorandom number generators", OOPSLA 2014).
"""

from hashlib import blake2b

import numpy as np
from numpy.typing import ArrayLike, NDArray

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mix(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def words(*key: int | str | ArrayLike) -> NDArray[np.uint64]:
    """Hash a key of integers, strings and integer arrays (broadcast together) to uniform 64-bit words.

    Returns uint64 of the broadcast shape of the arrays (at least shape ()).
    """
    with np.errstate(over="ignore"):
        state = np.zeros((), np.uint64)
        for part in key:
            if isinstance(part, str):
                part = int.from_bytes(blake2b(part.encode(), digest_size=8).digest(), "little")
            value = np.asarray(part)
            if value.dtype.kind not in "iub" and value.dtype != object:
                raise TypeError(f"a row hash is made of integers and strings, not {value.dtype}")
            state = _mix(state + _GOLDEN + _mix(value.astype(np.uint64) + _GOLDEN))
    return state


def uniform(*key: int | str | ArrayLike) -> NDArray[np.float64]:
    """Hash a key to float64 in [0, 1), 53 random bits each; see `words`."""
    return (words(*key) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def seed_of(*key: int | str) -> int:
    """Hash a key to a non-negative seed below 2**63, for `torch.Generator` or `numpy.random.default_rng`."""
    return int(words(*key) >> np.uint64(1))
