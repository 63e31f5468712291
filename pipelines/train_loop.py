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
from equipoise.datasets.opening import open_parquet
from equipoise.datasets.reading import Reader
from equipoise.models.batch import to_batch
from equipoise.models.contract import MultimodalModel
from equipoise.models.errors import EquipoiseError
from equipoise.pipelines.assembly import assemble
from equipoise.pipelines.batches import EpochSpec, rank_batches
from equipoise.pipelines.checkpoint import Position
from equipoise.pipelines.config import Config
from equipoise.pipelines.files import atomic, write_json
from equipoise.pipelines.history import History
from equipoise.pipelines.optimizers import build_optimizer, build_schedule
from equipoise.pipelines.progress import ProgressFile
from equipoise.pipelines.run import Run
from equipoise.pipelines.seats import sit
from equipoise.pipelines.sentences import refused, write_sentence
from equipoise.pipelines.sweeps import SweepResult, read_result, run_sweep
from equipoise.valuation.coalitions import coalition_name
from equipoise.valuation.store import iter_chunks


def train_worker(settings: Mapping[str, Any]) -> None:
    """The function that Ray Train runs on every worker; see `Training`."""
    config = Config.model_validate(settings["config"])
    run = Run(settings["run"], config)
    if refused(run.path):
        # A sentence for the user was written by the attempt before: trying again cannot mend what it names.
        return
    try:
        sit(settings["threads"], settings.get("cores"))
        Training(run, settings["valuers"], settings["data_cpus"]).train()
    except Exception as error:
        write_sentence(run.path, error)
        raise


