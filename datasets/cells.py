"""From the cells of a person's table to values: files out of names, numbers out of text, an array out of several columns."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from equipoise.datasets.bad_value import BadValueError
from equipoise.datasets.columns import encode
from equipoise.models.errors import EquipoiseError
from equipoise.models.modality import Modality

MISSING = frozenset({"na", "n/a", "nan", "null", "none"})  # what stands for no number, in any case
_TRUTH = {"true": 1.0, "false": 0.0}


@dataclass(frozen=True)
class Cells:
    """How the cells of a source are read.

    `folder`: where the files lie that an image or audio cell may name instead of holding their bytes; None: it may not.
    `text`: every cell is text, as in a csv: numbers are parsed, and an array stands in its cell as a JSON list.
    """

    folder: Path | None = None
    text: bool = False

    def stored(self, modality: Modality, row: Mapping[str, Any]) -> bytes | str | None:
        """The stored form of a row's value (see `encode`), None where it is absent. Raises `BadValueError`."""
        value = self._value(modality, row)
        return None if value is None else encode(modality, value)

    def _value(self, modality: Modality, row: Mapping[str, Any]) -> Any:
        if modality.columns:
            return self._group(modality, row)
        cell = row.get(modality.column)
        if cell is None:
            return None
        if modality.kind in ("image", "audio"):
            if isinstance(cell, Mapping) and cell.keys() <= {"bytes", "path"}:  # as Hugging Face datasets store files
                cell = cell.get("bytes") or cell.get("path")
            return self._file(modality, cell) if isinstance(cell, str) and self.folder is not None else cell
        if modality.kind == "text":
            return decoded(cell)
        if self.text and cell.startswith("["):
            try:
                return json.loads(cell)
            except (ValueError, RecursionError) as error:
                raise BadValueError(f"holds {_shown(cell)}, which is no JSON list: write it as [0.5, 1.25]") from error
        if self.text or (np.isscalar(cell) and modality.shape == (1,)):
            number = self._number(modality.column, cell)
            return None if number is None else [number]
        return cell

    def _group(self, modality: Modality, row: Mapping[str, Any]) -> Any:
        numbers = [self._number(column, row.get(column)) for column in modality.columns]
        there = [number is not None for number in numbers]
        if not any(there):
            return None
        if not all(there):
            lacking, having = modality.columns[there.index(False)], modality.columns[there.index(True)]
            raise BadValueError(
                f"has no value in the column {lacking!r} but one in {having!r}: fill it, or leave all {len(there)} of its "
                "columns empty where it is absent"
            )
        return np.asarray(numbers, np.float64).reshape(modality.shape)

    def _number(self, column: str, cell: Any) -> float | None:
        if self.text and isinstance(cell, str):
            word = cell.strip().lower()
            if word in MISSING:
                return None
            if word in _TRUTH:
                return _TRUTH[word]
            try:
                return float(word.replace("_", "?"))  # Python reads 1_000, no one else does
            except ValueError:
                cell = decoded(cell)
        if cell is None or (isinstance(cell, int | float | np.number | np.bool_)):
            return None if cell is None else float(cell)
        raise BadValueError(f"holds {_shown(cell)} in the column {column!r}, where a number belongs")

    def _file(self, modality: Modality, name: str) -> bytes:
        assert self.folder is not None
        path = self.folder / decoded(name)
        try:
            if path.is_file():  # a device, say, might never end
                return path.read_bytes()
        except (OSError, ValueError) as error:  # ValueError: a name with a NUL in it
            raise BadValueError(f"names {_shown(name)}, which cannot be read ({error})") from error
        raise BadValueError(f"names the file {_shown(name)}, but there is none at {path}")


def require(columns: Sequence[str], found: Iterable[str], where: str) -> None:
    """Raise `EquipoiseError` naming the first of `columns` that `found` lacks."""
    names = list(found)
    for column in columns:
        if column not in names:
            raise EquipoiseError(
                f"{where} has no column {column!r}: it has {', '.join(names)}. Name the columns with sample_key=, target=, "
                "group= and Modality(column=...)."
            )


def decoded(cell: Any) -> Any:
    """A cell as it is. Raises `BadValueError` for text that was not UTF-8 in its file."""
    if isinstance(cell, str) and not cell.isascii():
        try:
            cell.encode()
        except UnicodeEncodeError as error:
            what = cell.encode("utf-8", "surrogateescape")[:40]
            raise BadValueError(f"holds {what!r}, which is not UTF-8: save the file as UTF-8") from error
    return cell


def _shown(cell: Any) -> str:
    text = repr(cell)
    return text if len(text) <= 60 else f"{text[:57]}..."
