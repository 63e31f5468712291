"""One gradient an objective, side by side: what a method that keeps them apart combines."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

#: Columns that are turned to float64 at a time: inner products cost no second copy of all gradients.
CHUNK = 1 << 16


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
    """Reduced gradients of k objectives.

    - `flat` [k, P]: row i of the objective `names[i]`, columns as `layout` says.
    - `reached` bool[k, T]: which of the T parameter tensors an objective leads to, for some row of some worker.
    """

    flat: Tensor
    names: tuple[str, ...]
    layout: Layout
    reached: Tensor

    def of(self, owner: str) -> Tensor:
        """The columns [k, P_owner] of the parameters that a modality, "shared" or "head" owns; a view."""
        return self.flat[:, self.layout.owners[owner]]

    def gram(self, owners: Sequence[str] | None = None) -> Tensor:
        """Inner products float64 [k, k] over all parameters, or over those of some owners."""
        spans = [slice(0, self.layout.size)] if owners is None else [self.layout.owners[owner] for owner in owners]
        return self.products(spans)

    def products(self, spans: Sequence[slice]) -> Tensor:
        """Inner products float64 [k, k] over some columns."""
        k = len(self.names)
        total = torch.zeros(k, k, dtype=torch.float64, device=self.flat.device)
        for span in spans:
            for start in range(span.start, span.stop, CHUNK):
                wide = self.flat[:, start : min(start + CHUNK, span.stop)].to(torch.float64)
                total += wide @ wide.T
        return total

    def regions(self) -> Iterator[tuple[slice, Tensor]]:
        """Neighbouring columns that the same objectives reach, in order: (columns, bool[k])."""
        start = 0
        for n, part in enumerate(self.layout.tensors):
            following = n + 1 < len(self.layout.tensors)
            if not following or not torch.equal(self.reached[:, n], self.reached[:, n + 1]):
                yield slice(start, part.stop), self.reached[:, n]
                start = part.stop

    def write(self, combined: Tensor) -> None:
        """A gradient [P] into `p.grad` of the parameters that some objective reaches, as views; None elsewhere."""
        used = self.reached.any(dim=0).tolist()
        for p, part, reached in zip(self.layout.parameters, self.layout.tensors, used, strict=True):
            p.grad = combined[part].reshape(p.shape).to(p.dtype) if reached else None

    def common(self, *names: str) -> list[slice]:
        """The columns that all of some objectives reach."""
        rows = [self.names.index(name) for name in names]
        return [span for span, reached in self.regions() if bool(reached[rows].all())]
