"""The row hash in Python's own integers, one row at a time. Shares no code with equipoise."""

from hashlib import blake2b

LIMIT = 2**64
GOLDEN = 0x9E3779B97F4A7C15


def splitmix(z):
    """The finaliser of SplitMix64."""
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) % LIMIT
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % LIMIT
    return z ^ (z >> 31)


def word(*key):
    state = 0
    for part in key:
        if isinstance(part, str):
            part = int.from_bytes(blake2b(part.encode(), digest_size=8).digest(), "little")
        state = splitmix((state + GOLDEN + splitmix((part + GOLDEN) % LIMIT)) % LIMIT)
    return state


def uniform(*key):
    return (word(*key) >> 11) / 2**53
