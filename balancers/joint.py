"""Joint training: the fused loss alone."""

from typing import ClassVar

from torch import Tensor

from equipoise.balancers.balancer import Balancer, Family
from equipoise.balancers.context import StepContext


class Joint(Balancer):
    """Plain multimodal training, the baseline of every paper: mean of CE(z, y) over the global batch."""

    name = "joint"
    family: ClassVar[Family] = "control"
    tasks: ClassVar[tuple[str, ...]] = ("classification", "multilabel", "regression", "segmentation")

    def objectives(self, ctx: StepContext) -> dict[str, Tensor]:
        return {"fused": ctx.mean(ctx.task.losses(ctx.outputs.logits, ctx.target))}
