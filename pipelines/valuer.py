"""Valuing a chunk: read it, score every coalition in one pass, write one atomic file. Also what a valuation actor runs."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from equipoise.datasets.impairment import Impairment
from equipoise.datasets.reading import Reader
from equipoise.models.batch import to_batch
from equipoise.models.contract import MultimodalModel
from equipoise.models.errors import EquipoiseError
from equipoise.pipelines.assembly import build_seeded
from equipoise.pipelines.files import atomic
from equipoise.pipelines.fingerprint import model_hash
from equipoise.pipelines.seats import sit
from equipoise.valuation.coalitions import members
from equipoise.valuation.store import StoreInfo, write_chunk
from equipoise.valuation.sweep import coalition_logits


@dataclass(frozen=True)
class Sweep:
    """One pass over a split with one set of weights: everything a valuer needs, and where the chunks go.

    `ids` is a .npy file of the sample_ids to value, None for the whole split; `thorough` asks for the costly metrics too;
    `impairment` says what the rows lack.
    """

    data: str
    split: str
    folder: str
    weights: str
    model: Mapping[str, Any]
    unimodal: str
    info: StoreInfo
    batch_size: int
    ids: str | None = None
    thorough: bool = False
    impairment: Impairment | None = None

    def chunk_ids(self, reader: Reader, chunk: int) -> np.ndarray:
        """The sample_ids int64 to value in a chunk."""
        rows = reader.manifest.chunk_ids(self.split, chunk)
        if self.ids is None:
            return np.arange(rows.start, rows.stop, dtype=np.int64)
        wanted = np.load(self.ids, mmap_mode="r", allow_pickle=False)
        first, last = np.searchsorted(wanted, [rows.start, rows.stop])
        return np.asarray(wanted[first:last], dtype=np.int64)


class Valuer:
    """Values chunks with the weights it is told to use; loads data and weights once and keeps them.

    Args:
        threads: torch threads of this process; None leaves them as they are.
        device: "cpu" or "cuda:<i>", counted round the GPUs that this process sees.
        cores: to bind this process to; None: any.
    """

    def __init__(self, threads: int | None = None, device: str = "cpu", cores: Sequence[int] | None = None) -> None:
        import torchmetrics  # noqa: F401  # the first chunk would pay for it

        sit(threads, cores)
        self._device = torch.device(device)
        if self._device.type == "cuda":
            self._device = torch.device("cuda", (self._device.index or 0) % torch.cuda.device_count())
        self._reader: Reader | None = None
        self._model: MultimodalModel | None = None
        self._loaded = ""

    def pid(self) -> int:
        """The process that this valuer lives in."""
        return os.getpid()

    def value(self, sweep: Sweep, chunk: int) -> dict[str, float]:
        """Value one chunk and write its file and, before it, the metric states beside it.

        Returns {"chunk", "rows", "seconds"}. The file of a chunk is a function of (data, weights, batch size) alone.
        """
        began = time.perf_counter()
        reader, model = self._prepared(sweep)
        task = reader.manifest.build_task()
        part = members(len(model.modalities))
        ids = sweep.chunk_ids(reader, chunk)
        # One coalition's sums and metric states over the chunk's rows that have one of its modalities.
        tally: list[dict[str, Any]] = [{"rows": 0, "loss": 0.0, "metrics": task.metrics(sweep.thorough)} for _ in part]
        scores, presents = [], []
        for at in range(0, len(ids), sweep.batch_size):
            some = ids[at : at + sweep.batch_size]
            columns = reader.read(sweep.split, some, impairment=sweep.impairment)
            batch = to_batch({**columns, "copy": np.zeros(len(some), np.int16)}, model.modalities, self._device)
            present = batch["present"]
            score = torch.zeros(len(some), len(part), dtype=torch.float32)
            # The addition shortcut pays where coalitions are many; below that a head call is as cheap, and exact.
            for c, logits in coalition_logits(model, batch, shortcut=model.linear_head and len(model.modalities) > 3):
                rows = (present & torch.from_numpy(part[c - 1]).to(present.device)).any(dim=1)
                shown, target = logits[rows].float(), batch["target"][rows]
                if len(target):
                    cell = tally[c - 1]
                    cell["rows"] += len(target)
                    cell["loss"] += float(task.losses(shown, target).double().sum())
                    cell["metrics"].update(shown.cpu(), target.cpu())
                    score[rows.cpu(), c - 1] = task.benefit(shown, target).cpu().float()
                if task.graded:
                    score[~rows.cpu(), c - 1] = float("nan")
            scores.append(score if task.graded else score.bool())
            presents.append(columns["present"])
        names = reader.source_ids(sweep.split, chunk)
        first = reader.manifest.chunk_ids(sweep.split, chunk).start
        self._write_tally(Path(sweep.folder), chunk, sweep.info.model_hash, tally)
        write_chunk(
            Path(sweep.folder),
            chunk,
            sweep.info,
            sample_id=ids,
            source_id=[names[i] for i in (ids - first).tolist()],
            score=torch.cat(scores).numpy(),
            present=np.concatenate(presents),
        )
        return {"chunk": chunk, "rows": len(ids), "seconds": time.perf_counter() - began}

    def _prepared(self, sweep: Sweep) -> tuple[Reader, MultimodalModel]:
        if self._reader is None or str(self._reader.root) != sweep.data:
            self._reader = Reader(sweep.data)
        if self._reader.manifest.hash != sweep.info.manifest_hash:
            raise EquipoiseError(
                f"The data set in {sweep.data} changed under the run (manifest hash {self._reader.manifest.hash[:12]}, the "
                f"run's is {sweep.info.manifest_hash[:12]}): prepare it again as it was, or start a new run folder."
            )
        if self._model is None or self._loaded != sweep.info.model_hash:
            state = torch.load(sweep.weights, map_location="cpu", weights_only=True)
            found = model_hash(state)
            if found != sweep.info.model_hash:
                raise EquipoiseError(
                    f"{sweep.weights} holds the weights {found[:12]}, the sweep is of {sweep.info.model_hash[:12]}."
                )
            self._model = build_seeded(sweep.model, self._reader.manifest, sweep.unimodal)
            self._model.load_state_dict(state)
            self._model.to(self._device).eval()
            self._loaded = found
        return self._reader, self._model

    @staticmethod
    def _write_tally(folder: Path, chunk: int, weights: str, tally: list[dict[str, Any]]) -> None:
        path = tally_path(folder, chunk)
        cells = [
            {
                "rows": cell["rows"],
                "loss": cell["loss"],
                "metrics": {name: dict(metric.metric_state) for name, metric in cell["metrics"].items()},
            }
            for cell in tally
        ]
        with atomic(path) as part:
            torch.save({"model_hash": weights, "coalitions": cells}, part)


def tally_path(folder: Path, chunk: int) -> Path:
    """Where the metric states of a chunk lie: they merge over chunks, so that metrics come from the sweep's own pass."""
    return folder / f"chunk-{chunk:05d}.metrics"
