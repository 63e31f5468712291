"""The demo: three runs on digits that show the whole machine, and what resampling does to the weak modality."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from rich.console import Console

from equipoise.datasets.prepare import prepare
from equipoise.models.errors import EquipoiseError
from equipoise.pipelines.fit import fit
from equipoise.pipelines.report import write_report
from equipoise.pipelines.run import Run
from equipoise.pipelines.tables import table

#: Digits is small: every run sees the same number of optimiser steps, whatever the length of its epochs.
BASE: dict[str, Any] = {
    "workers": 2,
    "actors": 2,
    "batch_size": 64,
    "max_steps": 800,
    "seed": 5,
    "balancer": "joint",
    "model": {"encoder": {"depth": 2}},
}
RUNS = {"joint": "none", "sample resampling": "sample", "random copies": "random_copies"}


def demo(out: str | Path = "runs/demo", console: Console | None = None) -> dict[str, Run]:
    """Train joint, sample resampling and random copies on digits at the same number of steps, and print them side by side."""
    console = console or Console()
    out = Path(out)
    if out.exists() and any(out.iterdir()):
        raise EquipoiseError(f"{out} is not empty: give another folder with --out, or delete it.")
    began = time.perf_counter()
    manifest = prepare("digits", out / "data")
    console.print(
        f"digits: {manifest.splits['train'].rows} train, {manifest.splits['validation'].rows} validation and "
        f"{manifest.splits['test'].rows} test images, cut into a left part (columns 0-4) and a right part (5-7)."
    )
    runs: dict[str, Run] = {}
    for title, resampler in RUNS.items():
        console.print(f"training: [bold]{title}[/bold], two DDP workers, two valuation actors ...")
        options = {} if resampler == "none" else {"warmup": 1}
        runs[title] = fit(
            {**BASE, "data": str(out / "data"), "out": str(out / resampler)},
            resampler={"name": resampler, "options": options},
        )
    console.print()
    console.print(accuracy_table(runs, manifest.names))
    console.print(contribution_table(runs, manifest.names))
    report = write_report(list(runs.values()), out / "report.html")
    console.print(
        f"{time.perf_counter() - began:.0f} s in all. The runs are in {out}/none, {out}/sample and {out}/random_copies."
    )
    console.print(
        f"side by side, with the most one-sided images: {report}\n"
        "Try next:\n"
        f"  equipoise evaluate {out}/sample --split test     the matrix of every subset of modalities\n"
        f"  equipoise fit examples/digits.yaml data={out}/data out=runs/mine balancer=ogm resampler=none\n"
        f"  python -c \"import equipoise; print(equipoise.Run.open('{out}/sample').values().to_pandas())\""
    )
    return runs


def accuracy_table(runs: dict[str, Run], names: tuple[str, ...]) -> Any:
    """Test accuracy of each run's best checkpoint (chosen on validation), full and with modalities missing."""
    rows = []
    for title, run in runs.items():
        matrix = run.matrix("test").set_index("coalition")["accuracy"]
        rows.append([title, *(float(v) for v in matrix), int(run.metrics["step"].iloc[-1])])
    columns = [f"only {c}" if c in names else c for c in run.matrix("test")["coalition"]]
    return table("Test accuracy by what is present", ["run", *columns, "steps"], rows)


def contribution_table(runs: dict[str, Run], names: tuple[str, ...]) -> Any:
    """Mean Shapley contributions of the modalities on train, by the best checkpoint."""
    rows = [[title, *(run.result("train").contributions[m] for m in names)] for title, run in runs.items()]
    return table("Mean contribution on train (1 = an equal share)", ["run", *names], rows)
