"""Scaling what a modality owns: its gradient, or the update that the optimiser made of it."""

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor

from equipoise.balancers.balancer import Balancer, Family
from equipoise.balancers.context import StepContext
from equipoise.models.contract import MultimodalModel, check_ownership
from equipoise.models.errors import EquipoiseError
from equipoise.models.task import Task


class Modulation(Balancer):
    """A method whose rule is one factor a modality and step.

    A subclass says `coefficients(ctx)` and has an option `apply`: "gradient" scales what the optimiser reads, "update" what
    it made of that. They differ wherever an optimiser does more than subtract the gradient times a learning rate: Adam
    divides a factor that changes slowly out again, momentum goes on with the gradients of earlier steps, and weight decay
    shrinks what has no gradient at all.
    """

    family: ClassVar[Family] = "gradient"

    @property
    def scales_owned(self) -> bool:
        """Whether the rule is carried out on what a modality owns, so that each must own something for it to do anything."""
        return True

    def check(self, model: MultimodalModel, task: Task) -> None:
        super().check(model, task)
        if self.scales_owned and not any(found for m, found in check_ownership(model).items() if m in model.modalities):
            raise EquipoiseError(
                f"Balancer {self.name!r} scales what a modality owns, and in this {type(model).__name__} no modality owns a "
                "trainable parameter, so that nothing would be scaled: use a model with an encoder a modality, or unfreeze them."
            )

    def coefficients(self, ctx: StepContext) -> dict[str, float]:
        """{modality: the factor of what it owns}; a modality that is not named is left as it is."""
        raise NotImplementedError

    def modulate(self, gradients: Mapping[str, list[Tensor]], ctx: StepContext) -> None:
        self._k = self.coefficients(ctx)
        if self.options.apply == "gradient":
            self._scale(gradients)

    @property
    def changes_update(self) -> bool:
        return bool(self.options.apply == "update")

    def after_step(self, update: Mapping[str, list[Tensor]], ctx: StepContext) -> None:
        self._scale(update)

    def _scale(self, tensors: Mapping[str, list[Tensor]]) -> None:
        for m, k in self._k.items():
            if k != 1.0:
                for t in tensors[m]:
                    t.mul_(k)
