"""What a sweep costs beside one evaluation pass: `python -m benchmarks.sweep`, from the root of the repository.

Each round times, one after another and in turning order:

- plain: an evaluation pass, `model(inputs, present)` in eval mode; and the encoders alone, `model.features`;
- sweep: every coalition by a call of the head; added: by addition, where the head is linear (`shortcut=True`);
- actor: the way a valuation actor takes (added from 4 modalities on, if it may), with each coalition's loss and metrics;
- naive: a full forward a coalition. The model skips the encoders of modalities that a coalition lacks, so this is about
  2^(M - 1) plain passes, not 2^M - 1.

Ratios are medians of the ratios within a round, so that a busy machine bends them less. All score tables must be equal. The
target is for the way of an actor without the metrics, where encoders take at least 90 % of the plain pass.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from torch import Tensor

from equipoise.models import Batch, Classification, EncoderConfig, LateFusion, Modality, Task, build_encoder
from equipoise.pipelines.machine import processor
from equipoise.pipelines.tables import table
from equipoise.valuation import members, sweep

TARGET, HEAVY = 1.10, 0.90
TASK = Classification(10)
Clock = Callable[[], float]
CLOCKS: dict[str, Clock] = {"wall": time.perf_counter, "cpu": time.process_time}


@dataclass(frozen=True)
class Case:
    """A model of M modalities of one shape, through one kind of encoder."""

    title: str
    num_modalities: int
    shape: tuple[int, ...]
    encoder: EncoderConfig
    fusion: str = "concat"

    def build(self) -> LateFusion:
        kind = "image" if len(self.shape) == 3 else "array"
        modalities = [Modality(name=f"m{i}", kind=kind, shape=self.shape) for i in range(self.num_modalities)]
        encoders = {m.name: build_encoder(self.encoder, m) for m in modalities}
        return LateFusion(encoders, TASK.num_outputs, self.fusion).eval()  # type: ignore[arg-type]

    def batches(self, rows: int, batch_size: int, device: torch.device) -> list[Batch]:
        return [self._batch(first, min(batch_size, rows - first), device) for first in range(0, rows, batch_size)]

    def _batch(self, first: int, rows: int, device: torch.device) -> Batch:
        return Batch(
            sample_id=torch.arange(first, first + rows, device=device),
            copy=torch.zeros(rows, dtype=torch.int16, device=device),
            inputs={f"m{i}": torch.randn(rows, *self.shape, device=device) for i in range(self.num_modalities)},
            present=torch.ones(rows, self.num_modalities, dtype=torch.bool, device=device),
            target=torch.randint(0, TASK.num_outputs, (rows,), device=device),
        )


SMALL = EncoderConfig(kind="mlp", hidden=64)
SIGNAL = EncoderConfig(kind="cnn1d", hidden=64, depth=2)
IMAGE = EncoderConfig(kind="cnn2d", hidden=16, depth=3)
#: Images are 3 x 32 x 32, signals 100 x 3, the small ones 16 numbers.
CASES = [
    *(Case("image cnn2d", m, (3, 32, 32), IMAGE) for m in (2, 3, 6)),
    *(Case("signal cnn1d", m, (100, 3), SIGNAL) for m in (2, 3, 6)),
    Case("image cnn2d, gated", 2, (3, 32, 32), IMAGE, "gated"),
    *(Case("small mlp", m, (16,), SMALL) for m in (2, 3, 6)),
]


def plain(model: LateFusion, batch: Batch) -> Tensor:
    with torch.no_grad():
        return model(batch["inputs"], batch["present"]).logits


def encoders(model: LateFusion, batch: Batch) -> dict[str, Tensor]:
    with torch.no_grad():
        return model.features(batch["inputs"], batch["present"])


def naive(model: LateFusion, batch: Batch, task: Task = TASK) -> Tensor:
    """The score table by a full forward a coalition."""
    present = batch["present"]
    columns = []
    with torch.no_grad():
        for inside in torch.from_numpy(members(present.shape[1])).to(present.device):
            logits = model(batch["inputs"], present & inside).logits
            columns.append(task.benefit(logits, batch["target"]) != 0)
    return torch.stack(columns, dim=1)


def actor(model: LateFusion, batch: Batch) -> Tensor:
    """The score table with what a valuation actor notes beside it: loss and metric states of each coalition."""
    metrics = {c: TASK.metrics() for c in range(1, 2 ** len(model.modalities))}
    loss = dict.fromkeys(metrics, 0.0)

    def observe(c: int, logits: Tensor, rows: Tensor) -> None:
        shown, target = logits[rows], batch["target"][rows]
        loss[c] += float(TASK.losses(shown, target).double().sum())
        metrics[c].update(shown.cpu(), target.cpu())

    return sweep(model, batch, TASK, adds(model), observe)


def adds(model: LateFusion) -> bool:
    """Whether actors add terms instead of calling the head."""
    return model.linear_head and len(model.modalities) > 3


def measure(
    case: Case, rows: int, batch_size: int, rounds: int, warmup: int, device: torch.device, now: Clock
) -> dict[str, Any]:
    """Median seconds over the rows, and median ratios, of one case."""
    torch.manual_seed(0)
    model = case.build().to(device)
    batches = case.batches(rows, batch_size, device)
    ways: dict[str, Callable[[Batch], Any]] = {
        "plain": lambda batch: plain(model, batch),
        "encoders": lambda batch: encoders(model, batch),
        "sweep": lambda batch: sweep(model, batch, TASK),
        "actor": lambda batch: actor(model, batch),
        "naive": lambda batch: naive(model, batch),
    }
    if model.linear_head:
        ways["added"] = lambda batch: sweep(model, batch, TASK, shortcut=True)
    check_equal(case, ways, batches)

    def seconds(way: Callable[[Batch], Any]) -> float:
        began = now()
        for batch in batches:
            way(batch)
        if device.type == "cuda":
            torch.cuda.synchronize()
        return now() - began

    times: dict[str, list[float]] = {name: [] for name in ways}
    order = list(ways)
    for turn in range(warmup + rounds):
        order = [*order[1:], order[0]]
        for name in order:
            took = seconds(ways[name])
            if turn >= warmup:
                times[name].append(took)
    found: dict[str, Any] = {name: statistics.median(values) for name, values in times.items()}
    for name in times:
        found[f"{name}/plain"] = statistics.median(a / b for a, b in zip(times[name], times["plain"]))
    return {**found, "used": "added" if adds(model) else "sweep"}


def check_equal(case: Case, ways: dict[str, Callable[[Batch], Any]], batches: list[Batch]) -> None:
    """All ways must give the same scores; the plain pass, those of all modalities together."""
    for batch in batches:
        tables = {name: ways[name](batch) for name in ("naive", "sweep", "added", "actor") if name in ways}
        whole = TASK.benefit(ways["plain"](batch), batch["target"]) != 0
        assert torch.equal(whole, tables["naive"][:, -1]), f"{case.title}: the plain pass differs"
        for name, found in tables.items():
            assert torch.equal(found, tables["naive"]), (
                f"{case.title}, M={case.num_modalities}: {name} differs from naive"
            )


def machine(device: torch.device) -> str:
    gpu = f", {torch.cuda.get_device_name()}" if device.type == "cuda" else ""
    load = f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "?"
    return (
        f"{processor()}, {os.cpu_count()} cores{gpu}; torch {torch.__version__}, {torch.get_num_threads()} threads; Python "
        f"{platform.python_version()}; load average at the start {load}"
    )


def main(
    rounds: Annotated[int, typer.Option(help="timed rounds a case", min=1)] = 15,
    warmup: Annotated[int, typer.Option(help="rounds before them", min=1)] = 2,
    rows: Annotated[int, typer.Option(help="rows of a pass", min=1)] = 256,
    batch_size: Annotated[int, typer.Option(help="rows of a forward", min=1)] = 256,
    threads: Annotated[int, typer.Option(help="torch threads; 0: torch's own choice")] = 1,
    device: Annotated[str, typer.Option(help="cpu or cuda")] = "cpu",
    clock: Annotated[
        str, typer.Option(help="wall, or cpu: this process alone, for a busy machine and one thread")
    ] = "wall",
    only: Annotated[str, typer.Option(help="cases whose title holds this")] = "",
    out: Annotated[Path | None, typer.Option(help="also write the figures here, as JSON")] = None,
) -> None:
    """Time plain passes, sweeps and naive sweeps, and print them side by side."""
    if threads:
        torch.set_num_threads(threads)
    console, where = Console(width=130), torch.device(device)
    title = machine(where)
    results = []
    for case in CASES:
        if only in case.title:
            found = measure(case, rows, batch_size, rounds, warmup, where, CLOCKS[clock])
            results.append({"case": case.title, "M": case.num_modalities, "rows": rows, **found})
    shown = []
    for r in results:
        heavy = r["encoders/plain"] >= HEAVY
        verdict = ("met" if r[f"{r['used']}/plain"] <= TARGET else "MISSED") if heavy else "-"
        share = f"{min(1.0, r['encoders/plain']):.0%}"
        milliseconds = [f"{1e3 * r[name]:.1f}" for name in ("plain", "sweep", "naive")]
        names = ("sweep", "added", "actor", "naive")
        ratios = [f"{r[f'{name}/plain']:.2f}" if name in r else "-" for name in names]
        shown.append([r["case"], r["M"], share, *milliseconds, *ratios, verdict])
    columns = [
        "model",
        "M",
        "encoders",
        "plain ms",
        "sweep ms",
        "naive ms",
        "sweep",
        "added",
        "actor",
        "naive",
        f"<= {TARGET:.2f}",
    ]
    heading = (
        f"A sweep of {rows} rows in batches of {batch_size}: medians of {rounds} rounds, {clock} time; ratios to plain"
    )
    console.print(table(heading, columns, shown))
    console.print(title)
    if out is not None:
        out.write_text(json.dumps({"machine": title, "rounds": rounds, "clock": clock, "results": results}, indent=1))


if __name__ == "__main__":
    typer.run(main)
