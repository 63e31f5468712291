"""BalGrad: gradient reweighting and projection."""

import math
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from equipoise.balancers.balancer import Balancer
from equipoise.balancers.context import StepContext
from equipoise.balancers.gradients import Gradients
from equipoise.models.batch import Batch


class BalGrad(Balancer):
    """Each modality learns from the label and from the others, and the fused loss does not undo it (Kwon et al., "See-Saw
    Modality Balance: See Gradient, and Sew Impaired Vision-Language Balance to Mitigate Dominant Modality Bias", NAACL 2025).

        L_m = mean loss(z_m, y) over rows with m;  K_m = mean KL(mean of the other present modalities' p, detached || p_m)
        w_m = L_m / sum of L;  g_kl = grad sum_m w_m K_m;  g_T = grad of the fused loss
        g_T <- g_T - min(<g_T, g_kl>, 0) / |g_kl|^2 g_kl   over the parameters that both reach, as one vector
        gradient = g_T + sum_m grad L_m + g_kl

    What is known of the paper is its structure; the formula of the weights and the direction of the KL divergence are our
    reading (docs/methods/balgrad.md). More than two modalities and rows that lack some are our extension. Multi-label: binary
    cross-entropy and Bernoulli KL, means over labels.

    `weights`, of every step: "loss" (above), "norm" |grad L_m| / sum, "inverse" to |grad K_m|, "softmax" of L / tau, "equal".
    Without `reweight` every weight is 1 / M; without `project` the fused gradient stays as it is.
    """

    name = "balgrad"
    family = "gradient"
    losses = "fused, unimodal, KL"
    separate = True
    accepts = ("heads",)
    tasks = ("classification", "multilabel")
    weights_from_statistics = True

    class Options(Balancer.Options):
        """How the KL losses are weighed, and whether the fused gradient is projected."""

        reweight: bool = Field(True, description="weigh each KL loss; without it, every weight is 1 / M")
        project: bool = Field(True, description="project the fused gradient where it opposes the KL gradient")
        weights: Literal["loss", "equal", "norm", "inverse", "softmax"] = Field(
            "loss", description="what a KL loss is weighed by"
        )
        tau: float = Field(1.0, gt=0, description="temperature of softmax weights")
        blockwise: bool = Field(False, description="test and project each modality's parameters by themselves")

    #: Weights that need the norm of each modality's own gradient, so that its losses must be kept apart.
    BY_NORM: ClassVar[tuple[str, ...]] = ("norm", "inverse")

    @property
    def by_norm(self) -> bool:
        return self.options.reweight and self.options.weights in self.BY_NORM

    def backward_passes(self, modalities: int) -> int:
        if modalities == 1:
            return 2
        return 1 + 2 * modalities if self.by_norm else 3

    def rows(self, batch: Batch, ctx: StepContext) -> dict[str, Tensor]:
        present = batch["present"]
        taught = present & (present.sum(dim=1, keepdim=True) > 1)
        return {f"kl/{m}": taught[:, i] for i, m in enumerate(ctx.modalities)}

    def statistics(self, ctx: StepContext) -> dict[str, Tensor]:
        return {
            m: torch.where(ctx.has(m), ctx.task.losses(ctx.unimodal_logits(m), ctx.target).double(), 0.0).sum()
            for m in ctx.modalities
        }

    def objectives(self, ctx: StepContext) -> dict[str, Tensor]:
        fused = {"fused": ctx.mean(ctx.task.losses(ctx.outputs.logits, ctx.target))}
        uni = {
            m: ctx.mean(ctx.task.losses(ctx.unimodal_logits(m), ctx.target), m) for m in ctx.modalities if ctx.counts[m]
        }
        kl = self._divergences(ctx)
        for m in uni:
            ctx.report(f"balgrad_loss_{m}", float(ctx.statistics[m]) / ctx.counts[m])
        if self.by_norm:
            return fused | uni | {f"kl/{m}": value for m, value in kl.items()}
        w = self._weights(ctx)
        for m in kl:
            ctx.report(f"balgrad_weight_{m}", w[m])
        added = {"unimodal": sum(uni.values(), torch.zeros_like(fused["fused"]))} if uni else {}
        return fused | added | ({"kl": torch.stack([w[m] * kl[m] for m in kl]).sum()} if kl else {})

    def _divergences(self, ctx: StepContext) -> dict[str, Tensor]:
        """K_m of every modality that some row has beside another."""
        logits = {m: ctx.unimodal_logits(m) for m in ctx.modalities}
        single = ctx.task.name == "classification"
        p = {m: (z.softmax(dim=1) if single else z.sigmoid()).detach() for m, z in logits.items()}
        found = {}
        for m in ctx.modalities:
            others = [o for o in ctx.modalities if o != m]
            if not others or not ctx.counts[f"kl/{m}"]:
                continue
            has = torch.stack([ctx.has(o) for o in others])[:, :, None]
            # where, not a product: what an absent modality's logits are means nothing.
            total = torch.where(has, torch.stack([p[o] for o in others]), 0.0).sum(dim=0)
            target = total / has.sum(dim=0).clamp(min=1)
            found[m] = ctx.mean((categorical_kl if single else bernoulli_kl)(target, logits[m]), f"kl/{m}")
        return found

    def _weights(self, ctx: StepContext) -> dict[str, float]:
        """w_m from the global batch's unimodal losses; equal where all of them are 0."""
        level = {m: float(ctx.statistics[m]) / ctx.counts[m] for m in ctx.modalities if ctx.counts[m]}
        kind = self.options.weights if self.options.reweight else "equal"
        if kind == "softmax":
            top = max(level.values(), default=0.0)
            level = {m: math.exp((v - top) / self.options.tau) for m, v in level.items()}
        elif kind == "equal":
            level = dict.fromkeys(level, 1.0)
        return _shares(level)

    def combine(self, gradients: Gradients, ctx: StepContext) -> Tensor:
        kl = [i for i, n in enumerate(gradients.names) if (n.startswith("kl/") if self.by_norm else n == "kl")]
        combined = gradients.flat.sum(dim=0)
        if not kl:
            return combined
        # g_T and g_kl in terms of the k gradients: products and projection then need no further vector of all parameters.
        k = len(gradients.names)
        fused, aim = gradients.flat.new_zeros(2, k, dtype=torch.float64)
        fused[0], aim[kl] = 1.0, 1.0
        if self.by_norm:
            for m, w in self._norm_weights(gradients).items():
                ctx.report(f"balgrad_weight_{m}", w)
                aim[gradients.names.index(f"kl/{m}")] = w
            weights = torch.ones_like(aim)
            weights[kl] = aim[kl]
            combined = weights.to(combined.dtype) @ gradients.flat
        total = torch.zeros(k, k, dtype=torch.float64, device=combined.device)
        for spans in self._blocks(gradients, kl):
            gram = gradients.products(spans)
            total += gram
            product, size = float(fused @ gram @ aim), float(aim @ gram @ aim)
            if self.options.project and product < 0 and size > 0:
                for span in spans:
                    combined[span] -= (product / size * aim).to(combined.dtype) @ gradients.flat[:, span]
        product, sizes = float(fused @ total @ aim), float((fused @ total @ fused) * (aim @ total @ aim))
        ctx.report("balgrad_product", product)
        ctx.report("balgrad_cosine", product / math.sqrt(sizes) if sizes > 0 else 0.0)
        ctx.report("balgrad_conflict", float(product < 0))
        return combined

    def _blocks(self, gradients: Gradients, kl: list[int]) -> list[list[slice]]:
        """The columns of each test: those that the fused loss and a KL loss reach, together or owner by owner."""
        both = [span for span, reached in gradients.regions() if reached[0] and bool(reached[kl].any())]
        if not self.options.blockwise:
            return [both]
        blocks = []
        for owner in gradients.layout.owners.values():
            cut = [slice(max(s.start, owner.start), min(s.stop, owner.stop)) for s in both]
            blocks.append([s for s in cut if s.start < s.stop])
        return [b for b in blocks if b]

    def _norm_weights(self, gradients: Gradients) -> dict[str, float]:
        """By the norms of each modality's gradients over what its loss and the fused one reach: the own heads do not count."""
        found = {}
        for n in gradients.names:
            if n.startswith("kl/"):
                m = n.removeprefix("kl/")
                row = m if self.options.weights == "norm" else n
                at = gradients.names.index(row)
                found[m] = math.sqrt(float(gradients.products(gradients.common("fused", row))[at, at]))
        if self.options.weights == "norm":
            return _shares(found)
        # Inverse to the norm: with two modalities, w_a = |g_b| / (|g_a| + |g_b|). A norm of zero would take all.
        if min(found.values(), default=1.0) == 0.0:
            return _shares({m: float(v == 0.0) for m, v in found.items()})
        return _shares({m: 1.0 / v for m, v in found.items()})


def categorical_kl(target: Tensor, logits: Tensor) -> Tensor:
    """KL(target || softmax(logits)) of each row, [B], from probabilities and logits [B, K]."""
    return F.kl_div(logits.log_softmax(dim=1), target, reduction="none").sum(dim=1)


def bernoulli_kl(target: Tensor, logits: Tensor) -> Tensor:
    """KL of each label's Bernoulli, the mean over labels, [B], from probabilities and logits [B, L]."""
    own = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    entropy = -(torch.xlogy(target, target) + torch.xlogy(1 - target, 1 - target))
    return (own - entropy).mean(dim=1)


def _shares(level: dict[str, float]) -> dict[str, float]:
    """Each over their sum; equal where that is 0."""
    total = sum(level.values())
    return {m: v / total if total > 0 else 1.0 / len(level) for m, v in level.items()}
