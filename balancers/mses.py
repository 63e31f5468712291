"""MSES: early stopping, one modality at a time."""

from collections.abc import Mapping
from math import isnan
from typing import Any, ClassVar, Literal

from pydantic import Field

from equipoise.balancers.balancer import Balancer, Family
from equipoise.balancers.context import StepContext
from equipoise.balancers.modulation import Modulation
from equipoise.balancers.summed import Summed
from equipoise.models.contract import MultimodalModel, Unimodal
from equipoise.models.task import Task


class MSES(Modulation, Summed):
    """Modality-specific early stopping (Fujimori, Endo, Kawai, Mochizuki, "Modality-Specific Learning Rate Control for
    Multimodal Classification", ACPR 2019).

        L = mean loss(z, y) + weight * sum_m mean loss(z_m, y)                     the losses of `summed`
        k_m = 0 once the validation loss of m alone has not improved for `patience` epochs, else 1

    Stopped means that not a bit of what m owns changes any more, for good: with `apply="update"` neither momentum nor weight
    decay goes on. `apply="gradient"` sets the gradient to zero, which stops plain SGD only. Epochs whose validation has no
    row with m do not count.
    """

    name = "mses"
    family: ClassVar[Family] = "gradient"
    accepts: ClassVar[tuple[Unimodal, ...]] = ("heads", "split", "coalition")

    class Options(Balancer.Options):
        """When a modality stops, the weight of its loss, and what is scaled."""

        patience: int = Field(10, ge=1, description="epochs without a lower validation loss, then a modality stops")
        weight: float = Field(1.0, ge=0, description="weight of each unimodal loss beside the fused one")
        apply: Literal["update", "gradient"] = "update"

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.best: dict[str, float] = {}
        self.stale: dict[str, int] = {}

    def check(self, model: MultimodalModel, task: Task) -> None:
        super().check(model, task)
        self.modalities = model.modalities

    def stopped(self, modality: str) -> bool:
        """Whether a modality learns no more."""
        return bool(self.stale.get(modality, 0) >= self.options.patience)

    def coefficients(self, ctx: StepContext) -> dict[str, float]:
        k = {m: 0.0 if self.stopped(m) else 1.0 for m in ctx.modalities}
        for m in k:
            ctx.report(f"mses_coefficient_{m}", k[m])
        return k

    def on_epoch(
        self, validation: Mapping[int, Mapping[str, float]], contributions: Mapping[str, float] | None
    ) -> None:
        for i, m in enumerate(self.modalities):
            loss = validation[1 << i]["loss"]
            if isnan(loss) or self.stopped(m):
                continue
            better = loss < self.best.get(m, float("inf"))
            self.stale[m] = 0 if better else self.stale.get(m, 0) + 1
            self.best[m] = min(loss, self.best.get(m, loss))

    def state_dict(self) -> dict[str, Any]:
        return {"best": dict(self.best), "stale": dict(self.stale)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        best, stale = dict(state["best"]), dict(state["stale"])
        self.best, self.stale = best, stale
