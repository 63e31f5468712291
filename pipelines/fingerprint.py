"""Hashes that say which weights a value came from."""

from collections.abc import Mapping
from hashlib import sha256

import torch
from torch import Tensor


def model_hash(state: Mapping[str, Tensor]) -> str:
    """sha256 of a state dict: names, dtypes, shapes and bytes, in the order of the names."""
    digest = sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
