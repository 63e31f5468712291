"""A look at the gradients of every set of modalities, now and then, whatever the method."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from equipoise.balancers.context import StepContext
from equipoise.balancers.gmd import GMD
from equipoise.balancers.indicator import indicate, region_grams
from equipoise.models.batch import Batch
from equipoise.models.contract import MultimodalModel
from equipoise.models.errors import option_error
from equipoise.models.task import Task

if TYPE_CHECKING:
    from equipoise.balancers.step import BalancedStep

#: Up to so many modalities every set of them is looked at, above each alone and all together.
ALL_SETS = 3


class Monitor(BaseModel):
    """Look at the gradients of the losses of sets of modalities at every `every`-th step, before it, on its global batch.

    Up to three modalities, all sets; above, each modality alone and all together. A set counts the rows that have all of it,
    and the same look serves every method, so that methods can be compared. Training is not changed by it, bit for bit: it
    costs a forward pass and a backward pass a set at the steps that are looked at.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    every: int = Field(50, ge=1, description="steps from one look at the gradients to the next")

    if not TYPE_CHECKING:  # type checkers take the signature from the fields

        def __init__(self, **fields: Any) -> None:
            try:
                super().__init__(**fields)
            except ValidationError as error:
                raise option_error("Monitor", type(self), error) from None


class _Sets(GMD):
    """The losses of the sets that the monitor looks at."""

    name = ""

    def check(self, model: MultimodalModel, task: Task) -> None:
        """Nothing is refused: what the balancer accepts is looked at."""

    def subsets(self, ctx: StepContext) -> dict[str, tuple[str, ...]]:
        names = ctx.modalities
        sizes = range(len(names), 0, -1) if len(names) <= ALL_SETS else (len(names), 1)
        return {"+".join(s): s for size in sizes for s in combinations(names, size)}


class Watch:
    """A monitor at work beside one balanced step."""

    def __init__(self, monitor: Monitor, step: BalancedStep, group: dist.ProcessGroup | None) -> None:
        self.every = monitor.every
        self._step = step
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what there is to warn of, the step itself has said
            scaler = None if step.scaling is None else step.scaling.scaler
            how: dict[str, Any] = {"seed": step.seed, "autocast": step.autocast, "scaler": scaler, "group": group}
            self._looks = type(step)(step.model, step.task, _Sets(), step.optimizer, **how)

    def due(self) -> bool:
        """Whether the coming step is one to look at."""
        return self._step.step % self.every == 0

    def look(self, batches: Sequence[Batch]) -> dict[str, float]:
        """{"monitor/norm/a": ..., "monitor/cosine/a/b": ..., "monitor/conflicts": ..., "monitor/dominance": ...}"""
        model, looks = self._step.model, self._looks
        looks.epoch, looks.step = self._step.epoch, self._step.step
        device = next(model.parameters()).device
        buffers = [b.clone() for b in model.buffers()]
        # Compiled encoders go backward once, a look as often as it has sets.
        eager = torch.compiler.set_stance("force_eager")
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), eager:
            gradients = looks.gradients(batches)
        for buffer, before in zip(model.buffers(), buffers, strict=True):
            buffer.copy_(before)
        return indicate(region_grams(gradients), gradients.names).numbers("monitor")
