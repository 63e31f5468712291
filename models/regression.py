"""Regression: one or several numbers a sample, with what sentiment analysis measures of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor

from equipoise.models.errors import EquipoiseError, unknown
from equipoise.models.task import ALONE, Task

if TYPE_CHECKING:
    from torchmetrics import MetricCollection

RegressionLoss = Literal["l1", "l2"]
RegressionBenefit = Literal["tolerance", "sign"]


class Regression(Task):
    """Logits [B, T], target [B, T]; the prediction is center + scale * logit.

    The loss is |prediction - target| / scale (`loss="l1"`) or its square (`"l2"`), the mean over the T numbers. `center` and
    `scale` are the train mean and deviation of the target, so that a model starts at the mean whatever the units.
    `benefit="tolerance"`: 1 where every number is within `tolerance` (in the units of the target), else 0; `"sign"`: 1 where
    every number has the target's sign, 0 counting as positive.
    """

    name = "regression"
    headline = "mae"
    lower_is_better = True

    def __init__(
        self,
        num_targets: int = 1,
        loss: RegressionLoss = "l1",
        benefit: RegressionBenefit = "tolerance",
        tolerance: float | None = None,
        center: float | Sequence[float] = 0.0,
        scale: float | Sequence[float] = 1.0,
    ) -> None:
        if num_targets < 1:
            raise EquipoiseError(f"Regression needs at least 1 number to predict, found num_targets={num_targets}.")
        if loss not in get_args(RegressionLoss):
            raise unknown("loss of Regression", str(loss), get_args(RegressionLoss))
        if benefit not in get_args(RegressionBenefit):
            raise unknown("benefit of Regression", str(benefit), get_args(RegressionBenefit))
        if benefit == "tolerance" and (tolerance is None or not tolerance > 0):
            raise EquipoiseError(
                f"Regression(benefit='tolerance') needs a tolerance above 0, in the units of the target, found {tolerance}."
            )
        self.num_outputs = num_targets
        self.loss, self.kind = loss, benefit
        self.tolerance = float(tolerance) if benefit == "tolerance" and tolerance is not None else None
        self.center = torch.as_tensor(center, dtype=torch.float64).expand(num_targets).clone()
        self.scale = torch.as_tensor(scale, dtype=torch.float64).expand(num_targets).clone()
        if not bool((self.scale > 0).all()):
            raise EquipoiseError(f"Regression needs a scale above 0 for every number, found {self.scale.tolist()}.")

    @property
    def benefit_name(self) -> str:
        return f"{self.name}/{self.kind}" + ("" if self.tolerance is None else f"={self.tolerance!r}")

    def losses(self, logits: Tensor, target: Tensor) -> Tensor:
        # In float64 up to here: targets far from 0 would lose what they differ by.
        wanted = (target.double() - self.center.to(target.device)) / self.scale.to(target.device)
        off = logits - wanted.to(logits.dtype)
        return (off.abs() if self.loss == "l1" else off.square()).mean(dim=1)

    def benefit(self, logits: Tensor, target: Tensor) -> Tensor:
        predicted = self.predict(logits)
        if self.tolerance is None:
            right = ((predicted >= 0) == (target >= 0)) & ~predicted.isnan()
        else:
            right = (predicted - target).abs() <= self.tolerance
        return right.all(dim=1).to(torch.float32)

    def predict(self, logits: Tensor) -> Tensor:
        """The numbers, in the units of the target: float64[B, T]."""
        return self.center.to(logits.device) + self.scale.to(logits.device) * logits.double()

    def metrics(self, thorough: bool = False) -> MetricCollection:
        """`mae`, `pearson` (the mean over the numbers), and `within`, the share within the tolerance; for benefit="sign"
        instead of it what sentiment is judged by: `acc2` and `f1` (weighted) of >= 0 against < 0, `acc2_nonneutral` and
        `f1_nonneutral` of > 0 against < 0 without the rows whose target is 0, `acc7`, the share whose nearest integer in
        -3 .. 3 is the target's.
        """
        from torchmetrics import MetricCollection

        from equipoise.models.metrics import Agreement, MeanAbsoluteDifference, Pearson, SignF1, Within

        how = {"center": self.center, "scale": self.scale, **ALONE}
        found: dict[str, Any] = {"mae": MeanAbsoluteDifference(**how), "pearson": Pearson(self.num_outputs, **how)}
        if self.tolerance is not None:
            found["within"] = Within(tolerance=self.tolerance, **how)
        else:
            found |= {
                "acc2": Agreement("sign", **how),
                "f1": SignF1(**how),
                "acc2_nonneutral": Agreement("nonneutral", **how),
                "f1_nonneutral": SignF1(nonneutral=True, **how),
                "acc7": Agreement("seven", **how),
            }
        return MetricCollection(found, compute_groups=False)

    def check(self, target: Tensor) -> None:
        if not target.is_floating_point() or target.ndim != 2 or target.shape[1] != self.num_outputs:
            raise EquipoiseError(
                f"Regression targets must be floats of shape [B, {self.num_outputs}], found {target.dtype} "
                f"{tuple(target.shape)}."
            )
        bad = ~target.isfinite()
        if bool(bad.any()):
            row = int(bad.nonzero()[0][0])
            raise EquipoiseError(
                f"The target in row {row} of the batch is not a finite number: mend it, or drop the row."
            )
