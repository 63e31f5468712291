"""An epoch's entry list: every sample, copy and repeat of it, in the one order that all workers share.

The list is global and explicit. Chunks of consecutive sample ids are put in a random order and cut into windows; the entries
of a window are shuffled among themselves, so that a reader has a few chunks open at a time; the last window is padded to
whole batches. Step t is entries [t G, (t + 1) G) and each rank takes its slice of them: a global batch does not depend on the
number of workers, and a resume at step t starts at entry t G. All order comes from hashes of (seed, epoch, ...).
"""

import json
from hashlib import sha256

import numpy as np
from numpy.typing import NDArray

from equipoise.models import rowhash
from equipoise.models.errors import EquipoiseError
from equipoise.valuation.coalitions import check_modalities
from equipoise.valuation.draws import shuffled
from equipoise.valuation.plan import Plan

# keep: bits of the modalities kept. copy: 0 the original, then unimodal copies in the order of modalities, then repeats, then
# padding, so that (epoch, sample_id, copy) names an entry.
ENTRY = np.dtype([("sample_id", "<i8"), ("copy", "<i2"), ("keep", "<u2")])


def check_batch_size(batch_size: int, num_rows: int, world_size: int) -> None:
    """Raise an `EquipoiseError` where some worker would have no row of a batch."""
    if world_size < 1:
        raise EquipoiseError(f"There must be at least 1 worker, found {world_size}.")
    if batch_size < world_size:
        raise EquipoiseError(
            f"batch_size={batch_size} is the size of the global batch and cannot be shared by {world_size} workers: raise it to "
            f"{world_size} or more, or use fewer workers."
        )
    if num_rows < world_size:
        raise EquipoiseError(f"A split of {num_rows} rows cannot be shared by {world_size} workers: use fewer workers.")


