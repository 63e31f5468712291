"""Equipoise: measure what each modality contributes to every sample, and balance the training.

>>> import equipoise
>>> run = equipoise.fit("examples/digits.yaml", balancer="joint", resampler="sample")   # doctest: +SKIP
>>> run.values()                                                                        # doctest: +SKIP

The balanced step (`equipoise.balancers`), the valuation (`equipoise.valuation`) and the models (`equipoise.models`)
need torch only; `equipoise.fit` and what runs on Ray is loaded when it is first asked for.
"""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

ROOMS = ("balancers", "valuation", "models", "datasets", "pipelines", "tune_spaces")
_broken = [room for room in ROOMS if (Path(__file__).parent / room).is_file()]
if _broken:
    raise ImportError(
        f"equipoise/{_broken[0]} is a plain file, but it must be a symbolic link to ../{_broken[0]}: this checkout lost "
        "its links. Clone again with `git clone -c core.symlinks=true`, or build and install a wheel, which needs none."
    )

_LAZY = {
    "fit": "equipoise.pipelines.fit",
    "Run": "equipoise.pipelines.run",
    "prepare": "equipoise.datasets.prepare",
    "load_exported": "equipoise.pipelines.trained",
    "EquipoiseError": "equipoise.models.errors",
}

if TYPE_CHECKING:
    from equipoise.datasets.prepare import prepare as prepare
    from equipoise.models.errors import EquipoiseError as EquipoiseError
    from equipoise.pipelines.fit import fit as fit
    from equipoise.pipelines.run import Run as Run
    from equipoise.pipelines.trained import load_exported as load_exported

__all__ = ["EquipoiseError", "Run", "__version__", "fit", "load_exported", "prepare"]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    if name in ROOMS:
        return import_module(f"equipoise.{name}")
    raise AttributeError(f"module 'equipoise' has no attribute {name!r}")
