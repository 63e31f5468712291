"""Shards on disk, and a folder that appears whole or not at all."""

import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from secrets import token_hex
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from equipoise.datasets.fitting import TargetScale, fit_of
from equipoise.datasets.manifest import FILE, SPLITS, Shard, Split, disk_schema, file_sha256
from equipoise.datasets.task_spec import TaskSpec
from equipoise.models.errors import EquipoiseError
from equipoise.models.modality import Modality

Fitted = dict[str, dict[str, list[float] | str]]


def write_shards(
    tables: Iterable[pa.Table],
    folder: Path,
    modalities: tuple[Modality, ...],
    task: TaskSpec,
    chunk_rows: int,
    shard_rows: int,
) -> tuple[dict[str, Split], Fitted]:
    """Write rows (see `Buckets`) as the shards of their splits, and fit what is fitted on train rows."""
    schema = disk_schema(modalities, task)
    shards = {split: _Shards(split, folder, schema, chunk_rows, shard_rows) for split in SPLITS}
    fits: dict[str, Any] = {m.name: fit for m in modalities if (fit := fit_of(m))}
    if task.kind == "regression":
        fits["target"] = TargetScale(task)

    def write(split: str, chunks: Iterable[pa.Table]) -> None:
        for chunk in chunks:
            shards[split].write(chunk)
            # Fitted in the final order and chunk by chunk, so that not even its rounding depends on the source's order.
            for name, fit in fits.items() if split == "train" else ():
                fit.update(chunk[name].drop_null())

    for table in tables:
        if task.kind == "classification":
            index = pc.index_in(table["target"], value_set=pa.array(task.labels, pa.string())).cast(pa.int64())
            table = table.set_column(table.schema.get_field_index("target"), "target", index)
        for split in SPLITS:
            write(split, shards[split].full_chunks(table.filter(pc.equal(table["split"], split))))
    for split in SPLITS:
        write(split, shards[split].last_chunk())
    return {split: s.close() for split, s in shards.items()}, {name: fit.state() for name, fit in fits.items()}


class _Shards:
    """The shards of one split: rows in, row groups of `chunk_rows` out, a new file every `shard_rows`."""

    def __init__(self, split: str, folder: Path, schema: pa.Schema, chunk_rows: int, shard_rows: int) -> None:
        self.split, self.folder, self.schema = split, folder, schema
        self.chunk_rows, self.shard_rows = chunk_rows, shard_rows
        self.rows = 0
        self._waiting: pa.Table | None = None
        self._writer: pq.ParquetWriter | None = None
        self._done: list[Shard] = []

    def full_chunks(self, table: pa.Table) -> Iterator[pa.Table]:
        """Take in rows; give back each chunk that is full."""
        waiting = table if self._waiting is None else pa.concat_tables([self._waiting, table])
        while waiting.num_rows >= self.chunk_rows:
            yield waiting.slice(0, self.chunk_rows)
            waiting = waiting.slice(self.chunk_rows)
        self._waiting = waiting

    def last_chunk(self) -> Iterator[pa.Table]:
        if self._waiting is not None and self._waiting.num_rows:
            yield self._waiting

    def write(self, chunk: pa.Table) -> None:
        ids = pa.array(np.arange(self.rows, self.rows + chunk.num_rows))
        chunk = chunk.append_column("sample_id", ids).select(self.schema.names).cast(self.schema)
        if self._writer is None:
            # No dictionaries and no statistics of the values: both would copy whole images into the footer or beside it.
            self._writer = pq.ParquetWriter(
                self._path(), self.schema, use_dictionary=["group"], write_statistics=["sample_id"]
            )
        self._writer.write_table(chunk, row_group_size=chunk.num_rows)
        self.rows += chunk.num_rows
        if self.rows % self.shard_rows == 0:
            self._finish()

    def close(self) -> Split:
        if self._writer is not None:
            self._finish()
        return Split(rows=self.rows, shards=tuple(self._done))

    def _path(self) -> Path:
        return self.folder / f"{self.split}-{len(self._done):05d}.parquet"

    def _finish(self) -> None:
        assert self._writer is not None
        self._writer.close()
        self._writer = None
        rows = self.rows - len(self._done) * self.shard_rows
        self._done.append(Shard(file=self._path().name, rows=rows, sha256=file_sha256(self._path())))


@contextmanager
def folder_in_place(out: Path, overwrite: bool) -> Iterator[Path]:
    """A new folder beside `out` that takes its place at the end; a failure, or a kill, leaves `out` as it was.

    Raises `EquipoiseError` if `out` holds anything but a data set of ours, or one of ours and `overwrite` is False, or
    cannot be written.
    """
    # Not the tempfile module, whose folders are closed to everyone else.
    made = out.parent / f".{out.name}.preparing-{token_hex(4)}"
    try:
        _check_free(out, overwrite)
        made.mkdir(parents=True)
        yield made
        _check_free(out, overwrite)
        if not out.exists():
            os.replace(made, out)
            return
        old = out.parent / f".{out.name}.replaced-{token_hex(4)}"
        os.replace(out, old)
        try:
            os.replace(made, out)
        except OSError:
            os.replace(old, out)
            raise
        shutil.rmtree(old)
    except OSError as error:  # of the source's files each is caught where it is read
        raise EquipoiseError(f"Cannot write {out} ({error.strerror or error}): name another folder.") from error
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _check_free(out: Path, overwrite: bool) -> None:
    if not out.exists():
        return
    if not out.is_dir():
        raise EquipoiseError(f"{out} is a file: name a folder for the data set.")
    names = [entry.name for entry in out.iterdir()]
    ours = re.compile(rf"{re.escape(FILE)}|({'|'.join(SPLITS)})-\d{{5,}}\.parquet")
    strange = sorted(name for name in names if not ours.fullmatch(name))
    if names and (strange or FILE not in names):
        what = f" ({strange[0]})" if strange else ""
        raise EquipoiseError(f"{out} holds something else than a data set of ours{what}: name another folder.")
    if names and not overwrite:
        raise EquipoiseError(
            f"{out} already holds a data set: pass overwrite=True to replace it, or name another folder."
        )
