"""MSLR: a learning rate a modality, raised while the modality alone improves."""

from collections.abc import Mapping
from math import isfinite
from typing import Annotated, Any, Literal

from pydantic import Field
from torch import Tensor

from equipoise.balancers.balancer import Balancer
from equipoise.balancers.context import StepContext
from equipoise.balancers.modulation import Modulation
from equipoise.models.contract import MultimodalModel
from equipoise.models.errors import unknown
from equipoise.models.task import Task


class MSLR(Modulation):
    """Modality-specific learning rates (Yao and Mihalcea, "Modality-specific Learning Rates for Effective Multimodal
    Additive Late-fusion", Findings of ACL 2022; the rule is the one that AGM's authors compare with, see the card).

        k_m = initial_m * v_m / (mean of the `memory` values of v_m before)       once there are so many; before, initial_m

    v_m is the task's headline on validation with modality m alone; where lower is better, the ratio is turned over. What m
    owns moves k_m times as far. A validation without rows of m leaves k_m as it was; a ratio of or by zero counts as 1.
    """

    name = "mslr"
    tasks = ("classification", "multilabel", "regression", "segmentation")

    class Options(Balancer.Options):
        """Each modality's rate to begin with, and how it follows validation."""

        initial: dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]] = Field(
            {}, description="factor of a modality's learning rate to begin with, 1 where none is named"
        )
        memory: int = Field(5, ge=1, description="epochs that the newest validation is compared with")
        limit: float = Field(10.0, ge=1, description="the ratio stays between 1 / limit and limit")
        apply: Literal["update", "gradient"] = "update"

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.history: dict[str, list[float]] = {}

    def check(self, model: MultimodalModel, task: Task) -> None:
        super().check(model, task)
        for m in self.options.initial:
            if m not in model.modalities:
                raise unknown("modality in option 'initial' of balancer 'mslr':", m, model.modalities)
        self.modalities, self.headline, self.lower_is_better = model.modalities, task.headline, task.lower_is_better

    def objectives(self, ctx: StepContext) -> dict[str, Tensor]:
        return {"fused": ctx.mean(ctx.task.losses(ctx.outputs.logits, ctx.target))}

    def coefficients(self, ctx: StepContext) -> dict[str, float]:
        k = {m: self.options.initial.get(m, 1.0) * self._ratio(self.history.get(m, [])) for m in ctx.modalities}
        for m in k:
            ctx.report(f"mslr_coefficient_{m}", k[m])
        return k

    def _ratio(self, values: list[float]) -> float:
        *before, newest = values or [0.0]
        if len(before) < self.options.memory or newest <= 0 or sum(before) <= 0:
            return 1.0
        ratio = newest * len(before) / sum(before)
        limit: float = self.options.limit
        return min(max(1 / ratio if self.lower_is_better else ratio, 1 / limit), limit)

    def on_epoch(
        self, validation: Mapping[int, Mapping[str, float]], contributions: Mapping[str, float] | None
    ) -> None:
        for i, m in enumerate(self.modalities):
            value = validation[1 << i].get(self.headline, float("nan"))
            if isfinite(value):
                self.history[m] = [*self.history.get(m, []), value][-self.options.memory - 1 :]

    def state_dict(self) -> dict[str, Any]:
        return {"history": {m: list(values) for m, values in self.history.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.history = {m: list(values) for m, values in state["history"].items()}
