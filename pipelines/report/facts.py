"""What is stored of a run. Nothing is computed anew: a report sweeps no split, test least of all."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from equipoise.datasets.manifest import Manifest
from equipoise.datasets.opening import open_parquet
from equipoise.models.errors import EquipoiseError
from equipoise.pipelines.files import read_json
from equipoise.pipelines.run import Run
from equipoise.pipelines.sentences import refused
from equipoise.pipelines.sweeps import matrix_rows
from equipoise.valuation.coalitions import bits, coalition_name, members
from equipoise.valuation.plan import Plan
from equipoise.valuation.store import read_values, values_of

if TYPE_CHECKING:
    from equipoise.valuation.values import Values

MANY = 6  # above so many modalities, coalitions are summed up by their size


@dataclass(frozen=True, eq=False)
class Valued:
    """A stored sweep of train: its epoch, and row by row (sorted by sample_id) what it found.

    `contributions` float64 [n, M] with NaN where absent, `copies` uint8 [n, M], `values` the score tables.
    """

    epoch: int | str
    title: str
    source_id: list[str]
    contributions: np.ndarray
    copies: np.ndarray
    values: Values

    @property
    def benefits(self) -> np.ndarray:
        """float64 [n]: the benefit of each row's prediction from all the modalities that it has."""
        at = bits(self.values.present).astype(np.int64) - 1
        return self.values.score[np.arange(len(at)), at].astype(np.float64)

    @property
    def benefit(self) -> float:
        return float(self.benefits.mean())


