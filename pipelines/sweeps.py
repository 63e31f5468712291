"""A sweep over a split: chunks handed to valuers until none is missing, and what follows from their files."""

from __future__ import annotations

import time
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from equipoise.datasets.manifest import Manifest
from equipoise.datasets.opening import open_parquet
from equipoise.models.errors import EquipoiseError
from equipoise.pipelines.files import read_json, write_json
from equipoise.pipelines.valuer import Sweep, Valuer, tally_path
from equipoise.valuation.coalitions import coalition_name, members
from equipoise.valuation.store import iter_chunks, missing_chunks


class ValuationLostError(EquipoiseError):
    """No valuation actor has finished a chunk for `valuation.timeout` seconds, or none is left."""


@dataclass(frozen=True)
class SweepResult:
    """What a sweep of a split says of it.

    `matrix` {coalition id: {"rows", "loss", and the task's metrics}}; `contributions` {modality: mean over the samples
    that have it}; NaN where no sample does. `model_hash` says whose they are.
    """

    matrix: dict[int, dict[str, float]]
    contributions: dict[str, float]
    model_hash: str


def run_sweep(
    sweep: Sweep,
    valuers: Sequence[Any] | None = None,
    on_chunk: Callable[[int, int, int], None] | None = None,
    timeout: float = 600.0,
) -> SweepResult:
    """Value every chunk that has no valid file yet: a first run, a retry and a resume are this one path.

    Args:
        sweep: what to value.
        valuers: Ray actor handles of `Valuer`; None values in this process.
        on_chunk: called with (rows done, rows in all, chunks left).
        timeout: seconds without a finished chunk after which the actors are lost.

    Raises:
        ValuationLostError: the actors are lost.
        EquipoiseError: what a valuer found wrong with data or weights; a chunk that keeps killing its actor.
    """
    manifest = Manifest.load(Path(sweep.data))
    indices = _indices(sweep, manifest)
    folder = Path(sweep.folder)
    pending = missing_chunks(folder, indices, sweep.info, opener=open_parquet)
    total = sum(len(manifest.chunk_ids(sweep.split, c)) for c in indices)
    done = total - sum(len(manifest.chunk_ids(sweep.split, c)) for c in pending)

    def finished(report: dict[str, float], left: int) -> None:
        nonlocal done
        done += int(report["rows"])
        if on_chunk:
            on_chunk(done, total, left)

    if on_chunk:
        on_chunk(done, total, len(pending))
    if valuers is None:
        valuer = Valuer()
        for n, chunk in enumerate(pending, start=1):
            finished(valuer.value(sweep, chunk), len(pending) - n)
    else:
        _hand_out(sweep, pending, valuers, finished, timeout)
    left = missing_chunks(folder, indices, sweep.info, opener=open_parquet)
    if left:
        raise EquipoiseError(
            f"{len(left)} of {len(indices)} chunks of {sweep.split} have no values in {folder}: chunk {left[0]} first."
        )
    result = SweepResult(_matrix(sweep, indices, manifest), _contributions(folder, sweep), sweep.info.model_hash)
    write_json(folder / "matrix.json", asdict(result))
    return result


def read_result(folder: Path) -> SweepResult:
    """The result of a finished sweep, from its folder."""
    found = read_json(folder / "matrix.json")
    return SweepResult({int(c): row for c, row in found["matrix"].items()}, found["contributions"], found["model_hash"])