class EntryList:
    """The entries of one epoch, window by window; nothing but one window is ever in memory.

    `total` entries = `steps` global batches of `batch_size`, the last `padding` of them repeats of originals of the last
    window. Equal arguments give equal lists; `digest` names them.
    """

    def __init__(
        self,
        plan: Plan | None,
        num_rows: int,
        num_modalities: int,
        chunk_rows: int,
        seed: int,
        epoch: int,
        batch_size: int,
        chunks_per_window: int = 8,
    ) -> None:
        check_modalities(num_modalities)
        check_batch_size(batch_size, num_rows, 1)
        if chunk_rows < 1 or chunks_per_window < 1:
            raise EquipoiseError(
                f"chunk_rows={chunk_rows} and chunks_per_window={chunks_per_window} must be at least 1."
            )
        self.plan = Plan.plain(num_rows, num_modalities) if plan is None else plan
        if self.plan.copies.shape != (num_rows, num_modalities) or self.plan.repeats.shape != (num_rows,):
            raise EquipoiseError(
                f"The plan is for {list(self.plan.copies.shape)} (rows, modalities) and the split has "
                f"[{num_rows}, {num_modalities}]: it is a plan of other data."
            )
        self.num_rows, self.num_modalities, self.chunk_rows = num_rows, num_modalities, chunk_rows
        self.seed, self.epoch, self.batch_size, self.chunks_per_window = seed, epoch, batch_size, chunks_per_window

        num_chunks = -(-num_rows // chunk_rows)
        order = shuffled(np.arange(num_chunks), seed, "chunks", epoch)
        # Windows of equal size, to a chunk: else the last one might be a sliver, and its few rows all of the padding.
        self._windows = np.array_split(order, -(-num_chunks // chunks_per_window))
        sizes = [sum(int(self._per_row(self._rows(c)).sum()) for c in window) for window in self._windows]
        self.padding = -sum(sizes) % batch_size
        sizes[-1] += self.padding
        self._offsets = np.cumsum([0, *sizes])
        last = sum(len(self._rows(c)) for c in self._windows[-1])
        if 1 + 2 * 255 + -(-self.padding // last) > np.iinfo(np.int16).max:
            raise EquipoiseError(
                f"batch_size={batch_size} needs {self.padding} entries of padding from {last} rows: choose a smaller batch_size."
            )

    @property
    def total(self) -> int:
        return int(self._offsets[-1])

    @property
    def steps(self) -> int:
        return self.total // self.batch_size

    @property
    def num_windows(self) -> int:
        return len(self._windows)

    def last_step(self, w: int) -> int:
        """The last step that takes an entry of window w."""
        return int(self._offsets[w + 1] - 1) // self.batch_size

    def window(self, w: int) -> tuple[int, NDArray[np.void]]:
        """Window w: the global position of its first entry, and its entries (dtype `ENTRY`) in order."""
        rows = np.concatenate([self._rows(c) for c in self._windows[w]])
        entries = self._expand(rows)
        if w == self.num_windows - 1:
            entries = np.concatenate([entries, self._pad(rows)])
        order = np.argsort(
            rowhash.words(self.seed, "entries", self.epoch, entries["sample_id"], entries["copy"]), kind="stable"
        )
        return int(self._offsets[w]), entries[order]

    def rank_entries(self, w: int, rank: int, world_size: int, start_step: int = 0) -> NDArray[np.void]:
        """The entries of window w that are rank's, in order, from step `start_step` on.

        Of each global batch rank r has positions floor(r G / W) to floor((r + 1) G / W).
        """
        check_batch_size(self.batch_size, self.num_rows, world_size)
        first, last = self._share(rank, world_size)
        if self._offsets[w + 1] <= start_step * self.batch_size:
            return np.empty(0, ENTRY)
        offset, entries = self.window(w)
        step, place = np.divmod(offset + np.arange(len(entries)), self.batch_size)
        return entries[(step >= start_step) & (first <= place) & (place < last)]

    def local_batch_size(self, rank: int, world_size: int) -> int:
        """Rows of each global batch that are rank's."""
        first, last = self._share(rank, world_size)
        return last - first

    def digest(self) -> str:
        """sha256 of all that the list is made of."""
        names = ("num_rows", "num_modalities", "chunk_rows", "seed", "epoch", "batch_size", "chunks_per_window")
        hashed = sha256(json.dumps({name: int(getattr(self, name)) for name in names}).encode())
        for start in range(0, self.num_rows, self.chunk_rows):
            rows = slice(start, start + self.chunk_rows)
            hashed.update(self.plan.copies[rows].tobytes() + self.plan.repeats[rows].tobytes())
        return hashed.hexdigest()

    def _share(self, rank: int, world_size: int) -> tuple[int, int]:
        return rank * self.batch_size // world_size, (rank + 1) * self.batch_size // world_size

    def _rows(self, chunk: int) -> NDArray[np.int64]:
        return np.arange(chunk * self.chunk_rows, min(self.num_rows, (chunk + 1) * self.chunk_rows))

    def _per_row(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Entries of each row before padding: int64 [n]."""
        added: NDArray[np.int64] = self.plan.copies[rows].sum(axis=1, dtype=np.int64) + self.plan.repeats[rows]
        return 1 + added

    def _expand(self, rows: NDArray[np.int64]) -> NDArray[np.void]:
        """All entries of the rows, sample by sample."""
        counts = np.column_stack([np.ones(len(rows), np.int64), self.plan.copies[rows], self.plan.repeats[rows]])
        kept = [self._everything, *(1 << m for m in range(self.num_modalities)), self._everything]
        per_row = counts.sum(axis=1)
        entries = np.empty(int(per_row.sum()), ENTRY)
        entries["sample_id"] = np.repeat(rows, per_row)
        entries["copy"] = np.arange(len(entries)) - np.repeat(np.cumsum(per_row) - per_row, per_row)
        entries["keep"] = np.repeat(np.tile(kept, len(rows)), counts.ravel())
        return entries

    def _pad(self, rows: NDArray[np.int64]) -> NDArray[np.void]:
        """Repeats of random rows of the last window, each once before any twice; their copies count on."""
        entries = np.empty(self.padding, ENTRY)
        turn, place = np.divmod(np.arange(self.padding), len(rows))
        padded = shuffled(rows, self.seed, "padding", self.epoch)[place]
        entries["sample_id"] = padded
        entries["copy"] = self._per_row(padded) + turn
        entries["keep"] = self._everything
        return entries

    @property
    def _everything(self) -> int:
        return (1 << self.num_modalities) - 1
