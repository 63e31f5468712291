"""Layers whose output depends on other rows or on chance: with them, workers are equal in distribution only."""

import warnings

from torch import nn


def _noisy(module: nn.Module) -> bool:
    if isinstance(module, nn.RNNBase):
        return bool(module.dropout > 0 and module.num_layers > 1)
    if isinstance(module, nn.MultiheadAttention):
        return bool(module.dropout > 0)
    if isinstance(module, nn.modules.dropout._DropoutNd):
        return module.p > 0
    return isinstance(module, nn.modules.batchnorm._BatchNorm)


def warn_of_noise(model: nn.Module) -> None:
    noisy = {type(m).__name__ for m in model.modules() if _noisy(m)}
    if noisy:
        warnings.warn(
            f"The model has {', '.join(sorted(noisy))} layers: N workers then equal one worker in distribution only, and "
            "their randomness or statistics are not balanced. GroupNorm or LayerNorm keep the equality exact.",
            stacklevel=3,
        )
