"""Encoders compiled by torch.compile, in place, on the road of one summed objective."""

from collections.abc import Mapping
from typing import Any

from equipoise.balancers.balancer import Balancer
from equipoise.models.contract import MultimodalModel
from equipoise.models.errors import EquipoiseError


def check_compile(balancer: Balancer) -> None:
    """Raise where a balancer goes backward several times through one forward pass: compiled code reuses the memory of what
    it saved after the first (torch's donated buffers), and torch refuses the second.
    """
    if balancer.separate:
        raise EquipoiseError(
            f"Balancer {balancer.name!r} goes backward through the encoders once an objective, and compiled encoders allow a "
            "single time: leave compile out, or choose a balancer of one summed objective."
        )


def compile_encoders(model: MultimodalModel, how: Mapping[str, Any]) -> None:
    """`module.compile(**how)` of each encoder with parameters: names of parameters and the state_dict stay as they are.

    Rows without a modality never reach its encoder, so that its number of rows changes from step to step: shapes are dynamic
    unless `how` says otherwise.
    """
    modules = [module for module in model.encoder_modules() if next(module.parameters(), None) is not None]
    if not modules:
        raise EquipoiseError(
            f"{type(model).__name__} has no encoders to compile: leave compile out, or let its encoder_modules() return them."
        )
    for module in modules:
        module.compile(**{"dynamic": True, **how})
