"""PMR: prototypical modal rebalance."""

from collections.abc import Mapping
from typing import Any

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from equipoise.balancers.balancer import Balancer
from equipoise.balancers.context import StepContext
from equipoise.models.batch import Batch
from equipoise.models.contract import MultimodalModel
from equipoise.models.errors import EquipoiseError
from equipoise.models.task import Task


class PMR(Balancer):
    """Pull the features of the modality that lags to their class prototypes (Fan et al., "PMR: Prototypical Modal Rebalance
    for Multimodal Learning", CVPR 2023).

        p_m = softmax over classes of -|f_m - c_m,k|, c_m,k the running mean of the features of class k
        s_m = mean of p_m[y];  r_m = (mean of the other modalities' s) / s_m
        L = mean CE(z, y) + alpha * sum_m clip(r_m - 1, 0, 1) mean -log p_m[y]
            - entropy * sum_m clip(1 / r_m - 1, 0, 1) mean H(p_m), the latter in the first `entropy_epochs` epochs alone

    Prototypes are of the global batches: c <- momentum c + (1 - momentum) (this batch's class mean), after each step; a class
    that no batch has had yet has none, and its rows do not count. More than two modalities are our extension.
    """

    name = "pmr"
    losses = "fused, prototypes of what lags, entropy of what leads"
    weights_from_statistics = True

    class Options(Balancer.Options):
        """The weights of the prototype loss and of the entropy, and how a prototype moves."""

        alpha: float = Field(1.0, ge=0, description="weight of the prototype loss")
        momentum: float = Field(0.9, ge=0, lt=1, description="how much of a prototype stays in a step")
        entropy: float = Field(0.01, ge=0, description="weight of the entropy of the modality that leads")
        entropy_epochs: int = Field(1, ge=0, description="how many epochs the entropy counts")

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._prototypes: dict[str, Tensor] = {}  # {modality: float64 [K, D]}
        self._seen: dict[str, Tensor] = {}  # {modality: bool [K]}

    def check(self, model: MultimodalModel, task: Task) -> None:
        super().check(model, task)
        if not model.late_fusion:
            raise EquipoiseError(
                "Balancer 'pmr' needs a feature of each modality, and a model that fuses early has none: use late fusion."
            )

    def rows(self, batch: Batch, ctx: StepContext) -> dict[str, Tensor]:
        found = {}
        for i, m in enumerate(ctx.modalities):
            has = batch["present"][:, i]
            known = self._seen[m].to(has.device)[batch["target"]] if m in self._seen else torch.zeros_like(has)
            found[f"prototype/{m}"] = has & known
        return found

    def log_probabilities(self, ctx: StepContext, modality: str) -> Tensor:
        """log p_m [B, K], -inf for a class without a prototype; float32 or wider."""
        feature = self._feature(ctx, modality)
        prototypes = self._prototypes[modality].to(feature)
        # By matrix products a distance would depend on how many rows there are.
        distance = torch.cdist(feature, prototypes, compute_mode="donot_use_mm_for_euclid_dist")
        seen = self._seen[modality].to(feature.device)
        return (-distance).masked_fill(~seen, -torch.inf).log_softmax(dim=1)

    def statistics(self, ctx: StepContext) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for m in ctx.modalities:
            feature = self._feature(ctx, m).double()
            label = F.one_hot(ctx.target, ctx.task.num_outputs).double() * ctx.has(m)[:, None]
            # where, not a product: the features of rows that lack a modality mean nothing.
            found[f"sum/{m}"] = label.T @ torch.where(ctx.has(m)[:, None], feature, 0.0)
            found[f"count/{m}"] = label.sum(dim=0)
            if ctx.counts[f"prototype/{m}"]:
                right = self.log_probabilities(ctx, m).gather(1, ctx.target[:, None]).squeeze(1).exp().double()
                found[f"score/{m}"] = torch.where(ctx.rows[f"prototype/{m}"], right, 0.0).sum()
        return found

    def ratios(self, ctx: StepContext) -> dict[str, float]:
        """r_m of the modalities that some row with a prototype has; above 1: it lags."""
        s = {
            m: float(ctx.statistics[f"score/{m}"]) / ctx.counts[f"prototype/{m}"]
            for m in ctx.modalities
            if ctx.counts[f"prototype/{m}"]
        }
        if len(s) < 2:
            return {}
        return {m: (sum(s.values()) - v) / (len(s) - 1) / max(v, 1e-12) for m, v in s.items()}

    def objectives(self, ctx: StepContext) -> dict[str, Tensor]:
        found = {"fused": ctx.mean(ctx.task.losses(ctx.outputs.logits, ctx.target))}
        for m, r in self.ratios(ctx).items():
            ctx.report(f"pmr_ratio_{m}", r)
            rows = f"prototype/{m}"
            log_p = self.log_probabilities(ctx, m)
            if r > 1:
                pull = F.nll_loss(log_p, ctx.target, reduction="none")
                found[f"prototype/{m}"] = self.options.alpha * min(r - 1, 1.0) * ctx.mean(pull, rows)
            elif r < 1 and self.options.entropy and ctx.epoch < self.options.entropy_epochs:
                h = entropy(log_p)
                found[f"entropy/{m}"] = -self.options.entropy * min(1 / max(r, 1e-12) - 1, 1.0) * ctx.mean(h, rows)
        return found

    def modulate(self, gradients: Mapping[str, list[Tensor]], ctx: StepContext) -> None:
        for m in ctx.modalities:
            count = ctx.statistics[f"count/{m}"].cpu()
            mean = ctx.statistics[f"sum/{m}"].cpu() / count.clamp(min=1)[:, None]
            before, seen = (
                self._prototypes.get(m, torch.zeros_like(mean)),
                self._seen.get(m, torch.zeros_like(count) > 0),
            )
            moved = self.options.momentum * before + (1 - self.options.momentum) * mean
            now = torch.where(seen[:, None], moved, mean)
            self._prototypes[m] = torch.where((count > 0)[:, None], now, before)
            self._seen[m] = seen | (count > 0)

    def _feature(self, ctx: StepContext, modality: str) -> Tensor:
        assert ctx.outputs.features is not None
        return ctx.full(ctx.outputs.features[modality])

    def state_dict(self) -> dict[str, Any]:
        return {"prototypes": dict(self._prototypes), "seen": dict(self._seen)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._prototypes, self._seen = dict(state["prototypes"]), dict(state["seen"])


def entropy(log_p: Tensor) -> Tensor:
    """-sum_k p_k log p_k, [B], from log p [B, K]. A class of probability zero adds nothing, to the gradient either: the
    derivative of p log p by p has no bound there, that by log p is p (1 + log p).
    """
    return -(log_p.exp() * log_p.clamp(min=torch.finfo(log_p.dtype).min)).sum(dim=1)
