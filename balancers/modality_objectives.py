"""The fused loss and the loss of each modality alone as the tasks of a multi-task method, their gradients kept apart."""

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from equipoise.balancers.balancer import Balancer
from equipoise.balancers.context import StepContext
from equipoise.balancers.gradients import Gradients
from equipoise.models.contract import Unimodal


class ModalityObjectives(Balancer):
    """L_0 = mean loss(z, y), L_m = mean loss(z_m, y) over the global batch's rows with m: one gradient each.

    A modality that no row of the global batch has is no objective of that step.
    """

    family = "gradient"
    losses = "fused, one a modality"
    separate = True
    accepts: ClassVar[tuple[Unimodal, ...]] = ("split", "heads", "coalition")
    tasks = ("classification", "multilabel", "regression", "segmentation")

    def backward_passes(self, modalities: int) -> int:
        return 1 + modalities

    def objectives(self, ctx: StepContext) -> dict[str, Tensor]:
        fused = {"fused": ctx.mean(ctx.task.losses(ctx.outputs.logits, ctx.target))}
        return fused | {
            m: ctx.mean(ctx.task.losses(ctx.unimodal_logits(m), ctx.target), m) for m in ctx.modalities if ctx.counts[m]
        }


def shared(gradients: Gradients) -> list[slice]:
    """The columns that several objectives reach. The rest belongs to a single one, such as a modality's own head."""
    return [span for span, reached in gradients.regions() if int(reached.sum()) > 1]


def weighted(gradients: Gradients, weights: Tensor, spans: Sequence[slice]) -> Tensor:
    """The gradients [P] added up, by weights [k] in some columns."""
    combined = gradients.flat.sum(dim=0)
    for span in spans:
        torch.mv(gradients.flat[:, span].T, weights.to(combined), out=combined[span])
    return combined


def length(gradient: Tensor, spans: Sequence[slice]) -> float:
    """The 2-norm of a gradient [P] over some columns."""
    return math.sqrt(sum(float(gradient[span].square().sum()) for span in spans))
