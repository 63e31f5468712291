"""The balanced step: one optimiser step of any balancing method, the same under any number of workers.

Order: before_forward, counts (one small all-reduce), forward, statistics, objectives, backward, reduce, combine,
modulate, clip, optimiser, after_step. Torch and torch.distributed only.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim import Optimizer

from equipoise.balancers.balancer import Balancer
from equipoise.balancers.context import StepContext, reduce_sums
from equipoise.balancers.gradients import Gradients, Layout
from equipoise.balancers.indicator import Indicator, indicate, region_grams, towards
from equipoise.balancers.monitor import Monitor, Watch
from equipoise.models.batch import Batch, check_batch
from equipoise.models.contract import MultimodalModel, check_ownership
from equipoise.models.errors import EquipoiseError
from equipoise.models.task import Task


class StepResult(NamedTuple):
    """What one step did, over the global batch: the sum of its objectives, each of them, and what the balancer reports."""

    loss: float
    losses: dict[str, float]
    statistics: dict[str, float]


class _Objective(nn.Module):
    """Model, statistics and objectives as one forward pass that returns the scalar loss.

    DDP hooks the gradients that its forward leads to: losses built outside it raise "ready only once".
    """

    def __init__(self, step: BalancedStep) -> None:
        super().__init__()
        self.model = step.model
        self._step = [step]  # in a list, so that it is not registered as a submodule's attribute

    def forward(self, ctx: StepContext) -> Tensor:
        return self._step[0]._loss(ctx)


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
        autocast: run the forward pass under autocast of this dtype (torch.bfloat16).
        group: the workers that share a global batch; all of them by default.
        monitor: look at the gradients of every set of modalities now and then, see `Monitor`.

    Set `epoch` before each epoch (random choices of a row depend on it). `state_dict` holds the balancer's state and the
    counters.

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
        group: dist.ProcessGroup | None = None,
        monitor: Monitor | None = None,
    ) -> None:
        if isinstance(model, DistributedDataParallel | DataParallel) or "FullySharded" in type(model).__name__:
            raise EquipoiseError(
                f"The model is already wrapped in {type(model).__name__}: give the bare model (model.module), the balanced "
                "step wraps it itself. Under Ray Train: prepare_model(model, parallel_strategy=None)."
            )
        balancer.check(model, task)
        _warn_of_noise(model)
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
        self._losses: dict[str, Tensor] = {}
        self._objective: nn.Module = _Objective(self)
        if self.group is not None:
            if balancer.separate:
                for tensor in [*model.parameters(), *model.buffers()]:
                    dist.broadcast(tensor.detach(), group_src=0, group=self.group)
            else:
                self._objective = DistributedDataParallel(
                    self._objective, process_group=self.group, find_unused_parameters=True
                )
        self._watch = None if monitor is None else Watch(monitor, self, group)

    def __call__(self, batch: Batch | Sequence[Batch]) -> StepResult:
        batches = [batch] if isinstance(batch, Mapping) else batch
        self.model.train()
        seen = self._watch.look(batches) if self._watch is not None and self._watch.due() else {}
        contexts = self._contexts(batches)
        self.optimizer.zero_grad(set_to_none=True)
        self._losses = {}
        if self.balancer.weights_from_statistics and len(contexts) > 1:
            self._collect_statistics(contexts)
        gradients: Gradients | None = None
        if self.balancer.separate:
            gradients = self._separate_backward(contexts)
        else:
            self._backward(contexts)
        last = contexts[-1]
        if len(contexts) > 1 and not self.balancer.weights_from_statistics:
            for ctx in contexts[:-1]:
                for name, value in ctx.statistics.items():
                    last.statistics[name] = last.statistics[name] + value
        losses = {name: float(value) for name, value in reduce_sums(self._losses, last.reduce).items()}
        last.losses = losses
        self._refuse_nonfinite(losses)

        if gradients is not None:
            grams = region_grams(gradients)
            before = indicate(grams, gradients.names)
            self._refuse_nonfinite_norms(before)
            combined = self.balancer.combine(gradients, last)
            last.reports |= before.numbers("gradient") | towards(gradients, combined)
            if last.calibrated is not None:
                last.reports |= indicate(grams, gradients.names, last.calibrated).numbers("gradient/after")
            self._write(gradients, combined)
        self._forget_dropped(last)
        # Before `modulate`, which may change the balancer's state: a refused step leaves everything as it was.
        self._refuse_nonfinite_gradient()
        self.balancer.modulate(self._by_owner(lambda p: p.grad), last)
        if self.clip_norm is not None:
            last.report("gradient_norm", float(nn.utils.clip_grad_norm_(self.layout.parameters, self.clip_norm)))
        self._update(last)
        self.step += 1
        return StepResult(sum(losses.values()), losses, {**last.reports, **seen})

    def gradients(self, batches: Sequence[Batch]) -> Gradients:
        """The reduced gradients of the balancer's objectives on a global batch, and nothing else of a step."""
        self._losses = {}
        return self._separate_backward(self._contexts(batches))

    def state_dict(self) -> dict[str, Any]:
        """The balancer's state, the epoch and the number of steps made."""
        return {"balancer": self.balancer.state_dict(), "epoch": self.epoch, "step": self.step}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self.balancer.load_state_dict(state["balancer"])
        self.epoch, self.step = int(state["epoch"]), int(state["step"])

    # The parts of a step, in their order.

    def _contexts(self, batches: Sequence[Batch]) -> list[StepContext]:
        """One context a micro-batch, with the counts of the whole global batch."""
        device = next(self.model.parameters()).device
        contexts: list[StepContext] = []
        counts = torch.zeros(0, dtype=torch.float64, device=device)
        for batch in batches:
            batch = _move(batch, device)
            check_batch(batch, self.model.modalities)
            self.task.check(batch["target"])
            ctx = StepContext(
                self.model,
                self.task,
                batch,
                seed=self.seed,
                epoch=self.epoch,
                step=self.step,
                group=self.group,
                autocast=self.autocast,
            )
            ctx.batch = self.balancer.before_forward(batch, ctx)
            ctx.rows = {
                "rows": torch.ones_like(batch["sample_id"], dtype=torch.bool),
                **{m: ctx.has(m) for m in self.model.modalities},
            }
            for name, mask in self.balancer.rows(ctx.batch, ctx).items():
                if name in ctx.rows and not torch.equal(mask, ctx.rows[name]):
                    raise EquipoiseError(
                        f"Balancer {self.balancer.name!r} names rows {name!r}, which already means others: rename them."
                    )
                ctx.rows[name] = mask
            local = torch.stack([mask.sum() for mask in ctx.rows.values()]).to(torch.float64)
            counts = local if not contexts else counts + local
            contexts.append(ctx)
        # The number of micro-batches travels along, with its square: workers that differ in it would wait for ever.
        micro = counts.new_tensor([len(contexts), len(contexts) ** 2])
        *reduced, total, squares = contexts[0].reduce(torch.cat([counts, micro])).tolist()
        if total**2 != self.world_size * squares:
            raise EquipoiseError(
                f"The workers gave different numbers of micro-batches to step {self.step} (this one {len(contexts)}): give "
                "every worker equally many, some of them without rows if need be."
            )
        for ctx in contexts:
            ctx.counts = dict(zip(ctx.rows, reduced, strict=True))
        return contexts

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

    def _loss(self, ctx: StepContext) -> Tensor:
        # DDP divides the summed gradient by the number of workers; the objectives are shares of a global mean already.
        return torch.stack(list(self._objectives(ctx).values())).sum() * self.world_size

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

    def _backward(self, contexts: Sequence[StepContext]) -> None:
        """The summed objectives' gradient, reduced by DDP with the last micro-batch."""
        for i, ctx in enumerate(contexts):
            waits = i < len(contexts) - 1 and isinstance(self._objective, DistributedDataParallel)
            with cast(DistributedDataParallel, self._objective).no_sync() if waits else nullcontext():
                self._objective(ctx).backward()

    def _separate_backward(self, contexts: Sequence[StepContext]) -> Gradients:
        """One gradient an objective, summed over micro-batches and workers, in one flat buffer and one all-reduce.

        A flag a parameter travels along, so that "used by nobody" is a fact of the global batch: such a parameter keeps
        no gradient on any worker, whoever had the rows.
        """
        parameters, size = self.layout.parameters, self.layout.size
        names: tuple[str, ...] = ()
        buffer = torch.zeros(0)
        for ctx in contexts:
            objectives = self._objectives(ctx)
            if not names:
                names = tuple(objectives)
                wide = parameters[0]
                buffer = torch.zeros(len(names), size + len(parameters), dtype=wide.dtype, device=wide.device)
            elif tuple(objectives) != names:
                raise EquipoiseError(f"Balancer {self.balancer.name!r} names other objectives in another micro-batch.")
            for row, (i, objective) in zip(buffer, enumerate(objectives.values()), strict=True):
                if not objective.requires_grad:
                    continue
                found = torch.autograd.grad(objective, parameters, retain_graph=i + 1 < len(names), allow_unused=True)
                for n, (part, gradient) in enumerate(zip(self.layout.tensors, found, strict=True)):
                    if gradient is not None:
                        row[part] += gradient.reshape(-1)
                        row[size + n] = 1.0
        if self.group is not None:
            dist.all_reduce(buffer, group=self.group)
        reached = (buffer[:, size:] > 0).cpu()
        self._used = reached.any(dim=0)
        return Gradients(buffer[:, :size], names, self.layout, reached)

    def _refuse_nonfinite(self, losses: Mapping[str, float]) -> None:
        for name, value in losses.items():
            if not math.isfinite(value):
                raise EquipoiseError(
                    f"The objective {name!r} is {value} in step {self.step} of epoch {self.epoch}: the step was refused on "
                    "all workers and no parameter changed. Look for NaN or huge values in the inputs, or lower the "
                    "learning rate."
                )

    def _refuse_nonfinite_norms(self, indicator: Indicator) -> None:
        """Refuse a gradient of one objective that is not finite, on all workers alike since it is reduced."""
        bad = [n for n, norm in zip(indicator.names, indicator.norms.tolist(), strict=True) if not math.isfinite(norm)]
        if bad:
            raise EquipoiseError(
                f"The gradient of the objective {bad[0]!r} is not finite in step {self.step} of epoch {self.epoch}, though its "
                "loss is: the step was refused on all workers and no parameter changed. Look for a derivative without a "
                "bound (sqrt at 0, log of 0), or lower the learning rate."
            )

    def _refuse_nonfinite_gradient(self) -> None:
        """Refuse a gradient that is not finite, on all workers alike since it is reduced."""
        owned = self._by_owner(lambda p: p.grad)
        norm = nn.utils.get_total_norm([g for gradients in owned.values() for g in gradients])
        if not math.isfinite(float(norm)):
            bad = [owner for owner, found in owned.items() if any(not bool(g.isfinite().all()) for g in found)]
            raise EquipoiseError(
                f"The gradient of {' and '.join(map(repr, bad)) or 'all parameters together'} is not finite in step "
                f"{self.step} of epoch {self.epoch}, though the losses are: the step was refused on all workers and no "
                "parameter changed. Look for a derivative without a bound (sqrt at 0, log of 0), or lower the learning rate."
            )

    def _write(self, gradients: Gradients, combined: Tensor) -> None:
        for p, part, used in zip(self.layout.parameters, self.layout.tensors, self._used.tolist(), strict=True):
            p.grad = combined[part].reshape(p.shape).to(p.dtype) if used else None

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
        if not self.balancer.changes_update:
            self.optimizer.step()
            return
        before = {id(p): p.detach().clone() for p in self.layout.parameters}
        self.optimizer.step()
        with torch.no_grad():
            moved = {id(p): p - before[id(p)] for p in self.layout.parameters}
            self.balancer.after_step(self._by_owner(lambda p: moved[id(p)]), ctx)
            for p in self.layout.parameters:
                p.copy_(before[id(p)] + moved[id(p)])


def _move(batch: Batch, device: torch.device) -> Batch:
    return Batch(
        sample_id=batch["sample_id"].to(device),
        copy=batch["copy"].to(device),
        inputs={name: x.to(device) for name, x in batch["inputs"].items()},
        present=batch["present"].to(device),
        target=batch["target"].to(device),
    )


def _noisy(module: nn.Module) -> bool:
    """Whether a layer's output depends on other rows or on chance."""
    if isinstance(module, nn.RNNBase):
        return bool(module.dropout > 0 and module.num_layers > 1)
    if isinstance(module, nn.MultiheadAttention):
        return bool(module.dropout > 0)
    if isinstance(module, nn.modules.dropout._DropoutNd):
        return module.p > 0
    return isinstance(module, nn.modules.batchnorm._BatchNorm)


def _warn_of_noise(model: nn.Module) -> None:
    noisy = {type(m).__name__ for m in model.modules() if _noisy(m)}
    if noisy:
        warnings.warn(
            f"The model has {', '.join(sorted(noisy))} layers: N workers then equal one worker in distribution only, and "
            "their randomness or statistics are not balanced. GroupNorm or LayerNorm keep the equality exact.",
            stacklevel=3,
        )
