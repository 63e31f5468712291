"""A rank's batches of an epoch: one Ray Data pipeline with one fused map that reads, masks and decodes.

Units are the windows of the epoch's entry list; a unit is named by its number alone, and the map works out its entries
from the plan file, so nothing but numbers travels to the data tasks. The global batch of step t is entries
[t G, (t + 1) G), whatever the number of workers, and a resume at step t reads from there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from equipoise.datasets.impairment import Impairment
from equipoise.datasets.manifest import Manifest
from equipoise.datasets.reading import Reader
from equipoise.pipelines.seats import sit
from equipoise.valuation.entries import EntryList
from equipoise.valuation.plan import Plan

#: A block of decoded rows is kept near this size, never a whole resampled window.
BLOCK_BYTES = 4 << 20
#: A window's encoded rows are read once, not once a block, while they fit in this.
WINDOW_BYTES = 256 << 20


@dataclass(frozen=True)
class EpochSpec:
    """What an epoch of one rank is a pure function of."""

    data: str
    plan: str | None
    seed: int
    epoch: int
    batch_size: int
    rank: int
    world_size: int
    start_step: int = 0
    impairment: Impairment | None = None

    def entries(self, manifest: Manifest) -> EntryList:
        return EntryList(
            Plan.load(Path(self.plan)) if self.plan else None,
            num_rows=manifest.splits["train"].rows,
            num_modalities=len(manifest.modalities),
            chunk_rows=manifest.chunk_rows,
            seed=self.seed,
            epoch=self.epoch,
            batch_size=self.batch_size,
        )


class ReadWindow:
    """Window number -> decoded rows of this rank in step order: the one map of the pipeline."""

    def __init__(self, spec: EpochSpec, cores: Sequence[int] | None = None) -> None:
        self.spec, self.cores = spec, cores
        self._reader: Reader | None = None

    def __getstate__(self) -> dict[str, object]:
        return {"spec": self.spec, "cores": self.cores, "_reader": None}

    def __call__(self, unit: Any) -> Iterator[dict[str, np.ndarray]]:
        if self._reader is None:
            sit(None, self.cores)
            self._reader = Reader(self.spec.data, cache_bytes=WINDOW_BYTES)
        manifest = self._reader.manifest
        entries = self.spec.entries(manifest)
        bit = np.arange(len(manifest.modalities))
        row_bytes = sum(m.decoded_dtype.itemsize * int(np.prod(m.decoded_shape)) for m in manifest.modalities)
        block = max(1, BLOCK_BYTES // max(row_bytes, 1))
        for window in unit["window"].tolist():
            mine = entries.rank_entries(window, self.spec.rank, self.spec.world_size, self.spec.start_step)
            for at in range(0, len(mine), block):
                part = mine[at : at + block]
                keep = (part["keep"][:, None] >> bit & 1).astype(bool)
                columns = self._reader.read(
                    "train",
                    part["sample_id"],
                    keep,
                    impairment=self.spec.impairment,
                    epoch=self.spec.epoch,
                    copies=part["copy"],
                )
                yield {**columns, "copy": part["copy"].astype(np.int16)}


def rank_batches(
    spec: EpochSpec, manifest: Manifest, cpus: float | None = None, cores: Sequence[int] | None = None
) -> Iterator[dict[str, np.ndarray]]:
    """This rank's decoded columns, one step after another from `spec.start_step` on.

    Args:
        spec: the epoch and this rank's place in it.
        manifest: of the data set.
        cpus: this rank's share of the CPUs for data tasks; None leaves it to Ray.
        cores: what its data tasks are bound to, those of the workers where the actors have cores of their own; None: any.
    """
    import ray

    entries = spec.entries(manifest)
    units = [{"window": w} for w in range(entries.num_windows) if entries.last_step(w) >= spec.start_step]
    if not units:
        return
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    options = context.execution_options
    options.preserve_order = True
    if cpus is not None:
        options.resource_limits = options.resource_limits.copy(cpu=cpus)
    rows = ray.data.from_items(units, override_num_blocks=len(units))
    decoded = rows.map_batches(ReadWindow(spec, cores), batch_size=1, batch_format="numpy")
    local = entries.local_batch_size(spec.rank, spec.world_size)
    batches: Iterator[Any] = iter(decoded.iter_batches(batch_size=local, batch_format="numpy", prefetch_batches=2))
    for step, columns in enumerate(batches, start=spec.start_step):
        assert len(columns["sample_id"]) == local, f"step {step} of rank {spec.rank} is short"
        yield columns
