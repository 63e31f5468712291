"""Balancers: what each method does in a training step, and the step itself. Torch only, no Ray.

>>> from equipoise import balancers
>>> {"joint", "ogm"} <= set(balancers.names())
True
>>> step = balancers.BalancedStep(model, task, balancers.get("ogm", alpha=0.3), optimizer)   # doctest: +SKIP
>>> result = step(batch)                                                                     # doctest: +SKIP
"""

from importlib import import_module
from pathlib import Path

from equipoise.balancers.balancer import Balancer, get, names
from equipoise.balancers.conflicts import remove_conflicts
from equipoise.balancers.context import StepContext
from equipoise.balancers.gradients import Gradients
from equipoise.balancers.min_norm import min_norm_weights
from equipoise.balancers.monitor import Monitor
from equipoise.balancers.step import BalancedStep, StepResult

# A method is a file here: importing it registers it, so a new one touches no other file.
for _file in sorted(Path(__file__).parent.glob("[a-z]*.py")):
    import_module(f"equipoise.balancers.{_file.stem}")

__all__ = [
    "BalancedStep",
    "Balancer",
    "Gradients",
    "Monitor",
    "StepContext",
    "StepResult",
    "get",
    "min_norm_weights",
    "names",
    "remove_conflicts",
]
