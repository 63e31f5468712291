"""A person's own csv file as rows."""

import csv
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from equipoise.datasets.cells import Cells, require
from equipoise.models.errors import EquipoiseError

SUFFIXES = (".csv", ".tsv")
_DELIMITERS = ",;\t|"
_FIRST_LINE = 1 << 20  # characters
# Of a cell, in characters: an array as a JSON list is far longer than the 131,072 that csv takes by itself.
csv.field_size_limit(1 << 28)


class CsvTable:
    """A csv: text in UTF-8, a header in the first line, then a line a row, with `,`, `;`, tab or `|` between the cells.

    An empty cell is a missing value. Rows are read one at a time, so the file may be of any size.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.cells = Cells(path.parent, text=True)
        self._delimiter = self._judged()
        with self._lines() as lines:
            self.columns = tuple(name.strip() for name in next(lines))
        for i, name in enumerate(self.columns):
            if name and name in self.columns[:i]:
                raise EquipoiseError(f"{path} has two columns {name!r} in its header: rename one of them.")

    def rows(self, columns: Sequence[str], optional: Sequence[str] = ()) -> Iterator[dict[str, Any]]:
        """Rows with `columns`, and those of `optional` that there are; None for an empty cell.

        Bytes that are not UTF-8 come as lone surrogates, which `cells.decoded` finds. Raises `EquipoiseError` for a column
        that is not there, and for a line that the header does not fit.
        """
        require(columns, self.columns, str(self.path))
        wanted = [*columns, *(name for name in optional if name in self.columns)]
        places = [self.columns.index(name) for name in wanted]
        with self._lines() as lines:
            next(lines)
            for line in lines:
                yield {name: line[at] if line[at].strip() else None for name, at in zip(wanted, places, strict=True)}

    def _judged(self) -> str:
        """The delimiter, from the first line. Raises `EquipoiseError` for what is no text."""
        with self._file() as file:
            first = file.readline(_FIRST_LINE)
        strange = re.search(r"[\x00-\x08\x0e-\x1f\ud800-\udfff]", first)
        if strange or not first.strip() or len(first) == _FIRST_LINE:
            what = (
                "it is empty"
                if not first
                else "its first line is empty, too long, or holds bytes that UTF-8 text has not"
            )
            raise EquipoiseError(
                f"{self.path} is not a csv ({what}): give a text file with the names of its columns on top."
            )
        unquoted = re.sub(r'"[^"]*"', "", first)
        return max(_DELIMITERS, key=unquoted.count)  # of none at all, the comma: one column

    @contextmanager
    def _file(self) -> Iterator[TextIO]:
        try:
            # surrogateescape: a bad byte is an error of its row, not of the file.
            with self.path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
                yield file
        except OSError as error:
            raise EquipoiseError(f"Cannot read {self.path} ({error.strerror}).") from error

    @contextmanager
    def _lines(self) -> Iterator[Iterator[list[str]]]:
        """The lines that are not empty, each with as many cells as the header."""
        with self._file() as file:
            yield self._checked(csv.reader(file, delimiter=self._delimiter, strict=True, skipinitialspace=True))

    def _checked(self, lines: Any) -> Iterator[list[str]]:
        width = 0
        try:
            for line in lines:
                if not line:
                    continue
                width = width or len(line)
                if len(line) != width:
                    raise EquipoiseError(
                        f"Line {lines.line_num} of {self.path} has {len(line)} cells, but its header has {width}: mend it, and "
                        f"put cells that hold {self._delimiter!r} in double quotes."
                    )
                yield line
        except csv.Error as error:
            raise EquipoiseError(
                f"Line {lines.line_num} of {self.path} is not csv ({error}): look for a double quote that is not closed, or "
                "that stands inside a cell alone (it must be doubled)."
            ) from error
