"""Metrics of a regression as sums over samples: their states add up over chunks and workers, whatever their sizes.

torchmetrics' own Pearson correlation cannot be merged from chunks, and it has none of sentiment analysis's.
"""

from typing import Any, Literal

import torch
from torch import Tensor
from torchmetrics import Metric


class _Sums(Metric):
    """`totals` float64: whatever a subclass adds up of predictions center + scale * logit and targets, both [n, T]."""

    full_state_update = False
    totals: Tensor

    def __init__(self, size: tuple[int, ...], center: Any = 0.0, scale: Any = 1.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.center, self.scale = torch.as_tensor(center), torch.as_tensor(scale)
        self.add_state("totals", torch.zeros(size, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, logits: Tensor, target: Tensor) -> None:
        self.totals += self.sums(self.predicted(logits), target.double())

    def predicted(self, logits: Tensor) -> Tensor:
        return self.center.to(logits.device).double() + self.scale.to(logits.device).double() * logits.double()

    def sums(self, predicted: Tensor, target: Tensor) -> Tensor:
        raise NotImplementedError


class MeanAbsoluteDifference(_Sums):
    """Mean of |prediction - target|, in the units of the target."""

    higher_is_better = False

    def __init__(self, **kwargs: Any) -> None:
        super().__init__((2,), **kwargs)

    def sums(self, predicted: Tensor, target: Tensor) -> Tensor:
        return torch.stack([(predicted - target).abs().sum(), predicted.new_tensor(target.numel())])

    def compute(self) -> Tensor:
        return self.totals[0] / self.totals[1]


class Within(_Sums):
    """The share of samples of which every number is within the tolerance."""

    higher_is_better = True

    def __init__(self, tolerance: float, **kwargs: Any) -> None:
        super().__init__((2,), **kwargs)
        self.tolerance = tolerance

    def sums(self, predicted: Tensor, target: Tensor) -> Tensor:
        right = ((predicted - target).abs() <= self.tolerance).all(dim=1)
        return torch.stack([right.double().sum(), predicted.new_tensor(len(target))])

    def compute(self) -> Tensor:
        return self.totals[0] / self.totals[1]


class Pearson(_Sums):
    """Pearson's correlation of predictions and targets, the mean over the T numbers; NaN where either never varies.

    `totals` [6, T]: the number of samples, both means, and the sums of squares and products about them. Sums about any other
    point lose what far-off numbers differ by; those about the means join by Chan, Golub, LeVeque (1979).
    """

    higher_is_better = True

    def __init__(self, num_targets: int, **kwargs: Any) -> None:
        super().__init__((6, num_targets), **kwargs)
        self.add_state("totals", torch.zeros((6, num_targets), dtype=torch.float64), dist_reduce_fx=_joined)

    def update(self, logits: Tensor, target: Tensor) -> None:
        if len(target):
            self.totals = _joined(torch.stack([self.totals, self.sums(self.predicted(logits), target.double())]))

    def sums(self, predicted: Tensor, target: Tensor) -> Tensor:
        x, y = predicted.mean(dim=0), target.mean(dim=0)
        dx, dy = predicted - x, target - y
        count = torch.full_like(x, float(len(predicted)))
        return torch.stack([count, x, y, (dx * dx).sum(0), (dy * dy).sum(0), (dx * dy).sum(0)])

    def compute(self) -> Tensor:
        n, x, y, xx, yy, xy = self.totals
        # A spread as small as the rounding of the mean is none.
        none = (xx <= n * (1e-14 * x).square()) | (yy <= n * (1e-14 * y).square())
        correlation = xy / (xx.sqrt() * yy.sqrt())
        return correlation.masked_fill(none, torch.nan).clamp(-1, 1).mean()


def _joined(parts: Tensor) -> Tensor:
    """The `totals` of `Pearson` of several parts [k, 6, T] together."""
    n, x, y, xx, yy, xy = parts.unbind(dim=1)
    count = n.sum(dim=0)
    mean_x, mean_y = ((n * mean).sum(dim=0) / count.clamp(min=1) for mean in (x, y))
    dx, dy = x - mean_x, y - mean_y
    between = [(n * dx * dx).sum(0), (n * dy * dy).sum(0), (n * dx * dy).sum(0)]
    return torch.stack([count, mean_x, mean_y, *(a.sum(0) + b for a, b in zip((xx, yy, xy), between, strict=True))])


class Agreement(_Sums):
    """The share of numbers on which prediction and target agree: Acc-2 ("sign": both >= 0 or both < 0; "nonneutral": both
    > 0 or neither, targets of 0 left out) or Acc-7 ("seven": the same integer after clipping to [-3, 3] and rounding). What is
    not a number agrees with nothing.
    """

    higher_is_better = True

    def __init__(self, of: Literal["sign", "nonneutral", "seven"], **kwargs: Any) -> None:
        super().__init__((2,), **kwargs)
        self.of = of

    def sums(self, predicted: Tensor, target: Tensor) -> Tensor:
        counted = target != 0 if self.of == "nonneutral" else torch.ones_like(target, dtype=torch.bool)
        if self.of == "seven":
            same = predicted.clamp(-3, 3).round() == target.clamp(-3, 3).round()
        elif self.of == "sign":
            same = (predicted >= 0) == (target >= 0)
        else:
            same = (predicted > 0) == (target > 0)
        same &= ~predicted.isnan()
        return torch.stack([(same & counted).double().sum(), counted.double().sum()])

    def compute(self) -> Tensor:
        return self.totals[0] / self.totals[1]


class SignF1(_Sums):
    """F1 of the two signs, weighted by how often a target has each: >= 0 against < 0, or, `nonneutral`, > 0 against < 0
    without the targets of 0. A prediction that is not a number has neither sign.
    """

    higher_is_better = True

    def __init__(self, nonneutral: bool = False, **kwargs: Any) -> None:
        super().__init__((3, 2), **kwargs)
        self.nonneutral = nonneutral

    def sums(self, predicted: Tensor, target: Tensor) -> Tensor:
        if self.nonneutral:
            predicted, target = predicted[target != 0], target[target != 0]
            p, t = predicted > 0, target > 0
        else:
            predicted, target = predicted.flatten(), target.flatten()
            p, t = predicted >= 0, target >= 0
        sign = torch.where(predicted.isnan(), 2, p.long())
        cells = [((sign == a) & (t == b)).double().sum() for a in (0, 1, 2) for b in (False, True)]
        return torch.stack(cells).reshape(3, 2)

    def compute(self) -> Tensor:
        """`totals[a, b]`: predicted a (2: no number), target b."""
        hits, support, claimed = self.totals[:2].diagonal(), self.totals.sum(dim=0), self.totals[:2].sum(dim=1)
        f1 = torch.where(support + claimed > 0, 2 * hits / (support + claimed).clamp(min=1), 0.0)
        return (f1 * support).sum() / support.sum()
