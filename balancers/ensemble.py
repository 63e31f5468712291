"""The late-fusion ensemble of unimodal models: the bar that joint training often misses."""

from torch import Tensor

from equipoise.balancers.balancer import Balancer
from equipoise.balancers.context import StepContext


class Ensemble(Balancer):
    """Every modality's model trained alone, by its own loss; the prediction is the mean of their logits.

        L_m = mean of loss(W_m f_m + b_m, y) over the global batch's rows that have m;  logits = mean over the present m

    No gradient passes between modalities, so that this is M separate trainings in the time of one. Joint training often stays
    below it: Wang, Tran, Feiszli, "What Makes Training Multi-modal Classification Networks Hard?", CVPR 2020.
    """

    name = "ensemble"
    family = "control"
    losses = "one a modality"
    accepts = ("split",)
    fusions = ("average",)
    tasks = ("classification", "multilabel", "regression", "segmentation")

    def objectives(self, ctx: StepContext) -> dict[str, Tensor]:
        # A global batch without rows has no modality; a step needs an objective all the same.
        there = [m for m in ctx.modalities if ctx.counts[m]] or list(ctx.modalities)
        return {m: ctx.mean(ctx.task.losses(ctx.unimodal_logits(m), ctx.target), m) for m in there}
