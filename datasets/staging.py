"""Pass 1 of `prepare`: each row is checked, encoded, counted, and given its split and its place in the order."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from equipoise.datasets.bad_rows import BadRowError, BadRows
from equipoise.datasets.bad_value import BadValueError
from equipoise.datasets.buckets import staged_target
from equipoise.datasets.cells import Cells, decoded
from equipoise.datasets.census import Census
from equipoise.datasets.manifest import SPLITS, value_fields
from equipoise.datasets.task_spec import TaskSpec
from equipoise.models import rowhash
from equipoise.models.modality import Modality

_ROWS, _BYTES = 1024, 1 << 25  # a table is given out at so many rows, or so many encoded bytes


@dataclass(frozen=True)
class Keys:
    """The columns of a source that are no modality. None: the source has none; its rows then have the ids row-0, ..."""

    sample: str | None
    target: str
    split: str | None
    group: str | None


class _Row(NamedTuple):
    source_id: str
    split: str | None
    group: str | None
    target: str | bytes
    values: tuple[bytes | str | None, ...]


class Staging:
    """Turns a source's rows into the tables that `Buckets` takes.

    `skip`: rows that cannot be used are listed in `bad` and left out, instead of refused.
    """

    def __init__(
        self,
        modalities: tuple[Modality, ...],
        cells: Cells,
        task: TaskSpec | None,
        keys: Keys,
        seed: int,
        fractions: tuple[float, float, float],
        skip: bool,
    ) -> None:
        self.modalities, self.cells, self.keys, self.seed = modalities, cells, keys, seed
        self.census = Census(tuple(m.name for m in modalities), task)
        self.bad = BadRows(skip)
        self._edges = np.cumsum(fractions)[:2]

    def tables(self, rows: Iterable[Mapping[str, Any]]) -> Iterator[pa.Table]:
        """Raises `EquipoiseError` that lists the rows that cannot be used, after looking at all of them."""
        staged: list[_Row] = []
        size = 0
        for number, row in enumerate(rows):
            self.bad.rows += 1
            try:
                found = self._row(row, number)
            except BadRowError as bad:
                self.bad.add(bad)
                continue
            if self.bad.refused:  # the others are looked at, no more
                continue
            staged.append(found)
            size += len(found.target) + sum(len(value) for value in found.values if value is not None)
            if len(staged) >= _ROWS or size >= _BYTES:
                yield self._table(staged)
                staged, size = [], 0
        self.bad.check()
        if staged:
            yield self._table(staged)

    def _row(self, row: Mapping[str, Any], number: int) -> _Row:
        """Raises `BadRowError`."""
        keys = self.keys
        cell = f"row-{number}" if keys.sample is None else row.get(keys.sample)
        source_id = "" if cell is None else str(cell)
        if not source_id:
            reason = f"has no id in the column {keys.sample!r}: give every row its own"
            raise BadRowError(f"Row {number}", reason, source_id)
        split = row.get(keys.split) if keys.split else None
        where = f"Row {number} ({source_id!r}" + (f", {split})" if split in SPLITS else ")")
        place = ""
        try:
            for column in (keys.sample, keys.target, keys.split, keys.group):
                place = f"the column {column!r} "
                decoded(row.get(column) if column else None)
            place = ""
            if keys.split and split not in SPLITS:
                raise BadValueError(
                    f"has the split {split!r} in the column {keys.split!r}: it must be one of {', '.join(SPLITS)}"
                )
            target = self.census.target(row.get(keys.target))
            values = []
            for m in self.modalities:
                place = f"modality {m.name!r} "
                values.append(self.cells.stored(m, row))
        except BadValueError as error:
            raise BadRowError(where, f"{place}{error}", source_id, str(split or "")) from error
        if all(value is None for value in values):
            reason = "no modality is present: drop the row, or give at least one value"
            raise BadRowError(where, reason, source_id, split or "")
        group = row.get(keys.group) if keys.group else None
        return _Row(source_id, split, None if group is None else str(group), target, tuple(values))

    def _table(self, staged: list[_Row]) -> pa.Table:
        ids = [row.source_id for row in staged]
        if self.keys.split:
            splits = [str(row.split) for row in staged]
        else:
            units = [row.source_id if row.group is None else f"group {row.group}" for row in staged]
            u = rowhash.uniform(self.seed, "split", _digests(units))
            splits = [SPLITS[i] for i in np.searchsorted(self._edges, u, side="right")]
        present = np.zeros(len(staged), np.uint16)
        columns: dict[str, pa.Array] = {}
        for bit, field in enumerate(value_fields(self.modalities)):
            columns[field.name] = pa.array([row.values[bit] for row in staged], field.type)
            present |= columns[field.name].is_valid().to_numpy(zero_copy_only=False).astype(np.uint16) << bit
        for row, split, bits in zip(staged, splits, present.tolist(), strict=True):
            self.census.count(row.source_id, split, row.group, row.target, bits)
        return pa.table(
            {
                "hash": pa.array(rowhash.words(self.seed, "order", _digests(ids))),
                "present": pa.array(present),
                "split": pa.array(splits, pa.string()),
                "source_id": pa.array(ids, pa.string()),
                "group": pa.array([row.group for row in staged], pa.string()),
                "target": pa.array([row.target for row in staged], staged_target(self.census.task)),
                **columns,
            }
        )


def _digests(texts: list[str]) -> np.ndarray:
    """What `rowhash.words` makes of each string, as an array, so that one call hashes a whole table."""
    return np.array([int.from_bytes(blake2b(t.encode(), digest_size=8).digest(), "little") for t in texts], np.uint64)
