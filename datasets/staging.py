"""Pass 1 of `prepare`: each row is checked, encoded, counted, and given its split and its place in the order."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from equipoise.datasets.census import Census
from equipoise.datasets.columns import BadValueError, encode
from equipoise.datasets.manifest import SPLITS, Skipped, value_fields
from equipoise.models import rowhash
from equipoise.models.errors import EquipoiseError
from equipoise.models.modality import Modality

_ROWS, _BYTES = 1024, 1 << 25  # a table is given out at so many rows, or so many encoded bytes


@dataclass(frozen=True)
class Keys:
    """The columns of a source that are no modality. `split` and `group` None: the source has none."""

    sample: str
    target: str
    split: str | None
    group: str | None


class _Row(NamedTuple):
    source_id: str
    split: str | None
    group: str | None
    label: str
    values: tuple[bytes | str | None, ...]


class Staging:
    """Turns a source's rows into the tables that `Buckets` takes.

    `skip`: a row with a value that cannot be is listed in `skipped` instead of raised.
    """

    def __init__(
        self,
        modalities: tuple[Modality, ...],
        labels: tuple[str, ...] | None,
        keys: Keys,
        seed: int,
        fractions: tuple[float, float, float],
        skip: bool,
    ) -> None:
        self.modalities, self.keys, self.seed, self.skip = modalities, keys, seed, skip
        self.census = Census(tuple(m.name for m in modalities), labels)
        self.skipped: list[Skipped] = []
        self._edges = np.cumsum(fractions)[:2]

    def tables(self, rows: Iterable[Mapping[str, Any]]) -> Iterator[pa.Table]:
        """Raises `EquipoiseError` for the first row that cannot be."""
        staged: list[_Row] = []
        size = 0
        for number, row in enumerate(rows):
            try:
                staged.append(self._row(row, number))
            except _BadRowError as bad:
                if not self.skip:
                    raise EquipoiseError(f"{bad.where}: {bad.reason}.") from bad
                self.skipped.append(Skipped(source_id=bad.source_id, split=bad.split or "", reason=bad.reason))
                continue
            size += sum(len(value) for value in staged[-1].values if value is not None)
            if len(staged) >= _ROWS or size >= _BYTES:
                yield self._table(staged)
                staged, size = [], 0
        if staged:
            yield self._table(staged)

    def _row(self, row: Mapping[str, Any], number: int) -> _Row:
        keys = self.keys
        source_id = "" if row.get(keys.sample) is None else str(row[keys.sample])
        if not source_id:
            raise EquipoiseError(f"Row {number} has no id in the column {keys.sample!r}: give every row its own.")
        split = row.get(keys.split) if keys.split else None
        if keys.split and split not in SPLITS:
            raise EquipoiseError(
                f"Row {number} ({source_id!r}) has the split {split!r} in the column {keys.split!r}: it must be one of "
                f"{', '.join(SPLITS)}."
            )
        where = f"Row {number} ({source_id!r}" + (f", {split})" if split else ")")
        label = self.census.label(row.get(keys.target), where)
        group = row.get(keys.group) if keys.group else None
        values: list[bytes | str | None] = []
        for m in self.modalities:
            value = row.get(m.column)
            try:
                values.append(None if value is None else encode(m, value))
            except BadValueError as error:
                raise _BadRowError(where, source_id, split, f"modality {m.name!r} {error}") from error
        if all(value is None for value in values):
            raise _BadRowError(
                where, source_id, split, "no modality is present: drop the row, or give at least one value"
            )
        return _Row(source_id, split, None if group is None else str(group), label, tuple(values))

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
            self.census.count(row.source_id, split, row.group, row.label, bits)
        return pa.table(
            {
                "hash": pa.array(rowhash.words(self.seed, "order", _digests(ids))),
                "present": pa.array(present),
                "split": pa.array(splits, pa.string()),
                "source_id": pa.array(ids, pa.string()),
                "group": pa.array([row.group for row in staged], pa.string()),
                "label": pa.array([row.label for row in staged], pa.string()),
                **columns,
            }
        )


class _BadRowError(Exception):
    def __init__(self, where: str, source_id: str, split: str | None, reason: str) -> None:
        super().__init__(reason)
        self.where, self.source_id, self.split, self.reason = where, source_id, split, reason


def _digests(texts: list[str]) -> np.ndarray:
    """What `rowhash.words` makes of each string, as an array, so that one call hashes a whole table."""
    return np.array([int.from_bytes(blake2b(t.encode(), digest_size=8).digest(), "little") for t in texts], np.uint64)
