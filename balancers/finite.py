"""What is not finite is refused, by name, on all workers alike: everything here is looked at after it was reduced."""

import math
from collections.abc import Iterable, Mapping

from torch import Tensor, nn

from equipoise.models.errors import EquipoiseError

REFUSED = "the step was refused on all workers and no parameter changed."
CAUSES = "Look for a derivative without a bound (sqrt at 0, log of 0), or lower the learning rate."


def largest(tensors: Iterable[Tensor]) -> float:
    """The largest magnitude in some tensors; NaN where one holds a NaN. No copy of them is made, and nothing overflows."""
    return float(nn.utils.get_total_norm(list(tensors), math.inf))


def check_losses(losses: Mapping[str, float], when: str) -> None:
    """Raise where a loss is not finite; `when`: "step 3 of epoch 0"."""
    for name, value in losses.items():
        if not math.isfinite(value):
            raise EquipoiseError(
                f"The objective {name!r} is {value} in {when}: {REFUSED} Look for NaN or huge values in the inputs, or lower the "
                "learning rate."
            )


def check_gradient(owned: Mapping[str, list[Tensor]], when: str) -> None:
    """Raise where a gradient {owner: [tensors]} is not finite."""
    if not math.isfinite(largest(g for found in owned.values() for g in found)):
        bad = " and ".join(repr(owner) for owner, found in owned.items() if not math.isfinite(largest(found)))
        raise EquipoiseError(
            f"The gradient of {bad} is not finite in {when}, though the losses are: {REFUSED} {CAUSES}"
        )


def check_norms(norms: Mapping[str, float], when: str) -> None:
    """Raise where the gradient of an objective has a norm {name: |g|} that is not finite."""
    for name, norm in norms.items():
        if not math.isfinite(norm):
            raise EquipoiseError(
                f"The gradient of the objective {name!r} is not finite in {when}, though its loss is: {REFUSED} {CAUSES}"
            )
