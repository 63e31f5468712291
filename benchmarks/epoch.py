"""Where the time of an epoch goes, on real Ray: `python -m benchmarks.epoch`, from the root of the repository.

Prepares a data set and fits it with 2 workers and 2 valuation actors in a temporary folder, then reads the run: the seconds
to an epoch's first batch, rows a second, the share of a step spent waiting for its batch, and the phases between epochs.
What the run does not say itself is read from the times of its files: an epoch's training ends when its draft checkpoint has
its weights (model.pt), its boundary when the checkpoint is whole (state.pt), and the next epoch's training begins
`seconds/train` before the next model.pt. What is then left between two epochs is "other": the report to Ray, the tables, the
next entry list.
"""

from __future__ import annotations

import io
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import typer
from PIL import Image
from rich.console import Console

from equipoise.datasets.manifest import Manifest
from equipoise.datasets.prepare import prepare
from equipoise.models import Modality
from equipoise.pipelines.checkpoint import Position
from equipoise.pipelines.fit import fit
from equipoise.pipelines.run import Run
from equipoise.pipelines.tables import table

FIRST_BATCH = 0.5
CLASSES = 8


def images(folder: Path, rows: int) -> Manifest:
    """PNG pictures of 32 x 32 beside arrays of 64 numbers, both noisy pictures of a class; through `prepare`."""
    rng = np.random.default_rng(0)
    target = rng.integers(CLASSES, size=rows)
    colours = rng.integers(60, 196, size=(CLASSES, 1, 1, 3))
    centres = rng.normal(size=(CLASSES, 64))

    def png(label: int) -> bytes:
        pixels = colours[label] + rng.normal(scale=60, size=(32, 32, 3))
        held = io.BytesIO()
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(held, "png")
        return held.getvalue()

    source = folder / "source.parquet"
    columns = {
        "source_id": [f"row{i:07d}" for i in range(rows)],
        "target": target,
        "picture": [png(label) for label in target],
        "sound": list((centres[target] + rng.normal(scale=3, size=(rows, 64))).astype(np.float32)),
    }
    pq.write_table(pa.table(columns), source)
    modalities = [Modality(name="picture", kind="image", shape=(3, 32, 32)), Modality(name="sound", shape=(64,))]
    return prepare(source, folder / "data", modalities=modalities, task_labels=[f"class {c}" for c in range(CLASSES)])


def run_once(
    folder: Path, data: str, rows: int, epochs: int, batch_size: int, options: dict[str, Any]
) -> tuple[Run, Manifest]:
    manifest = images(folder, rows) if data == "images" else prepare("watch", folder / "data", window=1.0)
    run = fit(
        {
            "data": str(folder / "data"),
            "out": str(folder / "run"),
            "max_epochs": epochs,
            "batch_size": batch_size,
            "checkpoint": {"keep": epochs + 1},
            "valuation": {"final": False},
            **options,
        }
    )
    return run, manifest


def phases(run: Run) -> pd.DataFrame:
    """A row an epoch: seconds to the first batch, in training and in each phase after it ("other" NaN after the last)."""
    metrics = run.metrics.set_index("epoch")
    folders = [run.checkpoints.folder / str(Position(epoch + 1, 0)) for epoch in metrics.index]
    trained = np.array([(folder / "model.pt").stat().st_mtime for folder in folders])
    whole = np.array([(folder / "state.pt").stat().st_mtime for folder in folders])
    out = pd.DataFrame(index=metrics.index)
    out["first batch"] = metrics["seconds/first_batch"]
    out["train"] = metrics["seconds/train"]
    out["rows/s"] = metrics["steps"] * run.config.batch_size / metrics["seconds/train"]
    for phase in ("validation", "sweep", "plan"):
        name = f"seconds/{phase}"
        out[phase] = metrics[name].fillna(0.0) if name in metrics else 0.0
    out["checkpoint"] = whole - trained - out[["validation", "sweep", "plan"]].sum(axis=1)
    began = trained - out["train"].to_numpy()
    out["other"] = np.append(began[1:] - whole[:-1], np.nan)
    return out


def waiting(run: Run) -> dict[str, float]:
    """Shares of steps spent waiting for their batch: the median step, all steps together, and the first step of an epoch."""
    steps = run.steps
    wait, work = steps["seconds/wait"], steps["seconds/step"]
    first = steps["step_in_epoch"] == 0

    def together(rows: pd.Series) -> float:
        return float(wait[rows].sum() / (wait[rows] + work[rows]).sum())

    later = ~first
    return {
        "median step": float((wait / (wait + work))[later].median()),
        "all steps but the first": together(later),
        "all steps": together(later | first),
        "first step of an epoch, median": float((wait / (wait + work))[first].median()),
        "milliseconds of work a step, median": float(1e3 * work[later].median()),
    }


def main(
    data: Annotated[str, typer.Option(help="images (generated) or watch (1 s windows)")] = "images",
    rows: Annotated[int, typer.Option(help="of images, before they are split 70 / 15 / 15", min=200)] = 8000,
    rounds: Annotated[int, typer.Option(help="epochs", min=3)] = 5,
    batch_size: Annotated[int, typer.Option(help="of the global batch", min=2)] = 64,
    workers: Annotated[int, typer.Option(min=1)] = 2,
    actors: Annotated[int, typer.Option(min=1)] = 2,
    resampler: Annotated[str, typer.Option(help="sample values train after every epoch; none does not")] = "sample",
    out: Annotated[Path | None, typer.Option(help="also write the figures here, as JSON")] = None,
) -> None:
    """Fit a few epochs on Ray and print where their time went."""
    console = Console(width=120)
    load = os.getloadavg()[0]
    options: dict[str, Any] = {"workers": workers, "actors": actors, "resampler": {"name": resampler}}
    if resampler != "none":
        options["resampler"]["options"] = {"warmup": 1}
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        run, manifest = run_once(Path(folder), data, rows, rounds, batch_size, options)
        took = time.perf_counter() - began
        found, waits = phases(run), waiting(run)
    heading = f"{data}: {manifest.splits['train'].rows} train rows, {workers} workers, {actors} actors, batches of {batch_size}"
    cells = [
        [epoch, f"{row['rows/s']:,.0f}", *("-" if np.isnan(v) else f"{v:.2f}" for n, v in row.items() if n != "rows/s")]
        for epoch, row in found.iterrows()
    ]
    columns = ["epoch", "rows/s", *(f"{name} s" for name in found if name != "rows/s")]
    console.print(table(heading, columns, cells))
    console.print(table("Share of a step spent waiting for its batch", [*waits], [list(waits.values())]))
    later = float(found["first batch"].iloc[1:].median())
    verdict = "met" if later <= FIRST_BATCH else "MISSED"
    first = found["first batch"].iloc[0]
    console.print(
        f"first batch: {first:.2f} s in the first epoch, then {later:.2f} s (median), target {FIRST_BATCH}: {verdict}"
    )
    console.print(f"{took:.0f} s in all; {os.cpu_count()} cores, load average at the start {load:.1f}")
    if out is not None:
        figures = {"seconds": took, "load": load, "epochs": found.reset_index().to_dict("records"), "waiting": waits}
        out.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    typer.run(main)
