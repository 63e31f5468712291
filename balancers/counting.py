"""The rows of a step, counted over the whole global batch before the first forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from equipoise.balancers.context import StepContext
from equipoise.models.batch import Batch, check_batch
from equipoise.models.errors import EquipoiseError

if TYPE_CHECKING:
    from equipoise.balancers.step import BalancedStep


def contexts_of(step: BalancedStep, batches: Sequence[Batch]) -> list[StepContext]:
    """One context a micro-batch, with the counts of the whole global batch."""
    device = next(step.model.parameters()).device
    contexts: list[StepContext] = []
    counts = torch.zeros(0, dtype=torch.float64, device=device)
    for batch in batches:
        batch = _move(batch, device)
        check_batch(batch, step.model.modalities)
        step.task.check(batch["target"])
        ctx = StepContext(
            step.model,
            step.task,
            batch,
            seed=step.seed,
            epoch=step.epoch,
            step=step.step,
            group=step.group,
            autocast=step.autocast,
        )
        ctx.batch = step.balancer.before_forward(batch, ctx)
        ctx.rows = {
            "rows": torch.ones_like(batch["sample_id"], dtype=torch.bool),
            **{m: ctx.has(m) for m in step.model.modalities},
        }
        for name, mask in step.balancer.rows(ctx.batch, ctx).items():
            if name in ctx.rows and not torch.equal(mask, ctx.rows[name]):
                raise EquipoiseError(
                    f"Balancer {step.balancer.name!r} names rows {name!r}, which already means others: rename them."
                )
            ctx.rows[name] = mask
        local = torch.stack([mask.sum() for mask in ctx.rows.values()]).to(torch.float64)
        counts = local if not contexts else counts + local
        contexts.append(ctx)
    # The number of micro-batches travels along, with its square: workers that differ in it would wait for ever.
    micro = counts.new_tensor([len(contexts), len(contexts) ** 2])
    *reduced, total, squares = contexts[0].reduce(torch.cat([counts, micro])).tolist()
    if total**2 != step.world_size * squares:
        raise EquipoiseError(
            f"The workers gave different numbers of micro-batches to step {step.step} (this one {len(contexts)}): give "
            "every worker equally many, some of them without rows if need be."
        )
    for ctx in contexts:
        ctx.counts = dict(zip(ctx.rows, reduced, strict=True))
    return contexts


def _move(batch: Batch, device: torch.device) -> Batch:
    return Batch(
        sample_id=batch["sample_id"].to(device),
        copy=batch["copy"].to(device),
        inputs={name: x.to(device) for name, x in batch["inputs"].items()},
        present=batch["present"].to(device),
        target=batch["target"].to(device),
    )
