"""The balanced step: one optimiser step of any balancing method, the same under any number of workers.

Order: before_forward, counts (one small all-reduce), forward, statistics, objectives, backward, reduce, losses checked,
unscale, gradients checked, combine, modulate, clip, optimiser, after_step. Torch and torch.distributed only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim import Optimizer

from equipoise.balancers import finite
from equipoise.balancers.adaptive import warn_where_cancelled
from equipoise.balancers.balancer import Balancer
from equipoise.balancers.compiled import check_compile, compile_encoders
from equipoise.balancers.context import StepContext, reduce_sums
from equipoise.balancers.counting import contexts_of
from equipoise.balancers.gradients import Gradients, Layout
from equipoise.balancers.indicator import EVERY, indicate, region_grams, towards
from equipoise.balancers.monitor import Monitor, Watch
from equipoise.balancers.noise import warn_of_noise
from equipoise.balancers.roads import Apart, Together
from equipoise.balancers.scaling import Scaling, default_scaler
from equipoise.models.batch import Batch
from equipoise.models.contract import MultimodalModel, check_ownership
from equipoise.models.errors import EquipoiseError
from equipoise.models.task import Task


class StepResult(NamedTuple):
    """What one step did, over the global batch: the sum of its objectives, each of them, and what the balancer reports."""

    loss: float
    losses: dict[str, float]
    statistics: dict[str, float]


class BalancedStep:
    """Train a multimodal model one step at a time with a balancing method.

    >>> step = BalancedStep(model, Classification(10), balancers.get("ogm"), optimizer)   # doctest: +SKIP
    >>> for batch in batches:                                                              # doctest: +SKIP
    ...     result = step(batch)                                                           # doctest: +SKIP

    Where `torch.distributed` is initialised with several workers, `batch` is this worker's part of the global batch (of
    any size, zero rows included), and the step wraps the bare model itself. A list of micro-batches is one step on all
    of them (gradient accumulation).

    Args:
        model: a bare `MultimodalModel`, on the device it trains on.
        task: losses and targets.
        balancer: the method; `equipoise.balancers.get(name, **options)`.
        optimizer: over the model's parameters; made before or after this step, stepped by it.
        seed: what the method's random choices are made of.
        clip_norm: clip the gradient's 2-norm over all parameters, after `modulate`.
        autocast: run the forward pass under autocast of this dtype, torch.bfloat16 or torch.float16.
        scaler: scales the losses, so that half-precision gradients do not underflow; with float16 and None, a
            `torch.amp.GradScaler` with torch's defaults. A gradient that is not finite then skips the step on all workers.
        compile: compile the encoders in place (`torch.compile`), True or keyword arguments of `nn.Module.compile`, such as
            {"backend": "aot_eager"}. For balancers of one summed objective.
        group: the workers that share a global batch; all of them by default.
        monitor: look at the gradients of every set of modalities now and then, see `Monitor`.

    Set `epoch` before each epoch (random choices of a row depend on it). `state_dict` holds the state of the balancer and of
    the scaler, and the counters.

    Raises:
        EquipoiseError: an already wrapped model; an unowned parameter; a model, task or number of modalities that the
            method is not defined for; in a step, a bad batch, or an objective that is not finite (refused on all workers).
    """

    def __init__(
        self,
        model: MultimodalModel,
        task: Task,
        balancer: Balancer,
        optimizer: Optimizer,
        *,
        seed: int = 0,
        clip_norm: float | None = None,
        autocast: torch.dtype | None = None,
        scaler: GradScaler | None = None,
        compile: bool | Mapping[str, Any] = False,
        group: dist.ProcessGroup | None = None,
        monitor: Monitor | None = None,
    ) -> None:
        if isinstance(model, DistributedDataParallel | DataParallel) or "FullySharded" in type(model).__name__:
            raise EquipoiseError(
                f"The model is already wrapped in {type(model).__name__}: give the bare model (model.module), the balanced "
                "step wraps it itself. Under Ray Train: prepare_model(model, parallel_strategy=None)."
            )
        balancer.check(model, task)
        if compile:
            check_compile(balancer)
            compile_encoders(model, compile if isinstance(compile, Mapping) else {})
        warn_of_noise(model)
        self.model = model
        self.task = task
        self.balancer = balancer
        self.optimizer = optimizer
        self.seed = seed
        self.clip_norm = clip_norm
        self.autocast = autocast
        self.epoch = 0
        self.step = 0
        self.groups = check_ownership(model)
        self.layout = Layout.of(self.groups)
        self.world_size = dist.get_world_size(group) if dist.is_initialized() else 1
        self.group = (group or dist.group.WORLD) if self.world_size > 1 else None
        scaler = scaler or default_scaler(self.layout.parameters[0].device, autocast)
        self.scaling = Scaling(scaler, optimizer, self.layout.parameters) if scaler else None
        if self.group is None or dist.get_rank(self.group) == 0:
            warn_where_cancelled(balancer, optimizer)
        self._losses: dict[str, Tensor] = {}
        self._road: Apart | Together
        if balancer.separate:
            self._road = Apart(model, self.layout, self._objectives, self.group)
        else:
            self._road = Together(model, self._objectives, self.group)
        self._watch = None if monitor is None else Watch(monitor, self, group)
        self._every = EVERY if monitor is None else monitor.every  # steps between looks at the method's own gradients

    def __call__(self, batch: Batch | Sequence[Batch]) -> StepResult:
        batches = [batch] if isinstance(batch, Mapping) else batch
        self.model.train()
        seen = self._watch.look(batches) if self._watch is not None and self._watch.due() else {}
        contexts = contexts_of(self, batches)
        last = contexts[-1]
        self.optimizer.zero_grad(set_to_none=True)
        if self._gradient(contexts):
            self.balancer.modulate(self._by_owner(lambda p: p.grad), last)
            if self.clip_norm is not None:
                last.report("gradient_norm", float(nn.utils.clip_grad_norm_(self.layout.parameters, self.clip_norm)))
            self._update(last)
        self.step += 1
        return StepResult(sum(last.losses.values()), last.losses, {**last.reports, **seen})

    def gradients(self, batches: Sequence[Batch]) -> Gradients:
        """The reduced gradients of a separate balancer's objectives on a global batch, and nothing else of a step."""
        assert isinstance(self._road, Apart)
        self._losses = {}
        found = self._road.gradients(contexts_of(self, batches), self._scale)
        if self.scaling is not None:
            found.flat.div_(self.scaling.value)
        return found

    def state_dict(self) -> dict[str, Any]:
        """The balancer's state, the epoch, the number of steps made and, where losses are scaled, the scaler's state."""
        state = {"balancer": self.balancer.state_dict(), "epoch": self.epoch, "step": self.step}
        return state if self.scaling is None else {**state, "scaler": self.scaling.scaler.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave; a scaler that it says nothing of stays as it is."""
        self.balancer.load_state_dict(state["balancer"])
        self.epoch, self.step = int(state["epoch"]), int(state["step"])
        if self.scaling is not None and state.get("scaler"):
            self.scaling.scaler.load_state_dict(dict(state["scaler"]))

    # The parts of a step, in their order.

    def _forward(self, ctx: StepContext) -> None:
        with ctx.precision():
            ctx.outputs = self.model(ctx.batch["inputs"], ctx.present)
        if self.autocast is not None:
            logits, unimodal = ctx.outputs.logits, ctx.outputs.unimodal_logits
            ctx.outputs = ctx.outputs._replace(
                logits=ctx.full(logits),
                unimodal_logits=None if unimodal is None else {m: ctx.full(z) for m, z in unimodal.items()},
            )

    def _statistics(self, ctx: StepContext) -> dict[str, Tensor]:
        with torch.no_grad():
            return self.balancer.statistics(ctx)

    def _objectives(self, ctx: StepContext) -> dict[str, Tensor]:
        self._forward(ctx)
        if not ctx.statistics:
            ctx.statistics = reduce_sums(self._statistics(ctx), ctx.reduce)
        objectives = self.balancer.objectives(ctx)
        for name, value in objectives.items():
            self._losses[name] = self._losses[name] + value.detach() if name in self._losses else value.detach()
        return objectives

    def _collect_statistics(self, contexts: Sequence[StepContext]) -> None:
        """A first pass without gradient: the statistics of all micro-batches, before the first objective needs them."""
        sums: dict[str, Tensor] = {}
        with torch.no_grad():
            for ctx in contexts:
                self._forward(ctx)
                for name, value in self._statistics(ctx).items():
                    sums[name] = sums[name] + value if name in sums else value
                del ctx.outputs
                ctx._fused.clear()
        total = reduce_sums(sums, contexts[0].reduce)
        for ctx in contexts:
            ctx.statistics = total

    def _scale(self, loss: Tensor) -> Tensor:
        return loss if self.scaling is None else self.scaling.scale(loss)

    def _gradient(self, contexts: Sequence[StepContext]) -> bool:
        """The gradient of the global batch, to `p.grad`; False where the losses' scale was too large, so that there is none.

        What is kept apart lives no longer than this. Until `combine`, nothing of the balancer's state may have changed: a
        step that is refused or skipped leaves everything as it was.
        """
        last, when = contexts[-1], f"step {self.step} of epoch {self.epoch}"
        self._losses = {}
        if self.balancer.weights_from_statistics and len(contexts) > 1:
            self._collect_statistics(contexts)
        gradients: Gradients | None = None
        if isinstance(self._road, Apart):
            gradients = self._road.gradients(contexts, self._scale)
        else:
            self._road.backward(contexts, self._scale)
        if len(contexts) > 1 and not self.balancer.weights_from_statistics:
            for ctx in contexts[:-1]:
                for name, value in ctx.statistics.items():
                    last.statistics[name] = last.statistics[name] + value
        found = last.reduce(torch.stack([value.to(torch.float64) for value in self._losses.values()])).tolist()
        last.losses = dict(zip(self._losses, found, strict=True))
        finite.check_losses(last.losses, when)
        if self.scaling is not None:
            last.report("loss_scale", self.scaling.value)
            fits = self.scaling.unscale(gradients)
            last.report("skipped", float(not fits))
            if not fits and self.scaling.skip():
                return False
        if gradients is not None:
            self._combine(gradients, last, when)
        self._forget_dropped(last)
        if self.scaling is None or not fits or gradients is not None:
            finite.check_gradient(self._by_owner(lambda p: p.grad), when)
        return True

    def _combine(self, gradients: Gradients, ctx: StepContext, when: str) -> None:
        finite.check_objectives(gradients.flat, gradients.names, when)
        # Before `combine`, which may change the gradients in place.
        grams = region_grams(gradients) if self.step % self._every == 0 else None
        own = indicate(grams, gradients.names).numbers("gradient") if grams is not None else {}
        combined = self.balancer.combine(gradients, ctx)
        if grams is not None:
            ctx.reports |= own | towards(gradients, combined)
            if ctx.calibrated is not None:
                ctx.reports |= indicate(grams, gradients.names, ctx.calibrated).numbers("gradient/after")
        gradients.write(combined)

    def _forget_dropped(self, ctx: StepContext) -> None:
        """No gradient for what a modality owns that no row of the global batch has, where absence means left out: a worker
        without rows must touch some parameter to go backward at all, and gives zeros then.
        """
        if self.model.absence == "drop":
            for m in self.model.modalities:
                if not ctx.counts[m]:
                    for p in self.groups[m]:
                        p.grad = None

    def _by_owner(self, value: Any) -> dict[str, list[Tensor]]:
        return {
            owner: [found for found in map(value, members) if found is not None]
            for owner, members in self.groups.items()
        }

    def _update(self, ctx: StepContext) -> None:
        make = self.optimizer.step if self.scaling is None else self.scaling.step
        if not self.balancer.changes_update:
            make()
            return
        before = {id(p): p.detach().clone() for p in self.layout.parameters}
        make()
        with torch.no_grad():
            moved = {id(p): p - before[id(p)] for p in self.layout.parameters}
            self.balancer.after_step(self._by_owner(lambda p: moved[id(p)]), ctx)
            for p in self.layout.parameters:
                p.copy_(before[id(p)] + moved[id(p)])