def _indices(sweep: Sweep, manifest: Manifest) -> list[int]:
    if sweep.ids is None:
        return list(range(manifest.num_chunks(sweep.split)))
    ids = np.load(sweep.ids, mmap_mode="r", allow_pickle=False)
    chunks: list[int] = np.unique(np.asarray(ids) // manifest.chunk_rows).tolist()
    return chunks


def _hand_out(
    sweep: Sweep,
    pending: list[int],
    valuers: Sequence[Any],
    finished: Callable[[dict[str, float], int], None],
    timeout: float,
) -> None:
    """Each idle valuer takes the next chunk. Ray restarts a dead one and repeats its chunk, which writes the same file.

    A valuer that Ray does not bring back is left out; its chunk goes to another.
    """
    import ray
    from ray.exceptions import GetTimeoutError, RayActorError

    waiting, idle = list(reversed(pending)), list(valuers)
    busy: dict[Any, tuple[Any, int]] = {}
    deaths: Counter[int] = Counter()
    newest = time.monotonic()
    while waiting or busy:
        while waiting and idle:
            valuer, chunk = idle.pop(), waiting.pop()
            busy[valuer.value.remote(sweep, chunk)] = (valuer, chunk)
        ready: list[Any] = []
        if busy:
            ready, _ = ray.wait(list(busy), num_returns=1, timeout=max(0.0, newest + timeout - time.monotonic()))
        if not ready:
            for ref in busy:
                ray.cancel(ref)
            raise ValuationLostError(_lost(sweep, len(waiting) + len(busy), len(valuers), timeout if busy else None))
        valuer, chunk = busy.pop(ready[0])
        try:
            finished(ray.get(ready[0]), len(waiting) + len(busy))
            newest = time.monotonic()
        except RayActorError as error:
            deaths[chunk] += 1
            waiting.append(chunk)
            try:
                ray.get(valuer.pid.remote(), timeout=min(timeout, 30.0))
            except (RayActorError, GetTimeoutError):
                continue
            if deaths[chunk] > 1:
                raise EquipoiseError(
                    f"Chunk {chunk} of {sweep.split} could not be valued: its actor died again and again ({error}). Look "
                    "for memory: valuation.batch_size is how many rows it takes at once."
                ) from error
        idle.append(valuer)


def _lost(sweep: Sweep, left: int, actors: int, timeout: float | None) -> str:
    how = "none of them is left" if timeout is None else f"none of them has finished a chunk for {timeout:g} s"
    return (
        f"The {actors} valuation actors are lost: {how} (valuation.timeout), with {left} chunks of {sweep.split} to value. Look "
        "whether their machines or GPUs are gone or full, then run the same command again: what was valued is kept. "
        "on_valuation_loss=reuse trains on with the last plan instead."
    )


def _matrix(sweep: Sweep, indices: Sequence[int], manifest: Manifest) -> dict[int, dict[str, float]]:
    folder = Path(sweep.folder)
    task = manifest.build_task()
    count = 2 ** len(manifest.modalities) - 1
    rows, loss = np.zeros(count, np.int64), np.zeros(count)
    metrics = [task.metrics(sweep.thorough) for _ in range(count)]
    for chunk in indices:
        tally = torch.load(tally_path(folder, chunk), map_location="cpu", weights_only=True)
        if tally["model_hash"] != sweep.info.model_hash:
            raise EquipoiseError(
                f"{tally_path(folder, chunk)} is of other weights than its chunk: delete {folder} and value the split again."
            )
        for c, cell in enumerate(tally["coalitions"]):
            rows[c] += cell["rows"]
            loss[c] += cell["loss"]
            if cell["rows"]:
                for name, state in cell["metrics"].items():
                    metrics[c][name].merge_state(state)
    out = {}
    for c in range(count):
        row = {"rows": float(rows[c]), "loss": float(loss[c] / rows[c]) if rows[c] else float("nan")}
        if rows[c]:
            with warnings.catch_warnings():
                # A metric made of merged states does not count as updated.
                warnings.filterwarnings("ignore", message="The ``compute`` method of metric")
                row |= {name: float(value) for name, value in metrics[c].compute().items()}
        out[c + 1] = row
    return out


def _contributions(folder: Path, sweep: Sweep) -> dict[str, float]:
    sums = np.zeros(len(sweep.info.modalities))
    counts = np.zeros(len(sweep.info.modalities))
    for values in iter_chunks(folder, sweep.info, opener=open_parquet):
        sums += np.nansum(values.contributions, axis=0)
        counts += values.present.sum(axis=0)
    means = np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)
    return dict(zip(sweep.info.modalities, means.tolist(), strict=True))


def matrix_rows(result: SweepResult, modalities: Sequence[str]) -> list[dict[str, Any]]:
    """The missing-modality matrix as rows: full set first, then by size, then in order."""
    sizes = members(len(modalities)).sum(axis=1)
    order = sorted(result.matrix, key=lambda c: (-sizes[c - 1], c))
    return [
        {"coalition": coalition_name(c, modalities), "modalities": int(sizes[c - 1]), **result.matrix[c]} for c in order
    ]
