"""Data sets known by name. Each is one file here with a function `load(**options) -> Source`.

A hyphen in a name is an underscore in its file's.
"""

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from equipoise.models.errors import unknown
from equipoise.models.modality import Modality

_NAMES = ("digits", "watch", "mfeat", "htad", "easy-vqa", "emoji", "tuxpaint")


@dataclass(frozen=True)
class Source:
    """Rows to prepare, and what they are.

    A row of `rows` has `source_id`, `target` (a label, or its index in `labels`), `split` where the split is fixed,
    `group` where rows belong together (`grouped`), and a value or None a modality, under its column's name. `labels`
    None: inferred from the train rows.
    """

    name: str
    modalities: tuple[Modality, ...]
    rows: Iterator[dict[str, Any]]
    labels: tuple[str, ...] | None = None
    terms: str = ""
    grouped: bool = False


def names() -> tuple[str, ...]:
    return _NAMES


def load(name: str, **options: Any) -> Source:
    """The source of that name. Raises `EquipoiseError` for an unknown name or option, or a bad value of one."""
    if name not in _NAMES:
        raise unknown("data set", name, _NAMES)
    loader = _loader(name)
    known = inspect.signature(loader).parameters
    for option in options:
        if option not in known:
            raise unknown(f"option of the data set {name!r},", option, known)
    return loader(**options)


def takes(name: str, option: str) -> bool:
    """Whether the source of that name has this option."""
    return option in inspect.signature(_loader(name)).parameters


def _loader(name: str) -> Callable[..., Source]:
    loader: Callable[..., Source] = import_module(f"{__name__}.{name.replace('-', '_')}").load
    return loader