class Facts:
    """A run as its folder tells it. `name` is what the page calls it.

    Raises:
        EquipoiseError: the run has not finished its first epoch.
    """

    def __init__(self, run: Run, name: str) -> None:
        self.run, self.name = run, name
        if not (run.path / "metrics.parquet").is_file():
            raise EquipoiseError(
                f"The run in {run.path} has not finished its first epoch, so there is nothing to report yet{self._now()}: "
                "call `equipoise report` again when an epoch is done."
            )
        own = run.path / "manifest.json"
        # The run's own copy: a report does without the data set, but for the samples themselves.
        self.manifest = Manifest.load(run.path) if own.is_file() else run.manifest
        self.modalities = self.manifest.names
        self.metrics = run.metrics
        self.steps = run.steps if (run.path / "steps.parquet").is_file() else pd.DataFrame()
        self.best: dict[str, Any] | None = run.checkpoints.best
        self.task = self.manifest.build_task()
        self.headline = str((self.best or {}).get("metric", self.task.headline))
        self.environment: dict[str, Any] = read_json(run.path / "environment.json") or {}

    @property
    def epochs(self) -> list[int]:
        return [int(e) for e in self.metrics["epoch"]]

    def column(self, name: str) -> list[float | None] | None:
        """A column of metrics.parquet with None for what is missing; None where there is no such column."""
        return optional(self.metrics[name]) if name in self.metrics else None

    @property
    def status(self) -> str:
        """One sentence: finished, still going on, or stopped."""
        done = f"{len(self.epochs)} epoch{'s' if len(self.epochs) != 1 else ''}"
        if self.run.finished:
            return f"Finished after {done} and {self.total_steps:,} steps."
        if (sentence := refused(self.run.path)) is not None:
            return f"Stopped: {sentence} What follows is of the {done} before."
        return f"Not finished{self._now()}. What follows is of the {done} done so far."

    @property
    def total_steps(self) -> int:
        return int(self.metrics["step"].iloc[-1]) if "step" in self.metrics else 0

    def _now(self) -> str:
        path = self.run.path / "progress.json"
        now = read_json(path)
        if not now:
            return ""
        told = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(path.stat().st_mtime))
        where = f"epoch {now.get('epoch')}, {now.get('phase')}, {now.get('done', 0):,} of {now.get('total', 0):,}"
        return f" (last sign of life {told}: {where})"

    def setup(self) -> dict[str, str]:
        """How the run was made, in words."""
        c, m = self.run.config, self.manifest
        versions = ", ".join(f"{k} {v}" for k, v in self.environment.get("packages", {}).items())
        rows = ", ".join(f"{split.rows:,} {name}" for name, split in m.splits.items())
        budget = [f"{c.max_steps:,} steps"] if c.max_steps else []
        budget += [f"{c.max_epochs} epochs"] if c.max_epochs else []
        best = "none yet"
        if self.best:
            best = f"{self.best['epoch']} ({self.headline} {self.best['value']:.4g} on validation)"
            best += ", the lowest" if self.task.lower_is_better else ""
        return {
            "balancer": _method(c.balancer),
            "resampler": _method(c.resampler),
            "data set": f"{m.name} ({rows}; hash {m.hash[:12]})",
            "task": m.task.described,
            "benefit": f"{m.task.worth}",
            "modalities": ", ".join(f"{x.name} ({x.kind} {_shape(x.shape)})".replace(" )", ")") for x in m.modalities),
            "model": f"{c.model.kind}, fusion {c.model.fusion}" if c.model.kind == "late" else c.model.kind,
            "optimiser": f"{c.optimizer.name}, rate {c.optimizer.lr:g}, batch {c.batch_size}",
            "steps": f"{self.total_steps:,} in {len(self.epochs)} epochs (budget {' or '.join(budget)})",
            "best epoch": best,
            "seed": str(c.seed),
            "workers, actors": f"{c.workers}, {c.actors} on {self.environment.get('device', c.device)}",
            "versions": versions or "not recorded",
        }

    def matrix(self, split: str) -> list[dict[str, Any]]:
        """The missing-modality matrix of the best checkpoint, full set first; [] where it was not swept."""
        if self.best is None:
            return []
        known = self.run.epochs(split)
        epoch = "best" if "best" in known else self.best["epoch"]
        if split != "test" and epoch not in known:
            return self._matrix_from_metrics()
        if epoch not in known or (split == "test" and epoch != "best"):
            return []
        return matrix_rows(self.run.result(split, epoch), self.modalities)

    def _matrix_from_metrics(self) -> list[dict[str, Any]]:
        """Validation's matrix from the best epoch's row of metrics.parquet, as far as it is there."""
        row = self.metrics[self.metrics["epoch"] == (self.best or {}).get("epoch")]
        sizes, out = members(len(self.modalities)).sum(axis=1), []
        for c in sorted(range(1, len(sizes) + 1), key=lambda c: (-sizes[c - 1], c)):
            name = coalition_name(c, self.modalities)
            prefix = "validation/" if c == len(sizes) else f"validation/{name}/"
            found = {
                k[len(prefix) :]: row[k].iloc[0]
                for k in map(str, row)
                if k.startswith(prefix) and k.count("/") == prefix.count("/")
            }
            if len(row) and found:
                out.append({"coalition": name, "modalities": int(sizes[c - 1]), **found})
        return out

    def by_size(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """A matrix summed up by the number of modalities present: the mean, least and most of the headline metric."""
        out = []
        for size in sorted({row["modalities"] for row in rows}, reverse=True):
            found = [row[self.headline] for row in rows if row["modalities"] == size and self.headline in row]
            numbers = {"mean": float(np.mean(found)), "least": min(found), "most": max(found)} if found else {}
            out.append(
                {"coalition": f"{size} of {len(self.modalities)} modalities", "coalitions": len(found), **numbers}
            )
        return out

    def heading(self, measure: str) -> str:
        """What the page calls a metric."""
        return f"{measure} (lower is better)" if measure == self.headline and self.task.lower_is_better else measure

    def bar(self, value: float, measure: str, rows: list[dict[str, Any]]) -> float:
        """The length of a bar beside a value of the headline, 0 to 1: a share's own, else its part of the largest."""
        if not self.task.lower_is_better:
            return min(max(value, 0.0), 1.0)
        largest = max((row[measure] for row in rows if row.get(measure, 0) > 0), default=1.0)
        return float(min(max(value / largest, 0.0), 1.0))

    def average_and_gap(self, rows: list[dict[str, Any]]) -> tuple[float, float] | None:
        """Avg and Gap: mean, and largest difference, of the headline metric with exactly one modality missing."""
        found = [r[self.headline] for r in rows if r["modalities"] == len(self.modalities) - 1 and self.headline in r]
        return (float(np.mean(found)), float(max(found) - min(found))) if len(found) > 1 else None

    @cached_property
    def valued(self) -> Valued | None:
        """The stored sweep of train: of the best checkpoint, else the last one; None where there is none."""
        known = self.run.epochs("train")
        if not known:
            return None
        epoch = known[-1]  # "best" comes last
        expected = {"modalities": self.modalities, "manifest_hash": self.manifest.hash, "split": "train"}
        table = read_values(self.run.values_folder("train", epoch), expected, opener=open_parquet)
        title = f"epoch {epoch}"
        if epoch == "best":
            title = f"the best checkpoint (epoch {(self.best or {}).get('epoch')})"
        return Valued(
            epoch,
            title,
            table["source_id"].to_pylist(),
            np.column_stack([table[f"contribution_{m}"].to_numpy() for m in self.modalities]),
            np.column_stack([table[f"copies_{m}"].to_numpy() for m in self.modalities]),
            values_of(table),
        )

    def last_plan(self) -> tuple[int, Plan] | None:
        """The newest resampling plan and its epoch."""
        found = sorted(p for p in (self.run.path / "plans").glob("*.npy") if p.stem.isdigit())
        return (int(found[-1].stem), Plan.load(found[-1])) if found else None


def named(runs: Iterable[Run]) -> list[Facts]:
    """The facts of runs, each under a name of its own."""
    out: list[Facts] = []
    for run in runs:
        path, taken = Path(run.path).resolve(), {f.name for f in out}
        name = next(
            (n for n in (path.name, "/".join(path.parts[-2:])) if n not in taken), f"{path.name} ({len(out) + 1})"
        )
        out.append(Facts(run, name))
    return out


def optional(values: Iterable[Any]) -> list[float | None]:
    """Floats, None for what is missing."""
    return [None if v is None or v != v else float(v) for v in values]


def _method(method: Any) -> str:
    options = ", ".join(f"{k}={v}" for k, v in method.options.items())
    return f"{method.name} ({options})" if options else str(method.name)


def _shape(shape: tuple[int, ...]) -> str:
    return " × ".join(map(str, shape))
