"""Data sets known by name. Each is one file here with a function `load(**options) -> Source`.

A hyphen in a name is an underscore in its file's.
"""

import inspect
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import import_module
from types import ModuleType
from typing import Any

from equipoise.datasets.cells import Cells
from equipoise.datasets.task_spec import TaskSpec
from equipoise.models.errors import unknown
from equipoise.models.modality import Modality

_NAMES = (
    "digits",
    "watch",
    "mfeat",
    "htad",
    "easy-vqa",
    "emoji",
    "tuxpaint",
    "digit-attributes",
    "diabetes",
    "volumes",
)


@dataclass(frozen=True)
class Source:
    """Rows to prepare, and what they are.

    A row of `rows` has `source_id`, `target` (a label, or its index in `labels`), `split` where the split is fixed,
    `group` where rows belong together (`grouped`), and a value or None a modality, under its column's name. `labels`
    None: inferred from the train rows. `task` None: single-label classification. `cells`: how its cells are read.
    """

    name: str
    modalities: tuple[Modality, ...]
    rows: Iterator[dict[str, Any]]
    labels: tuple[str, ...] | None = None
    task: TaskSpec | None = None
    terms: str = ""
    grouped: bool = False
    cells: Cells = field(default_factory=Cells)


def names() -> tuple[str, ...]:
    return _NAMES


def load(name: str, **options: Any) -> Source:
    """The source of that name. Raises `EquipoiseError` for an unknown name or option, or a bad value of one."""
    if name not in _NAMES:
        raise unknown("data set", name, _NAMES)
    known = options_of(name)
    for option in options:
        if option not in known:
            raise unknown(f"option of the data set {name!r},", option, known)
    source: Source = _module(name).load(**options)
    return source


def takes(name: str, option: str) -> bool:
    """Whether the source of that name has this option."""
    return option in options_of(name)


def options_of(name: str) -> dict[str, Any]:
    """{option: its default} of the source of that name."""
    return {option: p.default for option, p in inspect.signature(_module(name).load).parameters.items()}


def summary(name: str) -> str:
    """What the source of that name is, in a line."""
    return (_module(name).__doc__ or "").split("\n", 1)[0]


def _module(name: str) -> ModuleType:
    return import_module(f"{__name__}.{name.replace('-', '_')}")
