"""A person's own Parquet files as rows, and which of a person's files are a table."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from equipoise.datasets.cells import Cells, require
from equipoise.datasets.csv_table import SUFFIXES, CsvTable
from equipoise.datasets.opening import open_parquet
from equipoise.models.errors import EquipoiseError
from equipoise.models.modality import Modality

_BATCH = 256  # rows in memory at a time


def open_table(path: Path) -> "CsvTable | ParquetTable":
    """The table at a path: a csv, a Parquet file, or a folder with one csv or with Parquet files (below it, too).

    Raises `EquipoiseError` where there is none, or more than one.
    """
    try:
        if not path.exists():
            raise EquipoiseError(f"No csv, Parquet file or folder at {path}.")
        if not path.is_dir():
            return _file_table(path)
        inside = list(path.iterdir())  # unlike rglob, it says so where it may not
        parquet = sorted(path.rglob("*.parquet"))
    except OSError as error:
        raise EquipoiseError(f"Cannot read {path} ({error.strerror}).") from error
    csvs = sorted(file for file in inside if file.suffix.lower() in SUFFIXES)
    if not parquet and not csvs:
        raise EquipoiseError(f"{path} holds no *.parquet file and no csv.")
    if len(csvs) > 1 or (csvs and parquet):
        found = ", ".join(file.name for file in [*csvs, *parquet][:4])
        raise EquipoiseError(f"{path} holds more than one table ({found}): name the file that you mean.")
    return CsvTable(csvs[0]) if csvs else ParquetTable(path, parquet)


def _file_table(path: Path) -> "CsvTable | ParquetTable":
    suffix = path.suffix.lower()
    if suffix in SUFFIXES:
        return CsvTable(path)
    with path.open("rb") as file:
        parquet = suffix in (".parquet", ".pq") or file.read(4) == b"PAR1"
    if not parquet:
        raise EquipoiseError(
            f"{path} is no Parquet file and its name does not end in {' or '.join(SUFFIXES)}: give a csv such a name, and save "
            "a spreadsheet as csv."
        )
    return ParquetTable(path, [path])


class ParquetTable:
    """Parquet files with the same columns, in the order of their paths. Every one is opened and judged before any is read."""

    def __init__(self, path: Path, files: Sequence[Path]) -> None:
        self.path, self.files = path, tuple(files)
        self.cells = Cells(path if path.is_dir() else path.parent)
        self._schemas = {file: open_parquet(file).schema_arrow for file in files}
        self.columns = tuple(dict.fromkeys(name for schema in self._schemas.values() for name in schema.names))

    def rows(self, columns: Sequence[str], optional: Sequence[str] = ()) -> Iterator[dict[str, Any]]:
        """Rows with `columns`, and those of `optional` that the files have. Lists of numbers come as arrays.

        Raises `EquipoiseError` for a column that is not there, or in some of the files only.
        """
        wanted = [*columns, *(name for name in optional if name in self.columns)]
        for file, schema in self._schemas.items():
            require(columns, schema.names, str(file))
            lacking = next((name for name in wanted if name not in schema.names), None)
            if lacking is not None:
                raise EquipoiseError(
                    f"Some files of {self.path} have a column {lacking!r} and some have not ({file}): give all one."
                )
        return self._read(wanted)

    def check_kinds(self, modalities: Iterable[Modality]) -> None:
        """Raise `EquipoiseError` for a column whose type cannot hold its modality, before any row is read."""
        for file, schema in self._schemas.items():
            for m in modalities:
                for column in m.sources:
                    kind = schema.field(column).type if column in schema.names else None
                    if kind is not None and not _may_hold(m, kind):
                        article = {"image": "an image", "array": "an array", "sequence": "a sequence"}.get(
                            m.kind, m.kind
                        )
                        raise EquipoiseError(
                            f"{file}: the column {column!r} holds {kind}, but modality {m.name!r} is {article}, which needs "
                            f"{_NEEDED[m.kind]}: name another column, or another kind."
                        )

    def _read(self, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
        for file in self.files:
            for batch in _batches(file, columns):
                values = [list(_values(batch.column(name))) for name in batch.schema.names]
                for row in zip(*values, strict=True):
                    yield dict(zip(batch.schema.names, row, strict=True))


def _batches(file: Path, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    try:
        yield from open_parquet(file).iter_batches(batch_size=_BATCH, columns=list(columns))
    except (pa.ArrowException, OSError) as error:
        raise EquipoiseError(f"{file} is damaged ({error}): make it or fetch it again.") from error


_NEEDED = {
    "array": "numbers or lists of numbers",
    "sequence": "lists of numbers",
    "image": "the bytes of PNG or JPEG files, or their names",
    "audio": "the bytes of OGG, WAV or FLAC files, or their names",
    "text": "strings",
}


def _may_hold(modality: Modality, kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    if pa.types.is_null(kind):
        return True
    if modality.kind == "text":
        return is_text
    if modality.kind in ("image", "audio"):
        files = pa.types.is_struct(kind) and {field.name for field in kind} <= {"bytes", "path"}
        return files or is_text or pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
    depth = 0
    while _is_list(kind):
        kind, depth = kind.value_type, depth + 1
    numbers = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)
    return numbers and (not depth if modality.columns else depth > 0 or modality.shape == (1,))


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _values(column: pa.Array) -> Iterator[Any]:
    kind = column.type
    if _is_list(kind) and (pa.types.is_integer(kind.value_type) or pa.types.is_floating(kind.value_type)):
        # As arrays: a list of Python floats takes eight times the memory. A null inside becomes NaN, which is refused.
        return (s.values.to_numpy(zero_copy_only=False) if s.is_valid else None for s in column)
    return iter(column.to_pylist())
