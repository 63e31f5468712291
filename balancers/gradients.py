"""One gradient an objective, side by side: what a method that keeps them apart combines."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Layout:
    """Where each parameter lies in a flat gradient: owners in order, the parameters of an owner side by side."""

    parameters: tuple[nn.Parameter, ...]
    tensors: tuple[slice, ...]
    owners: Mapping[str, slice]

    @classmethod
    def of(cls, groups: Mapping[str, Sequence[nn.Parameter]]) -> "Layout":
        parameters: list[nn.Parameter] = []
        tensors: list[slice] = []
        owners: dict[str, slice] = {}
        at = 0
        for owner, members in groups.items():
            start = at
            for p in members:
                parameters.append(p)
                tensors.append(slice(at, at + p.numel()))
                at += p.numel()
            owners[owner] = slice(start, at)
        return cls(tuple(parameters), tuple(tensors), owners)

    @property
    def size(self) -> int:
        return self.tensors[-1].stop if self.tensors else 0


@dataclass(frozen=True)
class Gradients:
    """Reduced gradients of k objectives: `flat` [k, P], row i of the objective `names[i]`, columns as `layout` says."""

    flat: Tensor
    names: tuple[str, ...]
    layout: Layout

    def of(self, owner: str) -> Tensor:
        """The columns [k, P_owner] of the parameters that a modality, "shared" or "head" owns; a view."""
        return self.flat[:, self.layout.owners[owner]]

    def gram(self, owners: Sequence[str] | None = None) -> Tensor:
        """Inner products float64 [k, k] over all parameters, or over those of some owners."""
        parts = [self.flat] if owners is None else [self.of(owner) for owner in owners]
        k = len(self.names)
        total = torch.zeros(k, k, dtype=torch.float64, device=self.flat.device)
        for part in parts:
            wide = part.to(torch.float64)
            total += wide @ wide.T
        return total
