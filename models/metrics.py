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
        predicted = self.center.to(logits.device).double() + self.scale.to(logits.device).double() * logits.double()
        self.totals += self.sums(predicted, target.double())

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

    Sums of products about the first sample's values would differ between chunks, so both are taken about `center`.
    """

    higher_is_better = True

    def __init__(self, num_targets: int, **kwargs: Any) -> None:
        super().__init__((6, num_targets), **kwargs)

    def sums(self, predicted: Tensor, target: Tensor) -> Tensor:
        x = (predicted - self.center.to(predicted)) / self.scale.to(predicted)
        y = (target - self.center.to(target)) / self.scale.to(target)
        count = torch.full_like(x[:1].sum(dim=0), float(len(x)))
        return torch.stack([count, x.sum(0), y.sum(0), (x * x).sum(0), (y * y).sum(0), (x * y).sum(0)])

    def compute(self) -> Tensor:
        n, x, y, xx, yy, xy = self.totals
        # Below the rounding of the sums a spread is none.
        spread_x, spread_y = xx - x * x / n, yy - y * y / n
        none = (spread_x <= 1e-12 * xx) | (spread_y <= 1e-12 * yy)
        correlation = (xy - x * y / n) / (spread_x * spread_y).clamp(min=0).sqrt()
        return correlation.masked_fill(none, torch.nan).clamp(-1, 1).mean()


class Agreement(_Sums):
    """The share of numbers on which prediction and target agree: Acc-2 ("sign": both >= 0 or both < 0; "nonneutral": both
    > 0 or neither, targets of 0 left out) or Acc-7 ("seven": the same integer after clipping to [-3, 3] and rounding).
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
        return torch.stack([(same & counted).double().sum(), counted.double().sum()])

    def compute(self) -> Tensor:
        return self.totals[0] / self.totals[1]


class SignF1(_Sums):
    """F1 of the two signs, weighted by how often a target has each: >= 0 against < 0, or, `nonneutral`, > 0 against < 0
    without the targets of 0.
    """

    higher_is_better = True

    def __init__(self, nonneutral: bool = False, **kwargs: Any) -> None:
        super().__init__((2, 2), **kwargs)
        self.nonneutral = nonneutral

    def sums(self, predicted: Tensor, target: Tensor) -> Tensor:
        if self.nonneutral:
            predicted, target = predicted[target != 0], target[target != 0]
            p, t = predicted > 0, target > 0
        else:
            p, t = (predicted >= 0).flatten(), (target >= 0).flatten()
        cells = [((p == a) & (t == b)).double().sum() for a in (False, True) for b in (False, True)]
        return torch.stack(cells).reshape(2, 2)

    def compute(self) -> Tensor:
        """`totals[a, b]`: predicted a, target b."""
        hits, support, claimed = self.totals.diagonal(), self.totals.sum(dim=0), self.totals.sum(dim=1)
        f1 = torch.where(support + claimed > 0, 2 * hits / (support + claimed).clamp(min=1), 0.0)
        return (f1 * support).sum() / support.sum()
