"""What is not finite is refused, by name, on all workers alike: everything here is looked at after it was reduced."""

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
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


def check_objectives(flat: Tensor, names: Sequence[str], when: str) -> None:
    """Raise where the gradient [P] of an objective, a row of `flat` [k, P], is not finite."""
    norms = torch.linalg.vector_norm(flat, dim=1).tolist()
    for name, norm, gradient in zip(names, norms, flat, strict=True):
        # A norm may overflow where no element does; the elements one by one take longer.
        if not math.isfinite(norm) and not bool(gradient.isfinite().all()):
            raise EquipoiseError(
                f"The gradient of the objective {name!r} is not finite in {when}, though its loss is: {REFUSED} {CAUSES}"
            )
