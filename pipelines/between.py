"""Between two epochs: validation, the sweep of train, the plan of the next epoch. Rank 0's work; the others wait for it.

With lag 0 the sweep of train is made here, and the plan of epoch e is of the weights that e starts with. With lag 1 a
conductor makes it while the next epoch trains, and the plan of epoch e is of weights one epoch older, never of older ones:
the next boundary waits for it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from equipoise.datasets.manifest import Manifest
from equipoise.datasets.opening import open_parquet
from equipoise.datasets.reading import Reader
from equipoise.pipelines.checkpoint import Position
from equipoise.pipelines.files import atomic, write_json
from equipoise.pipelines.progress import ProgressFile
from equipoise.pipelines.run import Run
from equipoise.pipelines.seats import sit
from equipoise.pipelines.sweep_schedule import SweepSchedule
from equipoise.pipelines.sweeps import SweepResult, ValuationLostError, read_result, run_sweep
from equipoise.valuation import Plan
from equipoise.valuation.store import iter_chunks


class Between:
    """What rank 0 does at a boundary; every method returns the seconds that it took, as columns of metrics.parquet.

    Args:
        run, manifest, schedule: what is trained, on what, and when train is swept.
        valuers: Ray actor handles of `Valuer`.
        conductor: the handle of a `Conductor`; needed with lag 1 only.
        progress: where to say what is going on.
    """

    def __init__(
        self,
        run: Run,
        manifest: Manifest,
        schedule: SweepSchedule,
        valuers: Sequence[Any],
        conductor: Any,
        progress: ProgressFile,
    ) -> None:
        self.run, self.manifest, self.schedule = run, manifest, schedule
        self.valuers, self.conductor, self.progress = valuers, conductor, progress
        self.config = run.config
        self._lost = False
        self._pending: tuple[int, Any] | None = None

    def validate(self, epoch: int, weights: Path) -> dict[str, float]:
        """Finish the sweep that ran beside the epoch, then validate the epoch's own weights."""
        self._lost = False
        seconds = {}
        if self._pending is not None:
            began = time.perf_counter()
            self._finish()
            seconds["seconds/sweep"] = time.perf_counter() - began
        began = time.perf_counter()
        sweep = self.run.sweep("validation", epoch, weights)
        if not self._valued(sweep, "validation", epoch):
            # Without actors the run still needs its validation: in this process, to the same bits.
            run_sweep(sweep, None, self._shows("validation", epoch))
        return {**seconds, "seconds/validation": time.perf_counter() - began}

    def value(self, epoch: int, weights: Path, last: bool) -> dict[str, float]:
        """Sweep train, unless that can go on beside the next epoch, and plan the next epoch."""
        seconds = {}
        if self.schedule.wants(epoch, last) and (self.schedule.lag == 0 or last):
            began = time.perf_counter()
            self._valued(self._sweep(epoch, weights, last), "sweep of train", epoch)
            seconds["seconds/sweep"] = time.perf_counter() - began
        began = time.perf_counter()
        if not last:
            self._plan(epoch + 1)
        return {**seconds, "seconds/plan": time.perf_counter() - began}

    def begin(self, epoch: int, weights: Path) -> None:
        """With lag 1: start the sweep of train that goes on beside the next epoch. `weights` must stay until it is done."""
        if self.schedule.lag == 1 and self.schedule.wants(epoch, last=False) and not self._lost:
            sweep = self._sweep(epoch, weights, last=False)
            self._pending = epoch, self.conductor.run.remote(sweep, self.valuers, self.config.valuation.timeout)

    def resume(self, position: Position, weights: Path) -> None:
        """With lag 1: what is missing of the sweep that ran beside the epoch when it was cut off, before it goes on."""
        epoch = position.epoch - 1
        if self.schedule.lag == 1 and self.schedule.wants(epoch, last=False) and self.result(epoch) is None:
            self.begin(epoch, weights)
            self._finish()

    @property
    def pending(self) -> Position | None:
        """The checkpoint whose weights an unfinished sweep still reads."""
        return None if self._pending is None else Position(self._pending[0] + 1, 0)

    def result(self, epoch: int) -> SweepResult | None:
        """What the sweep of train with the weights after `epoch` found, None where none was finished."""
        folder = self.run.values_folder("train", epoch)
        return read_result(folder) if epoch >= 0 and (folder / "matrix.json").is_file() else None

    # Sweeps.

    def _sweep(self, epoch: int, weights: Path, last: bool) -> Any:
        ids, wanted = self.schedule.ids(epoch, last), None
        if ids is not None:
            wanted = self.run.path / "plans" / f"{epoch:04d}-valued.npy"
            with atomic(wanted) as part, part.open("wb") as file:
                np.save(file, ids, allow_pickle=False)
        return self.run.sweep("train", epoch, weights, ids=wanted)

    def _valued(self, sweep: Any, phase: str, epoch: int) -> bool:
        """Have the actors value a split; False where they are lost and the run is to go on without them."""
        if self._lost:
            return False
        try:
            run_sweep(sweep, self.valuers, self._shows(phase, epoch), timeout=self.config.valuation.timeout)
        except ValuationLostError as lost:
            self._give_up(lost)
            return False
        return True

    def _finish(self) -> None:
        """Wait for the sweep that the conductor makes."""
        import ray

        assert self._pending is not None
        epoch, ref = self._pending
        folder = self.run.values_folder("train", epoch)
        total = self.manifest.num_chunks("train")
        while not ray.wait([ref], timeout=0.2)[0]:
            self.progress.write("sweep of train", len(list(folder.glob("chunk-*.parquet"))), total, epoch=epoch)
        self._pending = None
        try:
            ray.get(ref)
        except ValuationLostError as lost:
            self._give_up(lost)

    def _give_up(self, lost: ValuationLostError) -> None:
        if self.config.on_valuation_loss == "stop":
            raise lost
        self._lost = True

    def _shows(self, phase: str, epoch: int) -> Any:
        return lambda done, total, left: self.progress.write(phase, done, total, epoch=epoch)

    # Plans.

    def _plan(self, epoch: int) -> None:
        """The plan of an epoch, from the sweep that the resampler names: a pure function of files and the seed."""
        resampler, seed = self.schedule.resampler, self.config.seed
        source = resampler.values_epoch(epoch, self.schedule.lag)
        if source is None:
            return
        if self.result(source) is None:
            self._plan_again(epoch)
            return
        folder = self.run.values_folder("train", source)
        rows, modalities = self.manifest.splits["train"].rows, len(self.manifest.modalities)
        expected = {"manifest_hash": self.manifest.hash, "epoch": str(source)}
        plan = resampler.plan(
            epoch,
            iter_chunks(folder, expected, opener=open_parquet),
            rows,
            modalities,
            seed=seed,
            lag=self.schedule.lag,
            present=Reader(self.config.data).present("train", self.config.impairment),
            state=self._smoothed(source, folder, expected) if resampler.keeps_state else None,
        )
        plan.save(self.run.plan(epoch))

    def _plan_again(self, epoch: int) -> None:
        """The actors are lost and the run is to go on: the newest plan once more, or a plain one where none was made."""
        plans = [e for e in range(epoch) if self.run.plan(e).exists()]
        rows, modalities = self.manifest.splits["train"].rows, len(self.manifest.modalities)
        plan = Plan.load(self.run.plan(plans[-1])) if plans else Plan.plain(rows, modalities)
        plan.save(self.run.plan(epoch))
        write_json(self.run.reused(epoch), {"plan_of_epoch": plans[-1] if plans else None})

    def _smoothed(self, source: int, folder: Path, expected: Mapping[str, Any]) -> NDArray[np.float64]:
        """The resampler's state after a sweep, kept beside the plans."""
        path = self.run.path / "plans" / f"{source:04d}.state.npy"
        earlier = sorted(p for p in path.parent.glob("*.state.npy") if int(p.name[:4]) < source)
        previous = np.load(earlier[-1], allow_pickle=False) if earlier else None
        state = self.schedule.resampler.state(
            iter_chunks(folder, expected, opener=open_parquet),
            self.manifest.splits["train"].rows,
            len(self.manifest.modalities),
            previous,
        )
        assert state is not None
        with atomic(path) as part, part.open("wb") as file:
            np.save(file, state, allow_pickle=False)
        return state


class Conductor:
    """Makes sweeps while training goes on: an actor of its own, so that rank 0 has nothing to do but train."""

    def __init__(self, threads: int | None = None, cores: Sequence[int] | None = None) -> None:
        sit(threads, cores)

    def run(self, sweep: Any, valuers: Sequence[Any], timeout: float) -> None:
        """Value every chunk that is missing; see `run_sweep`. What it found lies in the sweep's folder."""
        run_sweep(sweep, valuers, timeout=timeout)
