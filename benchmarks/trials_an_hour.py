"""What a search costs beside its trainings: `python -m benchmarks.trials_an_hour DATA`, from the root of the repository.

Light trials an hour under `equipoise tune` / the same trials, parameters and all, in a plain pool of as many processes. A
trial is sized to take 20 s alone. A round runs both, in turning order; the figure is the median of the rounds' ratios.
Target: 0.8.

- whole: from the command to its end: with Ray's start, the tables and the page, and the pool's with its imports;
- trials: from the start of the first trial to the end of the last, what a long search tends to.

Both sides run on one thread a process and as nice as Ray makes its workers, so that other work on the machine bends both alike.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from datetime import date
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
import yaml
from rich.console import Console

from benchmarks.sweep import machine

PAGE = Path(__file__).parents[1] / "docs" / "search.md"
START, END = "<!-- figures of benchmarks.trials_an_hour -->", "<!-- end of the figures of benchmarks.trials_an_hour -->"
TARGET, SECONDS = 0.8, 20.0
NICE = 15  # of Ray's workers (RAY_worker_niceness)


def ready() -> None:
    """What a process of the pool does first."""
    os.nice(max(0, NICE - os.nice(0)))
    torch.set_num_threads(1)


def train(said: dict[str, Any]) -> tuple[float, float]:
    """When one training began and ended."""
    from equipoise.pipelines.config import Config
    from equipoise.pipelines.light import train_light

    began = time.time()
    train_light(Config.model_validate(said), splits=())
    return began, time.time()


def pool(trials: list[dict[str, Any]], processes: int) -> dict[str, float]:
    """{"whole", "trials"} in seconds of some trainings in a plain pool."""
    began = time.time()
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), ready) as workers:
        spans = list(workers.map(train, trials))
    return {"whole": time.time() - began, "trials": max(e for _, e in spans) - min(b for b, _ in spans)}


def tuned(config: dict[str, Any], out: Path) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """The same of `equipoise tune`, and the whole configurations of its trials."""
    shutil.rmtree(out, ignore_errors=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    file = out.with_suffix(".yaml")
    file.write_text(yaml.safe_dump({**config, "out": str(out)}))
    began = time.time()
    done = subprocess.run([sys.executable, "-m", "equipoise.cli", "tune", str(file)], capture_output=True, text=True)
    whole = time.time() - began
    if done.returncode:
        raise SystemExit(f"equipoise tune failed:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    paths = sorted(out.glob("trials/*/record.json"))
    records = [json.loads(path.read_text()) for path in paths]
    # A record is written for the last time at the end of its trial.
    ends = [path.stat().st_mtime for path in paths]
    starts = [end - record["seconds"] for end, record in zip(ends, records)]
    return {"whole": whole, "trials": max(ends) - min(starts)}, [record["config"] for record in records]


def sized(base: dict[str, Any]) -> int:
    """Optimiser steps that take `SECONDS` in a process of the pool."""
    probe = {**base, "max_steps": 200}
    [trained] = [pool([probe], 1)["trials"]]
    return max(200, int(200 * SECONDS / trained))


def main(
    data: Annotated[Path, typer.Argument(help="a prepared data set")],
    rounds: Annotated[int, typer.Option(help="rounds")] = 3,
    trials: Annotated[int, typer.Option(help="trials a search")] = 8,
    steps: Annotated[int, typer.Option(help="optimiser steps of a trial; 0: as many as take 20 s")] = 0,
    balancer: Annotated[str, typer.Option(help="whose options are searched")] = "balgrad",
    out: Annotated[Path, typer.Option(help="folder for the searches")] = Path("runs/trials-an-hour"),
    write: Annotated[bool, typer.Option(help="write the figures into docs/search.md")] = False,
) -> None:
    """Time `equipoise tune` against a plain process pool, and print a table in Markdown."""
    console = Console(width=200, soft_wrap=True)
    os.environ["OMP_NUM_THREADS"] = "1"
    processes = len(os.sched_getaffinity(0))
    from equipoise.pipelines.config import load_config

    base = {
        "data": str(data.resolve()),
        "out": str(out.resolve() / "none"),
        "balancer": balancer,
        "batch_size": 64,
        "max_steps": 1,
    }
    base |= {"threads": 1, "workers": 1}
    made = {**load_config(base).model_dump(mode="json")}
    base["max_steps"] = steps or sized(made)
    about = machine(torch.device("cpu"))
    config = {"base": base, "trials": {"light": trials}, "sampler": "random", "stop": "none", "confirm": {"seeds": 0}}
    _, known = tuned({**config, "base": {**base, "max_steps": 1}}, out.resolve() / "trials")  # which trials they are
    known = [{**trial, "max_steps": base["max_steps"]} for trial in known]
    found: list[dict[str, dict[str, float]]] = []
    for turn in range(rounds):
        ways = {"pool": lambda: pool(known, processes), "tune": lambda: tuned(config, out.resolve() / "search")[0]}
        order = ["pool", "tune"] if turn % 2 else ["tune", "pool"]
        found.append({way: ways[way]() for way in order})
        console.print(f"round {turn + 1}: {found[-1]}")
    text = [
        f"{trials} light trials of {base['max_steps']} steps ({balancer} on {data.name}), {processes} at a time, {rounds} rounds",
        "",
        "| | trials an hour, tune | trials an hour, pool | tune / pool, median | rounds | target |",
        "|---|---|---|---|---|---|",
    ]
    for what in ("whole", "trials"):
        rates = {way: [3600 * trials / one[way][what] for one in found] for way in ("tune", "pool")}
        ratios = [a / b for a, b in zip(rates["tune"], rates["pool"], strict=True)]
        middle = statistics.median(ratios)
        text.append(
            f"| {what} | {statistics.median(rates['tune']):.0f} | {statistics.median(rates['pool']):.0f} | {middle:.2f} | "
            f"{', '.join(f'{r:.2f}' for r in ratios)} | {'met' if middle >= TARGET else 'missed'} |"
        )
    alone = statistics.median(one["pool"]["trials"] * processes / trials for one in found)
    text.append("")
    said = f"{data} --rounds {rounds} --trials {trials} --steps {base['max_steps']} --balancer {balancer} --write"
    text.append(
        f"A trial took {alone:.0f} s in the pool. `python -m benchmarks.trials_an_hour {said}`, {date.today()}; {about}."
    )
    console.print("\n".join(text), markup=False)
    if write:
        page = PAGE.read_text()
        head, tail = page[: page.index(START)], page[page.index(END) :]
        PAGE.write_text(f"{head}{START}\n\n" + "\n".join(text).strip() + f"\n\n{tail}")


if __name__ == "__main__":
    typer.run(main)
