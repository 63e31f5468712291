"""What a step costs in things that can be counted: passes through the encoders, and live memory."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


@dataclass
class Passes:
    """Passes of one step: `forward` and `backward` {module: how often}, `runs`: how often autograd was started and came through
    any of the modules.
    """

    forward: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    backward: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    runs: int = 0


@contextmanager
def counted(modules: dict[str, nn.Module]) -> Iterator[Passes]:
    """Count what is done inside, by hooks on the modules' outputs: a module that several paths lead back to is passed once."""
    passes = Passes()
    started, came = [0], set()

    def follow(name: str, output: Tensor) -> None:
        passes.forward[name] += 1

        def back(_: Tensor) -> None:
            passes.backward[name] += 1
            came.add(started[0])

        if output.requires_grad:
            output.register_hook(back)

    hooks = [
        module.register_forward_hook(lambda _, __, output, name=name: follow(name, output))
        for name, module in modules.items()
    ]
    plain = {name: getattr(torch.autograd, name) for name in ("grad", "backward")}

    def start(name: str) -> Any:
        def run(*args: Any, **kwargs: Any) -> Any:
            started[0] += 1
            return plain[name](*args, **kwargs)

        return run

    for name in plain:
        setattr(torch.autograd, name, start(name))
    try:
        yield passes
    finally:
        for name, function in plain.items():
            setattr(torch.autograd, name, function)
        for hook in hooks:
            hook.remove()
        passes.runs = len(came)


class Live(TorchDispatchMode):
    """The bytes of tensors made inside and alive at the same time: `peak`. What an operator uses within itself is not seen."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = self.now = 0
        self._alive: dict[int, tuple[StorageWeakRef, int]] = {}
        self._before: set[int] = set()

    def known(self, tensors: Iterator[Tensor]) -> Live:
        """Leave out what was there before."""
        self._before |= {t.untyped_storage()._cdata for t in tensors}
        return self

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self._before:
                    self._alive[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self._alive = {key: found for key, found in self._alive.items() if not found[0].expired()}
        self.now = sum(size for _, size in self._alive.values())
        self.peak = max(self.peak, self.now)
        return out
