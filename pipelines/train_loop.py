"""What every training worker runs: epochs of balanced steps, and between them the boundary where samples are valued."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.distributed as dist

from equipoise import balancers, valuation
from equipoise.balancers import BalancedStep
from equipoise.models.batch import to_batch
from equipoise.models.contract import MultimodalModel
from equipoise.models.errors import EquipoiseError
from equipoise.pipelines.assembly import assemble, autocast_dtype
from equipoise.pipelines.batches import EpochSpec, rank_batches
from equipoise.pipelines.between import Between
from equipoise.pipelines.checkpoint import Position
from equipoise.pipelines.config import Config
from equipoise.pipelines.early_stopping import EarlyStopping
from equipoise.pipelines.files import write_json
from equipoise.pipelines.history import History
from equipoise.pipelines.optimizers import build_optimizer, build_schedule
from equipoise.pipelines.progress import ProgressFile
from equipoise.pipelines.run import Run
from equipoise.pipelines.seats import sit
from equipoise.pipelines.sentences import refused, write_sentence
from equipoise.pipelines.sweep_schedule import SweepSchedule
from equipoise.pipelines.sweeps import SweepResult, read_result
from equipoise.pipelines.trackers import tracker_for
from equipoise.valuation.coalitions import coalition_name

#: The workers agree whether to stop once in so many steps, and at an epoch's end: one small broadcast.
STOP_EVERY = 8


def train_worker(settings: Mapping[str, Any]) -> None:
    """The function that Ray Train runs on every worker; see `Training`."""
    config = Config.model_validate(settings["config"])
    run = Run(settings["run"], config)
    if refused(run.path):
        # A sentence for the user was written by the attempt before: trying again cannot mend what it names.
        return
    try:
        cores = settings["cores"]
        sit(settings["threads"], cores)
        Training(run, settings["valuers"], settings["conductor"], settings["data_cpus"], cores).train()
    except Exception as error:
        write_sentence(run.path, error)
        raise


class Training:
    """One worker's part of a run. Rank 0 also values, plans and writes; the others wait at the boundary.

    Between epochs: validation by a sweep; a sweep of train where the resampler or the balancer asks for one; the plan of
    the next epoch (`Between`); `on_epoch`; the checkpoint; the report. A restarted worker group goes on from the last
    checkpoint, and repeats what came after it with the same batches and the same plans.
    """

    def __init__(self, run: Run, valuers: Sequence[Any], conductor: Any, data_cpus: float, cores: Any) -> None:
        import ray.train
        import ray.train.torch

        config = run.config
        context = ray.train.get_context()
        self.rank, self.world_size = context.get_world_rank(), context.get_world_size()
        self.leads = self.rank == 0
        self.run, self.config, self.data_cpus, self.cores = run, config, data_cpus, cores
        self.manifest = run.manifest
        self.task = self.manifest.build_task()
        self.device = ray.train.torch.get_device()
        model = assemble(config, self.manifest)
        # Ray moves it to the device; the balanced step wraps it itself.
        self.model = cast(MultimodalModel, ray.train.torch.prepare_model(model, parallel_strategy=None))
        self.balancer = balancers.get(config.balancer.name, **config.balancer.options)
        self.resampler = valuation.get(config.resampler.name, **config.resampler.options)
        self.optimizer = build_optimizer(self.model.parameters(), config.optimizer)
        self.schedule = build_schedule(self.optimizer, config)
        self.step = BalancedStep(
            self.model,
            self.task,
            self.balancer,
            self.optimizer,
            seed=config.seed,
            clip_norm=config.clip_norm,
            autocast=autocast_dtype(config),
            compile=config.compile,
            monitor=config.monitor,
        )
        self.position = Position(0, 0)
        self.best: dict[str, Any] | None = None
        self.stopping = EarlyStopping(config.early_stopping)
        self.stopped = False
        self.progress = ProgressFile(run.path / "progress.json")
        self.sweeps = SweepSchedule(config, self.balancer, self.resampler, self.manifest.splits["train"].rows)
        self.between = Between(run, self.manifest, self.sweeps, valuers, conductor, self.progress)
        self._resume()

    def over(self, position: Position) -> bool:
        """Whether the budget of steps or epochs, or the patience, is spent, with `position` the next to train at."""
        steps, epochs = self.config.max_steps, self.config.max_epochs
        spent = (steps is not None and self.step.step >= steps) or (epochs is not None and position.epoch >= epochs)
        return spent or self.stopping.over(position.epoch)

    def train(self) -> None:
        """Train to the end, or until someone asks to stop: then a checkpoint is left where training stands."""
        while not self.over(self.position):
            numbers = self._epoch()
            if numbers is not None:
                self._boundary(numbers)
            if self.stopped and not self.over(self.position):
                if self.leads:
                    at = self.position
                    write_json(self.run.path / "stopped.json", {"epoch": at.epoch, "step": at.step})
                break
        if self.leads:
            self.tracker.close()

    # One epoch.

    def _epoch(self) -> dict[str, Any] | None:
        """Train on what is left of the epoch; returns its numbers, None where it was stopped before its end."""
        epoch = self.position.epoch
        plan = self._plan_of(epoch)
        spec = EpochSpec(
            data=self.config.data,
            plan=None if plan is None else str(plan),
            seed=self.config.seed,
            epoch=epoch,
            batch_size=self.config.batch_size,
            rank=self.rank,
            world_size=self.world_size,
            start_step=self.position.step,
            impairment=self.config.impairment,
        )
        entries = spec.entries(self.manifest)
        self.step.epoch = epoch
        steps = entries.steps
        if self.config.max_steps is not None:
            steps = min(steps, self.position.step + self.config.max_steps - self.step.step)
        began = time.perf_counter()
        first_batch = waited = computed = 0.0
        batches = rank_batches(spec, self.manifest, self.data_cpus, self.cores)
        for columns, wait in _timed(batches, steps - self.position.step):
            first_batch = first_batch or wait
            waited += wait
            at = time.perf_counter()
            rate = self.schedule.get_last_lr()[0]
            result = self.step(to_batch(columns, self.manifest.names, self.device))
            self.schedule.step()
            took = time.perf_counter() - at
            computed += took
            self.position = Position(epoch, self.position.step + 1)
            if self.leads:
                self.steps.append(
                    {
                        "step": self.step.step - 1,
                        "epoch": epoch,
                        "step_in_epoch": self.position.step - 1,
                        "loss": result.loss,
                        **{f"loss/{name}": value for name, value in result.losses.items()},
                        **result.statistics,
                        "lr": rate,
                        "seconds/wait": wait,
                        "seconds/step": took,
                    }
                )
                made = self.position.step - spec.start_step
                rows_per_second = made * self.config.batch_size / (time.perf_counter() - began)
                self.progress.write(
                    "train",
                    self.position.step * self.config.batch_size,
                    steps * self.config.batch_size,
                    epoch=epoch,
                    note=f"{rows_per_second:,.0f} rows/s",
                )
            every = self.config.checkpoint.every_steps
            due = every is not None and self.step.step % every == 0
            ended = self.position.step == steps
            self.stopped = self._asked_to_stop(ended)
            if (due or self.stopped) and not ended:
                self._checkpoint(self.position)
                if self.stopped:
                    return None
        # An epoch that the budget cuts short never comes to its padding, or not to all of it.
        padding = entries.padding if steps == entries.steps else 0
        copies = entries.plan.copies.sum(axis=0, dtype=np.int64) if entries.plan is not None else None
        return {
            "epoch": epoch,
            "steps": self.position.step,
            "step": self.step.step,
            "entries": steps * self.config.batch_size - padding,
            "padding": padding,
            "repeats": 0 if entries.plan is None else int(entries.plan.repeats.sum(dtype=np.int64)),
            "reused_plan": int(self.run.reused(epoch).exists()),
            **{f"copies/{m}": 0 if copies is None else int(copies[i]) for i, m in enumerate(self.manifest.names)},
            "seconds/train": time.perf_counter() - began,
            "seconds/wait": waited,
            "seconds/compute": computed,
            "seconds/first_batch": first_batch,
        }

    def _asked_to_stop(self, ended: bool) -> bool:
        """Whether the workers agree to stop after this step: rank 0 looks for the file now and then, and when an epoch ends,
        whose own checkpoint then serves.
        """
        if self.step.step % STOP_EVERY and not ended:
            return False
        asked = torch.tensor([float(self.leads and self.run.stop.exists())], device=self.device)
        if self.world_size > 1:
            dist.broadcast(asked, src=0)
        return bool(asked.item())

    def _plan_of(self, epoch: int) -> Path | None:
        """The plan an epoch trains on, None for a plain one."""
        return None if self.resampler.values_epoch(epoch, self.sweeps.lag) is None else self.run.plan(epoch)

    # The boundary between epochs.

    def _boundary(self, numbers: dict[str, Any]) -> None:
        import ray.train
        import ray.train.collective

        epoch = self.position.epoch
        after = Position(epoch + 1, 0)
        draft = None
        if self.leads:
            draft = self.run.checkpoints.draft(after, self._weights())
            numbers |= self.between.validate(epoch, draft / "model.pt")
        ray.train.collective.barrier()
        validation = read_result(self.run.values_folder("validation", epoch))
        self._remember_best(validation, epoch, after)
        last = self.over(after)
        if self.leads:
            assert draft is not None
            numbers |= self.between.value(epoch, draft / "model.pt", last)
        ray.train.collective.barrier()
        # A sweep for the record alone changes nothing.
        newest = epoch - self.sweeps.lag
        used = self.balancer.needs_values or self.sweeps.steers(newest, last and newest == epoch)
        train = self.between.result(newest) if used else None
        self.balancer.on_epoch(validation.matrix, train.contributions if train else None)
        self.position = after
        metrics = {**numbers, **self._metrics(validation)}
        if self.leads:
            self._append_metrics(epoch, metrics, last)
        checkpoint = self._commit(draft, after)
        if self.leads and checkpoint is not None and not last:
            self.between.begin(epoch, checkpoint / "model.pt")
        # Ray keeps metrics only beside a checkpoint of its own; ours lie in the run folder, so it gets a pointer.
        with tempfile.TemporaryDirectory() as folder:
            pointer = None
            if checkpoint is not None:
                write_json(Path(folder) / "checkpoint.json", {"path": str(checkpoint)})
                pointer = ray.train.Checkpoint.from_directory(folder)
            ray.train.report(metrics, checkpoint=pointer)

    def _append_metrics(self, epoch: int, metrics: dict[str, Any], last: bool) -> None:
        """Add the epoch's row; contributions stand in the row of the epoch whose weights they are of."""
        self.metrics.append(metrics)
        for row in self.metrics.rows[-2:]:
            here = row["epoch"]
            if self.sweeps.wants(here, last and here == epoch) and (found := self.between.result(here)) is not None:
                row |= {f"contribution/{m}": value for m, value in found.contributions.items()}
        # Before the checkpoint: what lies beyond a checkpoint is cut on resume, what a checkpoint lacks is lost.
        self.metrics.write()

    def _metrics(self, validation: SweepResult) -> dict[str, float]:
        names = self.manifest.names
        full = 2 ** len(names) - 1
        row: dict[str, float] = {}
        for c, cell in validation.matrix.items():
            where = "validation" if c == full else f"validation/{coalition_name(c, names)}"
            row |= {f"{where}/{name}": value for name, value in cell.items() if name != "rows"}
        return row

    def _remember_best(self, validation: SweepResult, epoch: int, after: Position) -> None:
        full = validation.matrix[2 ** len(self.manifest.names) - 1]
        value, loss, better = full[self.task.headline], full["loss"], self.task.score(full)
        self.stopping.update(epoch, better)
        # Small validation splits tie often: the lower loss then decides, not the earlier epoch.
        best = self.best
        if best is None or (better, -loss) > (self.task.score({self.task.headline: best["value"]}), -best["loss"]):
            self.best = {
                "epoch": epoch,
                "checkpoint": str(after),
                "metric": self.task.headline,
                "value": value,
                "loss": loss,
                "model_hash": validation.model_hash,
            }

    # Checkpoints.

    def _weights(self) -> dict[str, Any]:
        return {name: tensor.detach().cpu() for name, tensor in self.model.state_dict().items()}

    def _checkpoint(self, position: Position) -> None:
        """A checkpoint in mid-epoch."""
        self._commit(self.run.checkpoints.draft(position, self._weights()) if self.leads else None, position)

    def _commit(self, draft: Path | None, position: Position) -> Path | None:
        states: list[Any] = [None] * self.world_size
        own = torch.get_rng_state()
        if self.world_size > 1:
            dist.all_gather_object(states, own)
        else:
            states = [own]
        if not self.leads:
            return None
        assert draft is not None
        state = {
            "epoch": position.epoch,
            "step_in_epoch": position.step,
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "step": self.step.state_dict(),
            "best": self.best,
            "stopping": self.stopping.state_dict(),
            "rng": states,
            "modalities": list(self.manifest.names),
            "manifest_hash": self.manifest.hash,
            "fitted": json.dumps(self.manifest.fitted),
            "entries": None if self.over(position) else self._digest(position.epoch),
        }
        self.steps.write()
        folder = self.run.checkpoints.commit(draft, position, state)
        self.run.checkpoints.set_best(self.best)
        self.run.checkpoints.retain(self.config.checkpoint.keep, self.between.pending)
        self.tracker.log(self.steps.rows, self._complete(position))
        return folder

    def _complete(self, position: Position) -> list[dict[str, Any]]:
        """The rows of epochs that nothing is added to any more: with lag 1 the newest still waits for its contributions."""
        waits = self.sweeps.lag and not self.over(position)
        return self.metrics.rows[:-1] if waits else self.metrics.rows

    def _digest(self, epoch: int) -> str:
        plan = self._plan_of(epoch)
        spec = EpochSpec(
            self.config.data, str(plan) if plan else None, self.config.seed, epoch, self.config.batch_size, 0, 1
        )
        return spec.entries(self.manifest).digest()

    def _resume(self) -> None:
        """Go on from the newest checkpoint, and cut what was written after it."""
        import ray.train.collective

        positions = self.run.checkpoints.positions()
        if positions:
            weights, state = self.run.checkpoints.load(positions[-1])
            self.position = Position(state["epoch"], state["step_in_epoch"])
            if state["entries"] is not None and state["entries"] != self._digest(self.position.epoch):
                raise EquipoiseError(
                    f"The entry list of epoch {self.position.epoch} is not the one that {positions[-1]} was trained on: "
                    f"{self.run.plan(self.position.epoch)} was changed. Start again in a new folder."
                )
            self.model.load_state_dict(weights)
            self.optimizer.load_state_dict(state["optimizer"])
            self.schedule.load_state_dict(state["schedule"])
            self.step.load_state_dict(state["step"])
            self.best = state["best"]
            self.stopping.load_state_dict(state["stopping"])
            if len(state["rng"]) == self.world_size:
                torch.set_rng_state(state["rng"][self.rank])
        if self.leads:
            self.run.checkpoints.set_best(self.best)
            for path in (self.run.path / "plans").glob("[0-9]*"):
                # A plan of this epoch stays, and the state of the sweeps before it.
                if int(path.name[:4]) > self.position.epoch - ("state" in path.name):
                    path.unlink()
            self.steps = History(self.run.path / "steps.parquet", lambda row: row["step"] < self.step.step)
            self.metrics = History(self.run.path / "metrics.parquet", lambda row: row["epoch"] < self.position.epoch)
            self.tracker = tracker_for(self.run)
            self.tracker.start(self.steps.rows, self._complete(self.position))
            if positions and not self.over(self.position):
                weights_of = self.run.checkpoints.folder / str(Position(self.position.epoch, 0)) / "model.pt"
                self.between.resume(self.position, weights_of)
        if self.sweeps.lag:
            # A sweep may take longer than a collective of the others would wait for rank 0.
            ray.train.collective.barrier()


def _timed(batches: Iterator[Any], limit: int) -> Iterator[tuple[Any, float]]:
    """The first `limit` batches, each with the seconds it was waited for."""
    for _ in range(limit):
        began = time.perf_counter()
        columns = next(batches)
        yield columns, time.perf_counter() - began
