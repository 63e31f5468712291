"""A person's own Parquet files as rows."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from equipoise.datasets.opening import open_parquet
from equipoise.models.errors import EquipoiseError

_BATCH = 256  # rows in memory at a time


def parquet_rows(path: Path, columns: Sequence[str], optional: Sequence[str] = ()) -> Iterator[dict[str, Any]]:
    """The rows of a Parquet file, or of every `*.parquet` below a folder in the order of their paths.

    Each row has `columns` and those of `optional` that the files have. All files are opened and their columns compared
    before the first row is read. Lists of numbers come as arrays. Raises `EquipoiseError`.
    """
    files = sorted(path.rglob("*.parquet")) if path.is_dir() else [path]
    if not files:
        raise EquipoiseError(f"{path} holds no *.parquet file.")
    wanted: list[str] | None = None
    for file in files:
        found = open_parquet(file).schema_arrow.names
        require(columns, found, str(file))
        here = [*columns, *(name for name in optional if name in found)]
        if wanted is not None and here != wanted:
            name = (set(here) ^ set(wanted)).pop()
            raise EquipoiseError(
                f"Some files of {path} have a column {name!r} and some have not ({file}): give all one."
            )
        wanted = here
    for file in files:
        for batch in open_parquet(file).iter_batches(batch_size=_BATCH, columns=wanted):
            values = [list(_values(batch.column(name))) for name in batch.schema.names]
            for row in zip(*values, strict=True):
                yield dict(zip(batch.schema.names, row, strict=True))


def require(columns: Sequence[str], found: Iterable[str], where: str) -> None:
    """Raise `EquipoiseError` naming the first of `columns` that `found` lacks."""
    names = list(found)
    for column in columns:
        if column not in names:
            raise EquipoiseError(
                f"{where} has no column {column!r}: it has {', '.join(names)}. Name the columns with sample_key=, target=, "
                "group= and Modality(column=...)."
            )


def _values(column: pa.Array) -> Iterator[Any]:
    kind = column.type
    lists = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    if lists and (pa.types.is_integer(kind.value_type) or pa.types.is_floating(kind.value_type)):
        # As arrays: a list of Python floats takes eight times the memory. A null inside becomes NaN, which is refused.
        return (s.values.to_numpy(zero_copy_only=False) if s.is_valid else None for s in column)
    return iter(column.to_pylist())
