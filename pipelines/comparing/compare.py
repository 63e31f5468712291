"""`equipoise compare`: what is missing is trained, and the tables are made of what is there."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.text import Text

from equipoise.models.errors import EquipoiseError
from equipoise.pipelines.comparing.config import CompareConfig, load_compare
from equipoise.pipelines.comparing.plan import SAME_TIME, Plan
from equipoise.pipelines.comparing.training import Job, failed, run
from equipoise.pipelines.files import atomic, read_json, write_json
from equipoise.pipelines.interrupting import alone
from equipoise.pipelines.machine import processor

if TYPE_CHECKING:
    import pandas as pd

#: How long each sitting has taken so far, beside the results.
SITTINGS = "sittings.json"


def compare(
    source: str | Path | Mapping[str, Any], *overrides: str, rebuild: bool = False, console: Console | None = None
) -> list[Path]:
    """Make all trainings of a comparison that are not made yet, then write its tables; the same call goes on with a
    comparison that was interrupted. A training that failed is tried once more by each call.

    Args:
        source: a YAML file or a mapping, see `CompareConfig`; `overrides`: "key=value".
        rebuild: train nothing, write the tables of what is there.

    Returns:
        The files written into `out`: runs.parquet, results.md, results.tex, results.html and figures.

    Raises:
        EquipoiseError: what a person can mend, in a sentence.
    """
    console = console or Console(stderr=True)
    config = load_compare(source, overrides)
    out = Path(config.out)
    with alone(out, "compare", "folder"):
        plan = Plan(config)
        plan.prepare()
        for name, why in plan.absent.items():
            console.print(Text(f"{name} is left out: {why}", "yellow"))
        for (name, method), why in plan.refused.items():
            console.print(Text(f"{name} {method}: {why}", "yellow"))
        if not rebuild:
            with _Sitting(out):
                for phase in (plan.tuning, plan.at_equal_steps, plan.at_equal_time):
                    _make(phase(), config, console)
        return write(plan, " ".join(["equipoise compare", str(source), *overrides]))


def write(plan: Plan, command: str) -> list[Path]:
    """runs.parquet and the tables, of the records that are there."""
    from equipoise.pipelines.comparing.page import write_results

    runs = frame(plan)
    with atomic(plan.out / "runs.parquet") as part:
        runs.to_parquet(part, index=False)
    sittings: dict[str, float] = read_json(plan.out / SITTINGS) or {}
    about = {
        "command": command,
        "machine": f"{processor()}, {os.cpu_count()} cores; Python {platform.python_version()}, torch {version('torch')}",
        "date": date.today().isoformat(),
        "hours": f"{sum(sittings.values()) / 3600:.2f} in {len(sittings)} sitting{'s' * (len(sittings) != 1)}",
    }
    planned = {d: {m.label: plan.config.seeds_of(d) for m in plan.config.methods_of(d)} for d in plan.data}
    more: dict[str, Any] = {"planned": planned, "left_out": plan.absent, "equal_time": plan.config.equal_time}
    return [plan.out / "runs.parquet", *write_results(runs, plan.out, about, **more)]


def frame(plan: Plan) -> pd.DataFrame:
    """One row a training that is made, and one a method that is not defined for a data set."""
    import json

    import pandas as pd

    jobs = [*plan.tuning(), *plan.at_equal_steps(), *plan.at_equal_time()]
    rows: list[dict[str, Any]] = []
    spent: dict[tuple[str, str], int] = {}
    orders: dict[str, np.ndarray] = {}
    for job in jobs:
        if (record := job.record()) is None:
            continue
        key = job.data, job.method
        if job.phase == "tune":
            spent[key] = spent.get(key, 0) + record.get("steps", 0)
        row = {k: v for k, v in record.items() if k not in ("identity", "overrides", "right")}
        right = record.get("right")
        row |= {
            "overrides": json.dumps(record["overrides"]),
            "config": json.dumps(job.config.model_dump(mode="json")),
            "right": _by_source(str(job.config.data), bytes.fromhex(right), orders) if right else None,
            "spent": spent[key] if job.phase != "tune" else None,
        }
        rows.append(row)
    rows += [again for row in rows if (again := _same_time(plan, row)) is not None]
    for (name, label), why in plan.refused.items():
        method = next(m for m in plan.config.methods_of(name) if m.label == label)
        row = {"data": name, "method": label, "balancer": method.balancer, "resampler": method.resampler}
        rows.append({**row, "phase": "steps", "seed": None, "status": "refused", "error": why})
    return pd.DataFrame(rows)


def _by_source(folder: str, right: bytes, orders: dict[str, np.ndarray]) -> bytes:
    """Packed bits of the test rows by the source's own ids: each seed's folder holds the same rows in another order."""
    from equipoise.datasets.reading import Reader

    if folder not in orders:
        reader = Reader(folder)
        chunks = range(reader.manifest.num_chunks("test"))
        orders[folder] = np.argsort(
            [name for chunk in chunks for name in reader.source_ids("test", chunk)], kind="stable"
        )
    order = orders[folder]
    return np.packbits(np.unpackbits(np.frombuffer(right, np.uint8), count=len(order))[order]).tobytes()


def _same_time(plan: Plan, row: Mapping[str, Any]) -> dict[str, Any] | None:
    """The row at equal time of a method that is no slower than joint: its row at equal steps."""
    if not plan.config.equal_time or row["phase"] != "steps" or row["status"] != "done":
        return None
    method = next(m for m in plan.config.methods_of(row["data"]) if m.label == row["method"])
    ratio = plan.slower(row["data"], method)
    return None if ratio is None or ratio > SAME_TIME else {**row, "phase": "time"}


def _make(jobs: Sequence[Job], config: CompareConfig, console: Console) -> None:
    """Make what has no record, `config.jobs` at a time, as tasks of Ray: on this machine, or on the cluster that is there."""
    found = {job.path: job.record() for job in jobs}
    missing = [job for job in jobs if (record := found[job.path]) is None or record["status"] == "failed"]
    told: set[tuple[str, str]] = set()
    began = time.perf_counter()
    for made, (job, record) in enumerate(_results(missing, config), start=1):
        left = (time.perf_counter() - began) / made * (len(missing) - made)
        console.print(
            Text(f"{made}/{len(missing)} {job.name}: {_said(record)} ({left / 60:.0f} min left)"), soft_wrap=True
        )
        key = job.data, job.method
        if record["status"] == "failed" and key not in told:
            told.add(key)
            console.print(Text(f"failed: {job.name}: {record['error']} The rest goes on.", "red"), soft_wrap=True)


def _said(record: Mapping[str, Any]) -> str:
    if record["status"] == "failed":
        return "failed"
    return f"validation {record['validation/full']:.3f}, {record['validation/missing']:.3f} with one missing"


def _results(jobs: Sequence[Job], config: CompareConfig) -> Iterator[tuple[Job, dict[str, Any]]]:
    """Each job with its record, as they are done."""
    if not jobs:
        return
    import ray

    from equipoise.pipelines.ray_local import look, start_tasks

    resources = look()
    cuda = any(job.config.device == "cuda" for job in jobs)
    room = resources.gpus if cuda else sum(int(node.cpus) for node in resources.nodes)
    at_once = config.jobs or max(1, room)
    if not room:
        raise EquipoiseError("`base` asks for device cuda, and there is no GPU: leave it out to train on the CPU.")
    if at_once > room:
        raise EquipoiseError(
            f"jobs={at_once} trainings at a time need as many {'GPUs' if cuda else 'cores'}, and there are {room}: ask for fewer."
        )
    ours = start_tasks(at_once, resources)
    task = ray.remote(num_cpus=1, num_gpus=1 if cuda else 0, max_retries=3)(run)
    waiting = list(jobs)
    running: dict[Any, Job] = {}
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                job = waiting.pop(0)
                running[task.remote(job)] = job
            (ready, *_), _ = ray.wait(list(running))
            job = running.pop(ready)
            try:
                record = ray.get(ready)
            except ray.exceptions.RayError as error:  # its process died each time, for want of memory as a rule
                record = failed(job, f"{type(error).__name__}: its process died, and so did those that tried again.")
            yield job, record
    finally:
        if ours:
            ray.shutdown()
        else:
            # Not by force: Ray ends this process where a task comes to its end while it is being killed.
            for reference in running:
                ray.cancel(reference)


class _Sitting:
    """Adds the seconds of this call to what the comparison has taken, also where it is interrupted."""

    def __init__(self, out: Path) -> None:
        self.file, self.name, self.began = out / SITTINGS, f"{time.time():.0f}", time.perf_counter()

    def __enter__(self) -> None:
        return None

    def __exit__(self, *error: object) -> None:
        known: dict[str, float] = read_json(self.file) or {}
        write_json(self.file, {**known, self.name: time.perf_counter() - self.began})
