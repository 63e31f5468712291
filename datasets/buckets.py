"""Rows on their way from the order of a source to a seeded random order, through files."""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from equipoise.datasets.manifest import value_fields
from equipoise.datasets.task_spec import TaskSpec
from equipoise.models.errors import EquipoiseError
from equipoise.models.modality import Modality

_BITS = 6  # 64 buckets: one at a time is held in memory
_PIECE = 256  # rows given back at a time


class Buckets:
    """Tables of rows, kept in one Arrow stream a bucket below `folder`, and given back in the order of `hash`.

    Columns: `hash` uint64, `split`, `source_id` and `group` strings, `target` (see `staged_target`), `present` uint16, and
    the modalities as they will be stored.
    """

    def __init__(self, folder: Path, modalities: tuple[Modality, ...], task: TaskSpec | None) -> None:
        self.folder = folder
        texts = [pa.field(name, pa.string()) for name in ("split", "source_id", "group")]
        numbers = [pa.field("hash", pa.uint64()), pa.field("present", pa.uint16())]
        target = pa.field("target", staged_target(task))
        self.schema = pa.schema([*numbers, *texts, target, *value_fields(modalities)])
        self._writers: dict[int, pa.RecordBatchStreamWriter] = {}

    def add(self, table: pa.Table) -> None:
        bucket: NDArray[np.int64] = (table["hash"].to_numpy() >> np.uint64(64 - _BITS)).astype(np.int64)
        for b in np.unique(bucket):
            if b not in self._writers:
                self._writers[b] = pa.ipc.new_stream(self._path(b), self.schema)
            self._writers[b].write_table(table.take(np.flatnonzero(bucket == b)))

    def sorted(self) -> Iterator[pa.Table]:
        """The rows in order, in small tables; ends the adding. Raises `EquipoiseError` for two rows of one id."""
        for writer in self._writers.values():
            writer.close()
        for b in sorted(self._writers):
            with pa.memory_map(str(self._path(b))) as file:
                # One copy of a bucket, and no more: it is taken from by pieces, where sorting it whole makes a second.
                table = pa.ipc.open_stream(file).read_all().combine_chunks()
            self._path(b).unlink()
            keys = [("hash", "ascending"), ("source_id", "ascending")]
            order = pc.sort_indices(table.select(["hash", "source_id"]), sort_keys=keys)
            for first, second in pairwise(table["source_id"].take(order).to_pylist()):
                if first == second:
                    raise EquipoiseError(
                        f"Two rows have the id {first!r}: a row's id must be its own. Drop the duplicate, or name another "
                        "column with sample_key=."
                    )
            for start in range(0, table.num_rows, _PIECE):
                yield table.take(order.slice(start, _PIECE))

    def _path(self, bucket: int) -> Path:
        return self.folder / f"{bucket:02d}.arrow"


def staged_target(task: TaskSpec | None) -> pa.DataType:
    """A class by its name, whose index is known when all rows have been seen; other targets as they will be stored."""
    return pa.string() if task is None or task.kind == "classification" else pa.large_binary()
