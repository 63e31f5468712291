"""Training without Ray: one process, the data set decoded whole into memory, the arithmetic of a run of one worker.

For studies of many small trainings, where starting Ray would cost more than training. Nothing is written to disk.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torchmetrics  # noqa: F401  # every training here measures, and who times one should not time this
from torch import Tensor

from equipoise import balancers, valuation
from equipoise.balancers import BalancedStep
from equipoise.datasets.reading import Reader
from equipoise.models import MultimodalModel, Task, to_batch
from equipoise.pipelines.assembly import assemble, autocast_dtype
from equipoise.pipelines.config import Config
from equipoise.pipelines.early_stopping import EarlyStopping
from equipoise.pipelines.objectives import objectives
from equipoise.pipelines.optimizers import build_optimizer, build_schedule
from equipoise.pipelines.sweep_schedule import SweepSchedule
from equipoise.valuation import EntryList, Plan, Values, sweep

Matrix = dict[int, dict[str, float]]


@dataclass(frozen=True)
class LightRun:
    """A finished training.

    `model` has the best epoch's weights, in eval mode; `values` {split: score tables by it} and `matrix` {split: metrics by
    coalition id} are of the splits asked for. `best` is {"epoch", "step", "metric", "value", "loss"} of that epoch on
    validation. `epochs`: the same a row an epoch, with the objectives of a search and the seconds since the start;
    `steps`: a row a step, as in steps.parquet; `last`: the weights after the last step.
    `seen` int64 [train rows, M + 1]: how often a row was trained on in all steps, padding included: by copies that keep
    modality m alone, and, last column, whole.
    """

    model: MultimodalModel
    values: dict[str, Values]
    matrix: dict[str, Matrix]
    best: dict[str, Any]
    epochs: list[dict[str, Any]]
    steps: list[dict[str, Any]]
    last: dict[str, Tensor]
    seen: np.ndarray


def train_light(
    config: Config,
    splits: Sequence[str] = ("validation", "test"),
    on_epoch: Callable[[Mapping[str, Any]], None] | None = None,
) -> LightRun:
    """Train to the end of the budget of `config`, as `fit` with workers=1 would: the same entry lists and global batches,
    sweeps, plans and order of updates, and the same best epoch (headline metric on validation, then the lower loss).

    Args:
        splits: what the best model is valued on at the end; a search, which must not see test, leaves that out.
        on_epoch: called with the row of each epoch (see `LightRun.epochs`) when it has been validated.

    Not used: `out`, `workers`, `actors`, `checkpoint`, `tracker`, `report`, and of `valuation` all but `batch_size` and
    `lag`. `device` "auto" is the CPU. Torch keeps the threads that it has.
    """
    device = torch.device("cuda" if config.device == "cuda" else "cpu")
    reader = Reader(config.data)
    manifest, names = reader.manifest, reader.manifest.names
    task, num_rows, full = manifest.build_task(), manifest.splits["train"].rows, 2 ** len(names) - 1
    began = time.perf_counter()
    needed = {"train", "validation", *splits}
    columns = {n: reader.read(n, np.arange(split.rows)) for n, split in manifest.splits.items() if n in needed}
    if config.impairment is not None:
        columns["train"]["present"] = reader.present("train", config.impairment)
    model = assemble(config, manifest).to(device)
    balancer = balancers.get(config.balancer.name, **config.balancer.options)
    resampler = valuation.get(config.resampler.name, **config.resampler.options)
    optimizer = build_optimizer(model.parameters(), config.optimizer)
    schedule = build_schedule(optimizer, config)
    step = BalancedStep(
        model,
        task,
        balancer,
        optimizer,
        seed=config.seed,
        clip_norm=config.clip_norm,
        autocast=autocast_dtype(config),
        compile=config.compile,
        monitor=config.monitor,
    )

    def valued(some: Mapping[str, np.ndarray], thorough: bool = False) -> tuple[list[Values], Matrix]:
        with torch.compiler.set_stance("force_eager"):  # values are those of the model as it is, compiled or not
            return value_columns(model, some, task, manifest.chunk_rows, config.valuation.batch_size, thorough)

    def over() -> bool:
        steps, epochs = config.max_steps, config.max_epochs
        spent = (steps is not None and step.step >= steps) or (epochs is not None and epoch >= epochs)
        return spent or stopping.over(epoch)

    sweeps, stopping = SweepSchedule(config, balancer, resampler, num_rows), EarlyStopping(config.early_stopping)
    epoch = 0
    plan: Plan | None = None
    state: tuple[int, np.ndarray | None] = (-1, None)  # the sweep that made it, what it left for later ones
    swept: dict[int, list[Values]] = {}
    epochs: list[dict[str, Any]] = []
    made: list[dict[str, Any]] = []
    best: dict[str, Any] = {}
    weights: dict[str, Tensor] = {}
    seen = np.zeros((num_rows, len(names) + 1), np.int64)
    kinds = np.append(1 << np.arange(len(names)), full)  # of entries, by what they keep
    while not over():
        entries = EntryList(plan, num_rows, len(names), manifest.chunk_rows, config.seed, epoch, config.batch_size)
        steps = entries.steps if config.max_steps is None else min(entries.steps, config.max_steps - step.step)
        order = np.concatenate([entries.window(w)[1] for w in range(entries.num_windows)])
        entered = order[: steps * config.batch_size]
        np.add.at(seen, entered["sample_id"], entered["keep"][:, None] == kinds)
        step.epoch = epoch
        loss = 0.0
        for part in np.split(order, entries.steps)[:steps]:
            kept = (part["keep"][:, None] >> np.arange(len(names)) & 1).astype(bool)
            if config.impairment is None:
                rows = {name: column[part["sample_id"]] for name, column in columns["train"].items()}
                rows["present"] = rows["present"] & kept
            else:
                rows = reader.read("train", part["sample_id"], kept, config.impairment, epoch, part["copy"])
            rows["copy"] = part["copy"].astype(np.int16)
            result = step(to_batch(rows, names, device))
            loss += result.loss / steps
            named = {f"loss/{name}": value for name, value in result.losses.items()}
            made.append({"step": step.step - 1, "epoch": epoch, "loss": result.loss, **named, **result.statistics})
            schedule.step()

        cell = valued(columns["validation"])[1]
        value, validation_loss = cell[full][task.headline], cell[full]["loss"]
        row = {"epoch": epoch, "step": step.step, "metric": task.headline, "value": value, "loss": validation_loss}
        better = task.score(cell[full])
        if not best or (better, -validation_loss) > (task.score({task.headline: best["value"]}), -best["loss"]):
            best, weights = row, _weights(model)
        stopping.update(epoch, better)
        aims, seconds = objectives(cell, task, names), time.perf_counter() - began
        entered_rows = entries.total - entries.padding
        epochs.append({**row, **aims, "train_loss": loss, "entries": entered_rows, "seconds": seconds})
        if on_epoch is not None:
            on_epoch(epochs[-1])
        epoch += 1

        done, ended = epoch - 1, over()
        if balancer.needs_values or sweeps.steers(done, ended):
            ids = sweeps.ids(done, ended)
            some = slice(None) if ids is None else ids
            swept[done] = valued({name: column[some] for name, column in columns["train"].items()})[0]
        source = None if ended else resampler.values_epoch(epoch, sweeps.lag)
        plan = None
        if source is not None:
            if resampler.keeps_state and source > state[0]:
                state = source, resampler.state(swept[source], num_rows, len(names), state[1])
            there = columns["train"]["present"]
            settings: dict[str, Any] = {"seed": config.seed, "lag": sweeps.lag, "present": there, "state": state[1]}
            plan = resampler.plan(epoch, swept[source], num_rows, len(names), **settings)
        newest = swept.get(done - sweeps.lag)
        balancer.on_epoch(cell, mean_contributions(newest, names) if newest else None)

    last = _weights(model)
    model.load_state_dict(weights)
    found = {name: valued(columns[name], thorough=True) for name in splits}
    values = {name: joined(chunks) for name, (chunks, _) in found.items()}
    return LightRun(
        model.eval(), values, {name: matrix for name, (_, matrix) in found.items()}, best, epochs, made, last, seen
    )


def value_columns(
    model: MultimodalModel,
    columns: Mapping[str, np.ndarray],
    task: Task,
    chunk_rows: int = 256,
    batch_size: int = 256,
    thorough: bool = False,
) -> tuple[list[Values], Matrix]:
    """The values of decoded columns (`sample_id` ascending) chunk by chunk, and {coalition: {"rows", "loss", metrics}}: what
    valuation actors find, in this process.
    """
    device = next(model.parameters()).device
    matrix: Matrix = {c: {"rows": 0.0, "loss": 0.0} for c in range(1, 2 ** len(model.modalities))}
    metrics = {c: task.metrics(thorough) for c in matrix}
    target: Tensor

    def observe(c: int, logits: Tensor, rows: Tensor) -> None:
        if bool(rows.any()):
            shown, wanted = logits[rows].float(), target[rows]
            matrix[c]["rows"] += len(wanted)
            matrix[c]["loss"] += float(task.losses(shown, wanted).double().sum())
            metrics[c].update(shown.cpu(), wanted.cpu())

    chunks = []
    for ids in np.split(
        np.arange(len(columns["sample_id"])), np.flatnonzero(np.diff(columns["sample_id"] // chunk_rows)) + 1
    ):
        scores = []
        for at in range(0, len(ids), batch_size):
            some = {name: column[ids[at : at + batch_size]] for name, column in columns.items()}
            batch = to_batch({**some, "copy": np.zeros(len(some["sample_id"]), np.int16)}, model.modalities, device)
            target = batch["target"]
            shortcut = model.linear_head and len(model.modalities) > 3
            scores.append(sweep(model, batch, task, shortcut, observe).cpu().numpy())
        chunks.append(Values(columns["sample_id"][ids], np.concatenate(scores), columns["present"][ids]))
    for c, cell in matrix.items():
        cell["loss"] = cell["loss"] / cell["rows"] if cell["rows"] else float("nan")
        if cell["rows"]:
            cell |= {name: float(value) for name, value in metrics[c].compute().items()}
    return chunks, matrix


def mean_contributions(chunks: Sequence[Values], names: Sequence[str]) -> dict[str, float]:
    """{modality: mean contribution over the samples that have it; NaN where none does}."""
    totals = np.sum([np.nansum(values.contributions, axis=0) for values in chunks], axis=0)
    counts = np.sum([values.present.sum(axis=0) for values in chunks], axis=0)
    means = np.where(counts > 0, totals / np.maximum(counts, 1), np.nan)
    return dict(zip(names, means.tolist(), strict=True))


def joined(chunks: Sequence[Values]) -> Values:
    """Values of all chunks as one."""
    parts = zip(*((v.sample_id, v.score, v.present) for v in chunks))
    return Values(*(np.concatenate(part) for part in parts))


def _weights(model: MultimodalModel) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}
