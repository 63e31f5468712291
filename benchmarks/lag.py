"""What valuing costs an epoch, on real Ray: `python -m benchmarks.lag`, from the root of the repository.

Plain training on generated pictures and arrays, one worker and one valuation actor, with a sweep of all train rows after
every epoch (valuation.every=1) and without one, in turn. An epoch's time is that between two checkpoints: training,
validation, whatever is waited for, the report. The first epoch, in which processes start, is left out.

- lag 1, valuation.placement=separate: the worker is bound to one half of the cores and the actor to the other, so on two
  cores to one each. Figure: epoch with sweeps / epoch without. Beside it the CPU seconds of each process.
- lag 0: (epoch with - epoch without) / one plain forward pass over the same rows, read, decoded and run in this process with
  an actor's threads.
"""

from __future__ import annotations

import json
import os
import tempfile
import threading
import time
from collections import defaultdict
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import numpy as np
import psutil
import torch
import typer
from rich.console import Console

from benchmarks.epoch import images
from equipoise.datasets.reading import Reader
from equipoise.models.batch import to_batch
from equipoise.pipelines.fit import fit
from equipoise.pipelines.run import Run
from equipoise.pipelines.tables import table

BESIDE, BETWEEN, SLACK = 1.03, 1.10, 0.5


class CpuSeconds:
    """CPU seconds of Ray's processes by their titles, as last seen before they ended."""

    def __init__(self) -> None:
        self.seconds: dict[tuple[str, int], float] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> CpuSeconds:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.5):
            for process in psutil.Process().children(recursive=True):
                try:
                    title, spent = "".join(process.cmdline())[:40], process.cpu_times()
                except psutil.Error:
                    continue
                if title.startswith("ray::"):
                    kind = title.removeprefix("ray::").split(".")[0].split("(")[0]
                    kind = kind if kind in ("RayTrainWorker", "Valuer", "Conductor") else "data tasks and others"
                    self.seconds[kind, process.pid] = max(
                        self.seconds.get((kind, process.pid), 0.0), spent.user + spent.system
                    )

    def by_kind(self) -> dict[str, float]:
        """{kind: seconds}; a process that changed its title counts under the last one it had."""
        out: dict[str, float] = defaultdict(float)
        newest = {pid: kind for kind, pid in self.seconds}
        for (kind, pid), seconds in self.seconds.items():
            if newest[pid] == kind:
                out[kind] += seconds
        return dict(out)


def epochs(run: Run) -> list[float]:
    """Seconds from checkpoint to checkpoint, from the second epoch on."""
    whole = [(run.checkpoints.folder / str(p) / "state.pt").stat().st_mtime for p in run.checkpoints.positions()]
    return np.diff(whole).tolist()


def plain_pass(run: Run, threads: int, batch_size: int = 256) -> float:
    """Seconds of one evaluation pass over train: read, decode, one forward pass."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    reader, model = Reader(run.config.data), run.best_model()
    rows = reader.manifest.splits["train"].rows
    began = time.perf_counter()
    with torch.no_grad():
        for at in range(0, rows, batch_size):
            columns = reader.read("train", np.arange(at, min(at + batch_size, rows)))
            batch = to_batch({**columns, "copy": np.zeros(len(columns["target"]), np.int16)}, reader.manifest.names)
            model(batch["inputs"], batch["present"])
    took = time.perf_counter() - began
    torch.set_num_threads(before)
    return took


def main(
    rows: Annotated[int, typer.Option(help="before they are split 70 / 15 / 15", min=200)] = 12000,
    rounds: Annotated[int, typer.Option(help="runs with and runs without, in turn", min=1)] = 3,
    num_epochs: Annotated[int, typer.Option("--epochs", help="of each run", min=3)] = 5,
    lag: Annotated[int, typer.Option(help="0, 1, or -1 for both", min=-1, max=1)] = -1,
    out: Annotated[Path | None, typer.Option(help="also write the figures here, as JSON")] = None,
) -> None:
    """Fit with and without sweeps and print what the sweeps cost."""
    console = Console(width=120)
    figures: dict[str, Any] = {"rows": rows, "cores": os.cpu_count(), "load": os.getloadavg()[0]}
    with tempfile.TemporaryDirectory() as folder:
        images(Path(folder), rows)
        for kind in [0, 1] if lag < 0 else [lag]:
            found: dict[bool, list[float]] = {True: [], False: []}
            cpu: dict[bool, dict[str, float]] = {True: {}, False: {}}
            passes = []
            for number in range(rounds):
                for valued in (True, False) if number % 2 else (False, True):
                    settings = {
                        "data": f"{folder}/data",
                        "out": f"{folder}/lag{kind}-{number}-{valued}",
                        "max_epochs": num_epochs,
                        "workers": 1,
                        "actors": 1,
                        "checkpoint": {"keep": num_epochs + 1},
                        "tracker": "none",
                        "report": False,
                        "valuation": {
                            "lag": kind,
                            "placement": "separate" if kind else "shared",
                            "every": 1 if valued else None,
                            "final": False,
                        },
                    }
                    with CpuSeconds() as seconds:
                        run = fit(settings)
                    found[valued] += epochs(run)
                    for name, spent in seconds.by_kind().items():
                        cpu[valued][name] = cpu[valued].get(name, 0.0) + spent / rounds
                    if kind == 0:
                        threads = json.loads((run.path / "environment.json").read_text())["threads"]
                        passes.append(plain_pass(run, threads))
            with_sweeps, without = median(found[True]), median(found[False])
            cells = [
                ["with a sweep" if valued else "without", median(found[valued]), min(found[valued]), max(found[valued])]
                for valued in (True, False)
            ]
            console.print(
                table(f"lag {kind}: seconds an epoch ({len(found[True])} each)", ["", "median", "min", "max"], cells)
            )
            if kind:
                ratio = with_sweeps / without
                console.print(
                    f"with / without: {ratio:.3f} (target {BESIDE}): {'met' if ratio <= BESIDE else 'MISSED'}"
                )
                names = sorted({*cpu[True], *cpu[False]})
                rows_of = [[name, cpu[True].get(name, 0.0), cpu[False].get(name, 0.0)] for name in names]
                console.print(table("CPU seconds of a run", ["process", "with", "without"], rows_of))
                figures["lag 1"] = {"with": found[True], "without": found[False], "ratio": ratio, "cpu": cpu}
            else:
                plain, extra = median(passes), with_sweeps - without
                bound = BETWEEN * plain + SLACK
                console.print(
                    f"a sweep adds {extra:.2f} s, one plain pass takes {plain:.2f} s: {extra / plain:.2f}; bound "
                    f"{BETWEEN} passes + {SLACK} s = {bound:.2f} s: {'met' if extra <= bound else 'MISSED'}"
                )
                figures["lag 0"] = {"with": found[True], "without": found[False], "plain": passes, "extra": extra}
    console.print(f"{os.cpu_count()} cores, load average at the start {figures['load']:.1f}")
    if out is not None:
        out.write_text(json.dumps(figures, indent=1, default=str))


if __name__ == "__main__":
    typer.run(main)
