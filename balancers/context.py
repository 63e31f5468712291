"""What a balancer's hooks may ask of the step they run in."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from equipoise.models import rowhash
from equipoise.models.batch import Batch
from equipoise.models.contract import MultimodalModel, Outputs
from equipoise.models.errors import EquipoiseError
from equipoise.models.task import Task


class StepContext:
    """One (micro-)batch of one step, as a balancer sees it.

    Attributes:
        batch, outputs, target, present: this worker's rows (`outputs` from the forward pass on).
        counts: rows of the *global* batch: "rows", one a modality (rows that have it), and what `Balancer.rows` named.
        statistics: what `Balancer.statistics` returned, summed over workers (and micro-batches).
        seed, epoch, step: what random choices are made of.
        losses: the objectives' values over the global batch, from `combine` on.
        reports: numbers that end up in `StepResult.statistics`.
        calibrated: float64 [k, k], set by a `combine` that changes gradients: row i gives the one of objective i in terms of
            the originals.
    """

    outputs: Outputs
    calibrated: Tensor | None = None

    def __init__(
        self,
        model: MultimodalModel,
        task: Task,
        batch: Batch,
        *,
        seed: int,
        epoch: int,
        step: int,
        group: dist.ProcessGroup | None,
        autocast: torch.dtype | None = None,
    ) -> None:
        self.model = model
        self.task = task
        self.batch = batch
        self.seed = seed
        self.epoch = epoch
        self.step = step
        self.rows: dict[str, Tensor] = {}
        self.counts: dict[str, float] = {}
        self.statistics: dict[str, Tensor] = {}
        self.losses: dict[str, float] = {}
        self.reports: dict[str, float] = {}
        self.autocast = autocast
        self._group = group
        self._fused: dict[tuple[tuple[str, ...], bool], Tensor] = {}

    @property
    def modalities(self) -> tuple[str, ...]:
        return self.model.modalities

    @property
    def target(self) -> Tensor:
        return self.batch["target"]

    @property
    def present(self) -> Tensor:
        return self.batch["present"]

    def has(self, modality: str) -> Tensor:
        """bool[B]: which rows have a modality."""
        return self.present[:, self.modalities.index(modality)]

    def mean(self, losses: Tensor, rows: str = "rows") -> Tensor:
        """This worker's share of a mean over the global batch: the sum of `losses` [B] over the named rows ("rows" for
        all, a modality, or a name of `Balancer.rows`), over their global count. Zero where that count is zero.
        """
        mask = self.rows[rows]
        # where, not a product: the loss of a row that does not count may be inf or NaN.
        return torch.where(mask, losses, losses.new_zeros(())).sum() / max(self.counts[rows], 1.0)

    def fuse(self, subset: Iterable[str]) -> Tensor:
        """Logits [B, K] with only a subset of the modalities, differentiable; late fusion reuses the encoded features.

        Meaningless in rows that have none of the subset: leave them out by name (`Balancer.rows`).
        """
        members = tuple(m for m in self.modalities if m in set(subset))
        if members == self.modalities and torch.is_grad_enabled():
            return self.outputs.logits
        # `statistics` runs without gradient: its logits must not be handed to `objectives`.
        key = (members, torch.is_grad_enabled())
        if key not in self._fused:
            keep = torch.tensor([m in members for m in self.modalities], device=self.present.device)
            present = self.present & keep
            with self.precision():
                if not self.model.late_fusion:
                    logits = self.model(self.batch["inputs"], present).logits
                elif self.outputs.features is None:
                    raise EquipoiseError(f"{type(self.model).__name__} says late_fusion=True but returns no features.")
                else:
                    # What is left out everywhere gets no gradient: without the zeros, its encoder need not be gone back through.
                    features = self.outputs.features
                    left = {m: features[m].detach() for m in self.modalities if m not in members}
                    logits = self.model.fuse({**features, **left}, present)
            self._fused[key] = self.full(logits)
        return self._fused[key]

    def unimodal_logits(self, modality: str) -> Tensor:
        """Logits [B, K] of one modality alone, by the model's own kind (split, heads or coalition)."""
        if self.outputs.unimodal_logits is not None:
            return self.outputs.unimodal_logits[modality]
        return self.fuse([modality])

    def probe_logits(self) -> dict[str, Tensor]:
        """Unimodal logits {modality: [B, K]} of detached features: their gradient stops at the heads."""
        if self.outputs.features is None:
            raise EquipoiseError(f"{type(self.model).__name__} returns no features, so there is nothing to probe.")
        with self.precision():
            logits = self.model.probe_logits(self.outputs.features)
        return {m: self.full(z) for m, z in logits.items()}

    def precision(self) -> AbstractContextManager[Any]:
        """What every pass through the model or a part of it runs under: autocast, where the step was asked for it."""
        return nullcontext() if self.autocast is None else torch.autocast(self.present.device.type, self.autocast)

    def full(self, logits: Tensor) -> Tensor:
        """Logits out of `precision()` as losses, statistics and counts need them: float32 after autocast."""
        return logits if self.autocast is None else logits.float()

    def detach(self) -> None:
        """Let go of the graph, once its gradients are taken: hooks from `combine` on see the same numbers, detached."""
        logits, unimodal, features = self.outputs
        self.outputs = self.outputs._replace(
            logits=logits.detach(),
            unimodal_logits=None if unimodal is None else {m: z.detach() for m, z in unimodal.items()},
            features=None if features is None else {m: f.detach() for m, f in features.items()},
        )
        self._fused = {key: logits.detach() for key, logits in self._fused.items()}

    def reduce(self, tensor: Tensor) -> Tensor:
        """The sum of a tensor over all workers, detached. Every worker must call it equally often, also without rows."""
        total = tensor.detach().clone()
        if self._group is not None:
            dist.all_reduce(total, group=self._group)
        return total

    def agreed(self, tensor: Tensor) -> Tensor:
        """A tensor as the first worker has it: where a sign decides, rounding must not part the workers."""
        if self._group is not None:
            dist.broadcast(tensor, group_src=0, group=self._group)
        return tensor

    def random(self, purpose: str, modality: str = "") -> Tensor:
        """float64[B] in [0, 1), one a row: a hash of (seed, purpose, modality, epoch, sample_id, copy)."""
        ids = self.batch["sample_id"].cpu().numpy()
        copy = self.batch["copy"].cpu().numpy()
        u = rowhash.uniform(self.seed, purpose, modality, self.epoch, ids, copy)
        return torch.from_numpy(u).to(self.present.device)

    def generator(self, purpose: str) -> torch.Generator:
        """A CPU generator seeded by (seed, purpose, step): the same choice of this step on every worker."""
        return torch.Generator().manual_seed(rowhash.seed_of(self.seed, purpose, self.step))

    def report(self, name: str, value: float) -> None:
        """Put a number, the same on every worker, into the step's statistics."""
        self.reports[name] = float(value)


def reduce_sums(tensors: Mapping[str, Tensor], reduce: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    """Sum named tensors over workers with one all-reduce of a flat float64 vector."""
    if not tensors:
        return {}
    flat = torch.cat([t.detach().reshape(-1).to(torch.float64) for t in tensors.values()])
    flat = reduce(flat)
    out, at = {}, 0
    for name, t in tensors.items():
        out[name] = flat[at : at + t.numel()].reshape(t.shape)
        at += t.numel()
    return out