class Training:
    """One worker's part of a run. Rank 0 also values, plans and writes; the others wait at the boundary.

    Between epochs: validation by a sweep; a sweep of train where the resampler or the balancer asks for one; the plan of
    the next epoch; `on_epoch`; the checkpoint; the report. A restarted worker group goes on from the last checkpoint,
    and repeats what came after it with the same batches and the same plans.
    """

    def __init__(self, run: Run, valuers: Sequence[Any], data_cpus: float) -> None:
        import ray.train
        import ray.train.torch

        config = run.config
        context = ray.train.get_context()
        self.rank, self.world_size = context.get_world_rank(), context.get_world_size()
        self.leads = self.rank == 0
        self.run, self.config, self.valuers, self.data_cpus = run, config, valuers, data_cpus
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
            autocast=torch.bfloat16 if config.precision == "bfloat16" else None,
        )
        self.position = Position(0, 0)
        self.best: dict[str, Any] | None = None
        self.progress = ProgressFile(run.path / "progress.json")
        self._resume()

    def over(self, position: Position) -> bool:
        """Whether the budget of steps or epochs is spent, with `position` the next to train at."""
        steps, epochs = self.config.max_steps, self.config.max_epochs
        return (steps is not None and self.step.step >= steps) or (epochs is not None and position.epoch >= epochs)

    def train(self) -> None:
        while not self.over(self.position):
            numbers = self._epoch()
            self._boundary(numbers)

    # One epoch.

    def _epoch(self) -> dict[str, Any]:
        """Train on what is left of the epoch; returns its numbers."""
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
        )
        entries = spec.entries(self.manifest)
        self.step.epoch = epoch
        steps = entries.steps
        if self.config.max_steps is not None:
            steps = min(steps, self.position.step + self.config.max_steps - self.step.step)
        began = time.perf_counter()
        first_batch = waited = computed = 0.0
        for columns, wait in _timed(rank_batches(spec, self.manifest, self.data_cpus), steps - self.position.step):
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
            if every and self.step.step % every == 0 and self.position.step < steps:
                self._checkpoint(self.position)
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
            **{f"copies/{m}": 0 if copies is None else int(copies[i]) for i, m in enumerate(self.manifest.names)},
            "seconds/train": time.perf_counter() - began,
            "seconds/wait": waited,
            "seconds/compute": computed,
            "seconds/first_batch": first_batch,
        }

    def _plan_of(self, epoch: int) -> Path | None:
        """The plan an epoch trains on, None for a plain one."""
        return None if self.resampler.values_epoch(epoch) is None else self.run.plan(epoch)

    # The boundary between epochs.

    def _boundary(self, numbers: dict[str, Any]) -> None:
        import ray.train
        import ray.train.collective

        epoch = self.position.epoch
        after = Position(epoch + 1, 0)
        swept = self.resampler.wants_values(epoch) or self.balancer.needs_values
        if self.over(after):
            swept = self.balancer.needs_values  # nothing is left that a plan could steer; `valuation.final` follows
        draft = None
        if self.leads:
            draft = self.run.checkpoints.draft(after, self._weights())
            numbers |= self._value(epoch, draft / "model.pt", swept)
        ray.train.collective.barrier()
        validation = read_result(self.run.values_folder("validation", epoch))
        train = read_result(self.run.values_folder("train", epoch)) if swept else None
        self.balancer.on_epoch(validation.matrix, train.contributions if train else None)
        self._remember_best(validation, epoch, after)
        self.position = after
        metrics = {**numbers, **self._metrics(validation, train)}
        if self.leads:
            # Before the checkpoint: what lies beyond a checkpoint is cut on resume, what a checkpoint lacks is lost.
            self.metrics.append(metrics)
            self.metrics.write()
        checkpoint = self._commit(draft, after)
        # Ray keeps metrics only beside a checkpoint of its own; ours lie in the run folder, so it gets a pointer.
        with tempfile.TemporaryDirectory() as folder:
            pointer = None
            if checkpoint is not None:
                write_json(Path(folder) / "checkpoint.json", {"path": str(checkpoint)})
                pointer = ray.train.Checkpoint.from_directory(folder)
            ray.train.report(metrics, checkpoint=pointer)

    def _value(self, epoch: int, weights: Path, swept: bool) -> dict[str, float]:
        """Validate, sweep train, plan the next epoch. Rank 0 only."""
        seconds = {}
        began = time.perf_counter()
        run_sweep(self.run.sweep("validation", epoch, weights), self.valuers, self._shows("validation", epoch))
        seconds["seconds/validation"] = time.perf_counter() - began
        if swept:
            began = time.perf_counter()
            rows = self.manifest.splits["train"].rows
            ids = self.resampler.valued_ids(rows, epoch, self.config.seed)
            wanted = None
            if ids is not None and not self.balancer.needs_values:
                wanted = self.run.path / "plans" / f"{epoch:04d}-valued.npy"
                with atomic(wanted) as part, part.open("wb") as file:
                    np.save(file, np.sort(ids), allow_pickle=False)
            sweep = self.run.sweep("train", epoch, weights, ids=wanted)
            run_sweep(sweep, self.valuers, self._shows("sweep of train", epoch))
            seconds["seconds/sweep"] = time.perf_counter() - began
        began = time.perf_counter()
        self._make_plan(epoch + 1)
        seconds["seconds/plan"] = time.perf_counter() - began
        return seconds

    def _make_plan(self, epoch: int) -> None:
        """The plan of an epoch, from the sweep that the resampler names: a pure function of files and the seed."""
        source = None if self.over(Position(epoch, 0)) else self.resampler.values_epoch(epoch)
        if source is None:
            return
        folder = self.run.values_folder("train", source)
        rows, modalities = self.manifest.splits["train"].rows, len(self.manifest.modalities)
        expected = {"manifest_hash": self.manifest.hash, "epoch": str(source)}
        state = None
        if self.resampler.keeps_state:
            state = self._smoothed(source, folder, expected)
        plan = self.resampler.plan(
            epoch,
            iter_chunks(folder, expected, opener=open_parquet),
            rows,
            modalities,
            seed=self.config.seed,
            present=Reader(self.config.data).present("train"),
            state=state,
        )
        plan.save(self.run.plan(epoch))

    def _smoothed(self, source: int, folder: Path, expected: Mapping[str, Any]) -> np.ndarray:
        """The resampler's state after a sweep, kept beside the plans."""
        path = self.run.path / "plans" / f"{source:04d}.state.npy"
        earlier = sorted(p for p in path.parent.glob("*.state.npy") if int(p.name[:4]) < source)
        previous = np.load(earlier[-1], allow_pickle=False) if earlier else None
        state = self.resampler.state(
            iter_chunks(folder, expected, opener=open_parquet),
            self.manifest.splits["train"].rows,
            len(self.manifest.modalities),
            previous,
        )
        assert state is not None
        with atomic(path) as part, part.open("wb") as file:
            np.save(file, state, allow_pickle=False)
        return state

    def _shows(self, phase: str, epoch: int) -> Any:
        return lambda done, total, left: self.progress.write(phase, done, total, epoch=epoch)

    def _metrics(self, validation: SweepResult, train: SweepResult | None) -> dict[str, float]:
        names = self.manifest.names
        full = 2 ** len(names) - 1
        row: dict[str, float] = {}
        for c, cell in validation.matrix.items():
            where = "validation" if c == full else f"validation/{coalition_name(c, names)}"
            row |= {f"{where}/{name}": value for name, value in cell.items() if name != "rows"}
        if train is not None:
            row |= {f"contribution/{m}": value for m, value in train.contributions.items()}
        return row

    def _remember_best(self, validation: SweepResult, epoch: int, after: Position) -> None:
        full = validation.matrix[2 ** len(self.manifest.names) - 1]
        value, loss = full[self.task.headline], full["loss"]
        # Small validation splits tie often: the lower loss then decides, not the earlier epoch.
        if self.best is None or (value, -loss) > (self.best["value"], -self.best["loss"]):
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
            "rng": states,
            "modalities": list(self.manifest.names),
            "manifest_hash": self.manifest.hash,
            "fitted": json.dumps(self.manifest.fitted),
            "entries": None if self.over(position) else self._digest(position.epoch),
        }
        self.steps.write()
        folder = self.run.checkpoints.commit(draft, position, state)
        self.run.checkpoints.set_best(self.best)
        self.run.checkpoints.retain(self.config.checkpoint.keep)
        return folder

    def _digest(self, epoch: int) -> str:
        plan = self._plan_of(epoch)
        spec = EpochSpec(
            self.config.data, str(plan) if plan else None, self.config.seed, epoch, self.config.batch_size, 0, 1
        )
        return spec.entries(self.manifest).digest()

    def _resume(self) -> None:
        """Go on from the newest checkpoint, and cut what was written after it."""
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
            if len(state["rng"]) == self.world_size:
                torch.set_rng_state(state["rng"][self.rank])
        if self.leads:
            self.run.checkpoints.set_best(self.best)
            for path in (self.run.path / "plans").glob("*.npy"):
                # A plan of this epoch stays, and the state of the sweeps before it.
                if int(path.name[:4]) > self.position.epoch - ("state" in path.name):
                    path.unlink()
            self.steps = History(self.run.path / "steps.parquet", lambda row: row["step"] < self.step.step)
            self.metrics = History(self.run.path / "metrics.parquet", lambda row: row["epoch"] < self.position.epoch)


def _timed(batches: Iterator[Any], limit: int) -> Iterator[tuple[Any, float]]:
    """The first `limit` batches, each with the seconds it was waited for."""
    for _ in range(limit):
        began = time.perf_counter()
        columns = next(batches)
        yield columns, time.perf_counter() - began
