"""Loss scaling for float16: gradients too small for it are computed from a loss that is larger by a factor."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.amp import GradScaler
from torch.optim import Optimizer

from equipoise.balancers.finite import largest
from equipoise.balancers.gradients import Gradients
from equipoise.models.errors import EquipoiseError


class Scaling:
    """A `torch.amp.GradScaler` in the order of a step: reduced gradients are divided by the scale before a method sees them.

    A scale that is too large makes gradients infinite somewhere on the way back. The check is on reduced gradients, so
    all workers find the same; the step is then skipped and the scale halved.
    """

    def __init__(self, scaler: GradScaler, optimizer: Optimizer, parameters: tuple[Tensor, ...]) -> None:
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        missing = sum(id(p) not in held for p in parameters)
        if missing:
            raise EquipoiseError(
                f"{missing} of the model's {len(parameters)} parameter tensors are not in the optimiser, and a gradient scaler "
                "divides only those that are: give the optimiser all of them, or freeze the others (requires_grad=False)."
            )
        self.scaler = scaler
        self.optimizer = optimizer
        self.parameters = parameters
        self._looked = False

    def scale(self, loss: Tensor) -> Tensor:
        scaled: Tensor = self.scaler.scale(loss)
        return scaled

    @property
    def value(self) -> float:
        return float(self.scaler.get_scale())

    def unscale(self, gradients: Gradients | None) -> bool:
        """Divide the reduced gradients by the scale: those in `p.grad`, or all rows of a buffer (no `p.grad` is left then).
        False where one is not finite.
        """
        if self._looked:
            self.scaler.update(self.value)  # the last step was refused after this: its scale is as good as before
        if gradients is not None:
            # The scaler looks at p.grad alone; a sum is finite only where every summand is.
            gradients.write(gradients.flat.sum(dim=0))
        found = [p.grad for p in self.parameters if p.grad is not None]
        # Without any gradient (a batch without rows) there is nothing to look at, which the scaler would refuse.
        self._looked = bool(found)
        if self._looked:
            self.scaler.unscale_(self.optimizer)
        finite = math.isfinite(largest(found))
        if gradients is not None:
            self.optimizer.zero_grad(set_to_none=True)
            gradients.flat.mul_(1.0 / self.value)
        return finite

    def step(self) -> None:
        """The optimiser's step, and one more towards a larger scale."""
        if not self._looked:
            self.optimizer.step()
            return
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self._looked = False

    def skip(self) -> bool:
        """Halve the scale, and leave parameters and optimiser as they are. False at a scale of 1: then it is not the scale
        that makes a gradient infinite.
        """
        if self.value <= 1:
            return False
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.update()
        self._looked = False
        return True


def default_scaler(device: torch.device, autocast: torch.dtype | None) -> GradScaler | None:
    """The scaler of a step that was given none: float16 needs one, bfloat16 has the range of float32."""
    return GradScaler(device.type) if autocast == torch.float16 else None
