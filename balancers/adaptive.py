"""Optimisers that divide a constant factor of the gradient out again: a method that scales gradients does little there."""

import inspect
import warnings
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from equipoise.balancers.balancer import Balancer

#: How to run, not what to compute; and decay, which moves parameters whatever the gradient.
_NOT_PROBED = ("foreach", "fused", "capturable", "differentiable", "weight_decay")


def cancels_scale(optimizer: Optimizer) -> bool:
    """Whether a gradient of a tenth of the size moves parameters (nearly) as far, by trying it: a fresh optimiser of the same
    class and settings on a parameter of its own. Where it cannot be tried, by its name.
    """
    optimizer = getattr(optimizer, "optimizer", optimizer)  # inside a wrapper, such as Accelerate's
    kind = type(optimizer)
    try:
        taken = inspect.signature(kind).parameters
        settings = {k: v for k, v in optimizer.defaults.items() if k in taken and k not in _NOT_PROBED}
        small, large = _last_move(kind, settings, 0.1), _last_move(kind, settings, 1.0)
        return small > large / 2 > 0
    except Exception:  # it wants a closure, sparse gradients, a GPU, arguments of its own, ...
        return "ada" in kind.__name__.lower()


def _last_move(kind: type[Optimizer], settings: dict[str, Any], size: float) -> float:
    """How far the last of some steps along the same gradient goes; RAdam's first five divide by nothing."""
    p = nn.Parameter(torch.zeros(2, 2))
    optimizer = kind([p], **settings)
    for _ in range(12):
        before = p.detach().clone()
        p.grad = torch.full_like(p, size)
        optimizer.step()
    return float((p.detach() - before).norm())


def cancelled(balancer: Balancer, optimizer: Optimizer) -> tuple[str, str] | None:
    """(what is lost, what to do), two halves of a sentence, where an optimiser undoes most of what a method does to gradients."""
    if getattr(balancer.options, "apply", None) != "gradient" or not cancels_scale(optimizer):
        return None
    name = type(getattr(optimizer, "optimizer", optimizer)).__name__
    return (
        f"Balancer {balancer.name!r} scales gradients (apply='gradient'), and {name} divides a factor that changes slowly out of "
        "them again, so that little is left of the scaling",
        "use apply='update' (balancer.options.apply=update), which scales what the optimiser did, or an optimiser such as SGD",
    )


def warn_where_cancelled(balancer: Balancer, optimizer: Optimizer) -> None:
    """Say it to whoever makes a step of them."""
    if told := cancelled(balancer, optimizer):
        warnings.warn(f"{told[0]}: {told[1]}.", stacklevel=3)
