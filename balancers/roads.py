"""The two roads from objectives to the gradient of the global batch: summed, through DDP, or kept apart, in one flat buffer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from equipoise.balancers.context import StepContext
from equipoise.balancers.gradients import Gradients, Layout
from equipoise.models.contract import MultimodalModel
from equipoise.models.errors import EquipoiseError

#: The forward pass and what a balancer makes of it: {name: this worker's share of the global loss}.
Objectives = Callable[[StepContext], dict[str, Tensor]]
#: A loss times the scale that keeps half-precision gradients from underflow.
Scale = Callable[[Tensor], Tensor]


class SummedLoss(nn.Module):
    """Model, statistics and objectives as one forward pass that returns the scalar loss.

    DDP hooks the gradients that its forward leads to: losses built outside it raise "ready only once".
    """

    def __init__(self, model: MultimodalModel, objectives: Objectives, world_size: int) -> None:
        super().__init__()
        self.model = model
        self.objectives = objectives
        self.world_size = world_size

    def forward(self, ctx: StepContext) -> Tensor:
        # DDP divides the summed gradient by the number of workers; the objectives are shares of a global mean already.
        return torch.stack(list(self.objectives(ctx).values())).sum() * self.world_size


class Together:
    """The summed objectives' gradient, left in `p.grad`, reduced by DDP with the last micro-batch."""

    def __init__(self, model: MultimodalModel, objectives: Objectives, group: dist.ProcessGroup | None) -> None:
        loss = SummedLoss(model, objectives, 1 if group is None else dist.get_world_size(group))
        self.loss: nn.Module = loss
        if group is not None:
            self.loss = DistributedDataParallel(loss, process_group=group, find_unused_parameters=True)

    def backward(self, contexts: Sequence[StepContext], scale: Scale) -> None:
        for i, ctx in enumerate(contexts):
            waits = i < len(contexts) - 1 and isinstance(self.loss, DistributedDataParallel)
            with cast(DistributedDataParallel, self.loss).no_sync() if waits else nullcontext():
                torch.autograd.backward(scale(self.loss(ctx)))
            ctx.detach()


class Apart:
    """One gradient an objective, summed over micro-batches and workers, in one flat buffer and one all-reduce.

    A flag a parameter travels along, so that "used by nobody" is a fact of the global batch: such a parameter keeps no
    gradient on any worker, whoever had the rows. Beside the graph live the buffer [k, P + T] and the gradient of one
    objective, then the buffer and what `combine` makes of it.
    """

    def __init__(
        self, model: MultimodalModel, layout: Layout, objectives: Objectives, group: dist.ProcessGroup | None
    ) -> None:
        self.layout, self.objectives, self.group = layout, objectives, group
        if group is not None:
            for tensor in [*model.parameters(), *model.buffers()]:
                dist.broadcast(tensor.detach(), group_src=0, group=group)

    def gradients(self, contexts: Sequence[StepContext], scale: Scale) -> Gradients:
        size, wide = self.layout.size, self.layout.parameters[0]
        names: tuple[str, ...] = ()
        buffer = torch.zeros(0)
        for ctx in contexts:
            objectives = self.objectives(ctx)
            if not names:
                names = tuple(objectives)
                buffer = wide.new_zeros(len(names), size + len(self.layout.parameters))
            elif tuple(objectives) != names:
                raise EquipoiseError(
                    f"The balancer names the objectives {', '.join(objectives)} in one micro-batch, and {', '.join(names)} in "
                    "another of the same step: choose them by ctx.counts, which all of them share."
                )
            self._add(buffer, list(objectives.values()), scale)
            # Only what the last objective leads to was freed: the rest of the graph goes with those who hold it.
            del objectives
            ctx.detach()
        if self.group is not None:
            dist.all_reduce(buffer, group=self.group)
        reached = (buffer[:, size:] > 0).cpu()
        return Gradients(buffer[:, :size], names, self.layout, reached)

    def _add(self, buffer: Tensor, objectives: Sequence[Tensor], scale: Scale) -> None:
        """Add the gradients of one micro-batch's objectives to their rows."""
        size = self.layout.size
        # Every objective is scaled, though it leads nowhere: a scaler counts on it.
        scaled = [scale(objective) for objective in objectives]
        leading = [i for i, objective in enumerate(scaled) if objective.requires_grad]
        for i in leading:
            found = torch.autograd.grad(
                scaled[i], self.layout.parameters, retain_graph=i != leading[-1], allow_unused=True
            )
            row = buffer[i]
            for n, (part, gradient) in enumerate(zip(self.layout.tensors, found, strict=True)):
                if gradient is not None:
                    row[part] += gradient.reshape(-1)
                    row[size + n] = 1.0
            # Or it would live on beside the next one's.
            del found
