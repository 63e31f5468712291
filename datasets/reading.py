"""Reading a prepared data set: any rows, in any order, decoding only what is kept."""

import os
from collections import Counter, OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import ArrayLike, NDArray

from equipoise.datasets.columns import Decoder
from equipoise.datasets.impairment import Impairment
from equipoise.datasets.manifest import Manifest, Shard
from equipoise.datasets.opening import open_parquet
from equipoise.datasets.targets import decode_targets, dtype_of
from equipoise.models.errors import EquipoiseError

_OPEN_FILES = 8


class Reader:
    """Decoded columns of the data set in the folder `root`.

    `decoded` counts the values decoded since construction, {modality: n}, `row_groups` the reads from files. Up to
    `cache_bytes` of the columns read last are kept as they lie on disk, for a caller that comes back to the same chunks.
    A Reader may be pickled: its files are opened again where it arrives, and it is an error if the data set there is no
    longer the same.
    """

    def __init__(self, root: str | os.PathLike[str], manifest_hash: str | None = None, cache_bytes: int = 0) -> None:
        self.root = Path(root).absolute()
        self.manifest = Manifest.load(self.root)
        if manifest_hash not in (None, self.manifest.hash):
            raise EquipoiseError(
                f"{self.root} is not the data set that was asked for: its hash is {self.manifest.hash[:12]}, not "
                f"{str(manifest_hash)[:12]}. Give the folder of the original, or start again with this one."
            )
        self.row_groups = 0
        self.decoded: Counter[str] = Counter(dict.fromkeys(self.manifest.names, 0))
        self._files: OrderedDict[str, pq.ParquetFile] = OrderedDict()
        self._decoders: dict[str, Decoder] = {}
        self._cache_bytes = cache_bytes
        self._cached: OrderedDict[tuple[str, int, str], pa.ChunkedArray] = OrderedDict()
        self._held = 0
        self._impaired: tuple[tuple[str, str], NDArray[np.bool_]] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return Reader, (self.root, self.manifest.hash, self._cache_bytes)

    def read(
        self,
        split: str,
        sample_ids: ArrayLike,
        keep: ArrayLike | None = None,
        impairment: Impairment | None = None,
        epoch: int = 0,
        copies: ArrayLike = 0,
    ) -> dict[str, np.ndarray]:
        """The rows of `sample_ids` (int[n]; any order, repeats allowed), in that order.

        `keep`: bool[n, M], or [M] for all rows: a value that no row keeps is not decoded, a modality that no row of a
        chunk keeps is not read from its file. Returns `sample_id` int64[n], `target` [n, *task.row_shape], `present`
        bool[n, M] (on disk and kept) and a modality `<name>` float32 or int64 [n, *decoded_shape] and, where it has one,
        `<name>_length` int64[n]; zeros where it is not present. A value is decoded once, however often its row is asked for.
        `impairment` takes modalities away and adds noise; `epoch` and `copies` (int[n]) are part of what its noise is drawn
        from.
        Raises `EquipoiseError` for ids that the split does not have, a `keep` of another shape, and damaged shards.
        """
        manifest = self.manifest
        ids = self._ids(split, sample_ids)
        kept = self._kept(keep, len(ids))
        out: dict[str, np.ndarray] = {
            "sample_id": ids,
            "target": np.zeros((len(ids), *manifest.task.row_shape), dtype_of(manifest.task)),
            "present": np.zeros((len(ids), len(manifest.names)), bool),
        }
        for m in manifest.modalities:
            out[m.name] = np.zeros((len(ids), *m.decoded_shape), m.decoded_dtype)
            if m.has_length:
                out[f"{m.name}_length"] = np.zeros(len(ids), np.int64)
        chunk_of = ids // manifest.chunk_rows
        copy = np.broadcast_to(np.asarray(copies, np.int64), ids.shape)
        if impairment is not None:
            impairment.check(manifest.names)
        for chunk in np.unique(chunk_of):
            rows = np.flatnonzero(chunk_of == chunk)
            self._read_rows(split, int(chunk), rows, kept[rows], out, impairment, epoch, copy)
        return out

    def read_chunk(self, split: str, chunk: int, keep: ArrayLike | None = None) -> dict[str, np.ndarray]:
        """The rows of a chunk in order; see `read`."""
        return self.read(split, np.asarray(self.manifest.chunk_ids(split, chunk)), keep)

    def source_ids(self, split: str, chunk: int) -> list[str]:
        """The source's own ids of a chunk's rows."""
        ids: list[str] = self._table(split, chunk, ["source_id"])["source_id"].to_pylist()
        return ids

    def stored(self, split: str, sample_ids: ArrayLike) -> pa.Table:
        """The rows of `sample_ids` (int[n], any order) as they lie on disk, in that order: `source_id`, `target` and every
        modality's own bytes or text, null where it is absent.
        """
        ids = self._ids(split, sample_ids)
        rows = self.manifest.chunk_rows
        order = np.argsort(ids // rows, kind="stable")
        tables = [
            self._table(split, int(chunk), ["source_id", "target", *self.manifest.names]).take(
                pa.array(ids[order][ids[order] // rows == chunk] - chunk * rows)
            )
            for chunk in np.unique(ids // rows)
        ]
        return pa.concat_tables(tables).take(pa.array(np.argsort(order, kind="stable")))

    def present(self, split: str, impairment: Impairment | None = None) -> NDArray[np.bool_]:
        """Which modalities every row of a split has, or is left with by an impairment: bool [rows, M]."""
        shards = self.manifest.split(split).shards
        bits = np.concatenate([self._file(shard).read(["present"])["present"].to_numpy() for shard in shards])
        present = (bits[:, None] >> np.arange(len(self.manifest.modalities), dtype=np.uint16) & 1).astype(bool)
        if impairment is None or not impairment.missing:
            return present
        impairment.check(self.manifest.names)
        return _left(present, self._lacking(impairment, split))

    def _read_rows(
        self,
        split: str,
        chunk: int,
        rows: NDArray[np.int64],
        kept: NDArray[np.bool_],
        out: dict[str, np.ndarray],
        impairment: Impairment | None,
        epoch: int,
        copy: NDArray[np.int64],
    ) -> None:
        """Fill `rows` of `out`, all of one chunk."""
        manifest, modalities = self.manifest, self.manifest.modalities
        wanted = [m.name for bit, m in enumerate(modalities) if kept[:, bit].any()]
        table = self._table(split, chunk, ["present", "target", *wanted])
        at = out["sample_id"][rows] - chunk * self.manifest.chunk_rows
        bits = table["present"].to_numpy()[at]
        targets, which = np.unique(at, return_inverse=True)
        stored = table["target"].take(targets).combine_chunks()
        out["target"][rows] = decode_targets(manifest.task, stored)[which]
        present = (bits[:, None] >> np.arange(len(modalities), dtype=np.uint16) & 1).astype(bool)
        if impairment is not None and impairment.missing:
            present = _left(present, self._lacking(impairment, split)[out["sample_id"][rows]])
        out["present"][rows] = kept & present
        for bit, m in enumerate(modalities):
            shown = rows[out["present"][rows, bit]]
            if not len(shown):
                continue
            asked, noisy = out["sample_id"][shown], impairment is not None and bool(impairment.noise.get(m.name))
            # One value is decoded once, but each copy has noise of its own.
            noises = None
            if noisy and impairment is not None:
                (distinct, copied), which = _unique(asked, copy[shown])
                noises = impairment.noises(m.name, split, distinct, epoch, copied)
            else:
                distinct, which = np.unique(asked, return_inverse=True)
            stored = table[m.name].take(distinct - chunk * self.manifest.chunk_rows).combine_chunks()
            where = f"{self.root / self._place(split, chunk)[0].file}, chunk {chunk}, modality {m.name!r}"
            if stored.null_count:
                raise EquipoiseError(f"{where}: a value marked as present is null: prepare the data set again.")
            values, lengths = self._decoder(bit)(stored, noises)
            if values.dtype == np.float32 and not np.isfinite(values).all():
                raise EquipoiseError(f"{where}: a decoded value is not finite: prepare the data set again.")
            self.decoded[m.name] += len(distinct)
            out[m.name][shown] = values[which]
            if lengths is not None:
                out[f"{m.name}_length"][shown] = lengths[which]

    def _lacking(self, impairment: Impairment, split: str) -> NDArray[np.bool_]:
        """Which modalities an impairment takes from every row of a split: bool [rows, M]; the last one asked for is kept."""
        key = (impairment.model_dump_json(), split)
        if self._impaired is None or self._impaired[0] != key:
            rows = self.manifest.splits[split].rows
            table = np.stack([impairment.lacking(m, split, rows) for m in self.manifest.names], axis=1)
            self._impaired = key, table
        return self._impaired[1]

    def _ids(self, split: str, sample_ids: ArrayLike) -> NDArray[np.int64]:
        rows = self.manifest.split(split).rows
        ids = np.asarray(sample_ids)
        if ids.ndim != 1 or (ids.size and ids.dtype.kind not in "iu"):
            raise EquipoiseError(f"sample_ids must be integers of shape [n], found {ids.dtype} {ids.shape}.")
        ids = ids.astype(np.int64)
        bad = ids[(ids < 0) | (ids >= rows)]
        if bad.size:
            raise EquipoiseError(f"Split {split!r} has the sample ids 0..{rows - 1}, not {bad[0]}.")
        return ids

    def _kept(self, keep: ArrayLike | None, rows: int) -> NDArray[np.bool_]:
        names = self.manifest.names
        kept = np.asarray(True if keep is None else keep)
        if kept.dtype != bool or (keep is not None and kept.shape not in ((rows, len(names)), (len(names),))):
            raise EquipoiseError(
                f"keep must be bool of shape [{rows}, {len(names)}] (rows, modalities {', '.join(names)}) or "
                f"[{len(names)}], found {kept.dtype} {kept.shape}."
            )
        return np.broadcast_to(kept, (rows, len(names)))

    def _decoder(self, bit: int) -> Decoder:
        m = self.manifest.modalities[bit]
        if m.name not in self._decoders:
            self._decoders[m.name] = Decoder(m, self.manifest.fitted.get(m.name, {}))
        return self._decoders[m.name]

    def _place(self, split: str, chunk: int) -> tuple[Shard, int]:
        """The shard that holds a chunk, and the row group that the chunk is."""
        number, row_group = divmod(chunk, self.manifest.shard_rows // self.manifest.chunk_rows)
        return self.manifest.splits[split].shards[number], row_group

    def _table(self, split: str, chunk: int, columns: list[str]) -> pa.Table:
        """These columns of one chunk, from the cache as far as it holds them."""
        wanted = [column for column in columns if (split, chunk, column) not in self._cached]
        fresh = self._read_table(split, chunk, wanted) if wanted else None
        out: dict[str, pa.ChunkedArray] = {}
        for column in columns:
            key = (split, chunk, column)
            if key in self._cached:
                self._cached.move_to_end(key)
            elif fresh is not None:
                self._cached[key] = fresh[column]
                self._held += fresh[column].nbytes
            out[column] = self._cached[key]
        while self._held > self._cache_bytes and self._cached:
            self._held -= self._cached.popitem(last=False)[1].nbytes
        return pa.table(out)

    def _read_table(self, split: str, chunk: int, columns: list[str]) -> pa.Table:
        """These columns of one chunk. Raises `EquipoiseError` if its rows are not the manifest's."""
        self.row_groups += 1
        ids = self.manifest.chunk_ids(split, chunk)
        shard, row_group = self._place(split, chunk)
        path = self.root / shard.file
        try:
            table = self._file(shard).read_row_group(row_group, columns=["sample_id", *columns])
        except (pa.ArrowException, OSError) as error:
            raise EquipoiseError(f"{path} is damaged ({error}): prepare the data set again.") from error
        if not np.array_equal(table["sample_id"].to_numpy(), np.asarray(ids)):
            raise EquipoiseError(
                f"{path}: row group {row_group} does not hold the sample ids {ids.start}..{ids.stop - 1} of "
                f"chunk {chunk}: prepare the data set again."
            )
        return table

    def _file(self, shard: Shard) -> pq.ParquetFile:
        """The shard's open file; beyond a few, the one not used for longest is closed."""
        if shard.file not in self._files:
            file = open_parquet(self.root / shard.file, self.manifest.schema())
            chunks = -(-shard.rows // self.manifest.chunk_rows)
            rows, row_groups = file.metadata.num_rows, file.metadata.num_row_groups
            if (rows, row_groups) != (shard.rows, chunks):
                raise EquipoiseError(
                    f"{self.root / shard.file} holds {rows} rows in {row_groups} row groups, the manifest says {shard.rows} "
                    f"in {chunks}: it is not the shard that was prepared, prepare the data set again."
                )
            self._files[shard.file] = file
            if len(self._files) > _OPEN_FILES:
                self._files.popitem(last=False)[1].close(force=True)
        self._files.move_to_end(shard.file)
        return self._files[shard.file]


def _left(present: NDArray[np.bool_], lacking: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """What rows are left with, bool [n, M]: a row that would be left with nothing keeps what it has."""
    left = present & ~lacking
    return np.where(left.any(axis=1, keepdims=True), left, present)


def _unique(
    ids: NDArray[np.int64], copies: NDArray[np.int64]
) -> tuple[tuple[NDArray[np.int64], NDArray[np.int64]], NDArray[np.int64]]:
    """The distinct pairs of (id, copy) as two columns, and which of them each row is."""
    distinct, which = np.unique(np.stack([ids, copies], axis=1), axis=0, return_inverse=True)
    return (distinct[:, 0], distinct[:, 1]), which.reshape(-1)
