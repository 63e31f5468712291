"""What is known of every trial: trials/NNNN/record.json, written whole after every epoch, and the tables made from them.

The records are the truth of a search: the study of Optuna follows them, and what Ray keeps is not read again.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from equipoise.pipelines.files import atomic, write_json

#: "stopped": by early stopping. The other ends are an end of its budget and an error.
ENDED = ("done", "stopped", "failed")
CURVE = ("epoch", "step", "full", "missing", "score", "loss", "seconds")


@dataclass
class Record:
    """One trial. `params` {key: value} as drawn, `config` the whole run that they make (empty where it
    is refused), `curve` a row an epoch with the keys
    of `CURVE` and more, `steps` all optimiser steps spent on it, lost attempts included, `seconds` of wall time.
    """

    number: int
    kind: str
    params: dict[str, Any]
    config: dict[str, Any]
    status: str = "running"
    attempts: int = 0
    curve: list[dict[str, Any]] = field(default_factory=list)
    steps: int = 0
    seconds: float = 0.0
    error: str | None = None

    @property
    def ended(self) -> bool:
        return self.status in ENDED

    @property
    def kept(self) -> dict[str, Any] | None:
        """The row of the epoch whose model a run keeps: the best `full`, then the lower loss. None before the first."""
        return max(self.curve, key=lambda row: (row["full"], -row["loss"]), default=None)

    @property
    def step(self) -> int:
        """The optimiser step reached."""
        return self.curve[-1]["step"] if self.curve else 0

    def add(self, row: dict[str, Any]) -> None:
        """The row of an epoch. What an earlier attempt said of it and of later ones is forgotten."""
        self.curve = [former for former in self.curve if former["epoch"] < row["epoch"]]
        self.steps += row["step"] - self.step
        self.curve.append(row)


class Records:
    """The records in a folder, by number."""

    def __init__(self, out: Path) -> None:
        self.folder = out / "trials"
        found = (json.loads(path.read_text()) for path in sorted(self.folder.glob("*/record.json")))
        self.by_number = {said["number"]: Record(**said) for said in found}

    def path(self, number: int) -> Path:
        """The folder of a trial."""
        return self.folder / f"{number:04d}"

    def write(self, record: Record) -> None:
        self.by_number[record.number] = record
        write_json(self.path(record.number) / "record.json", asdict(record))

    def ended(self, kind: str | None = None) -> list[Record]:
        """Those that are not run again."""
        return [r for _, r in sorted(self.by_number.items()) if r.ended and kind in (None, r.kind)]

    @property
    def steps(self) -> int:
        """Optimiser steps spent in all."""
        return sum(record.steps for record in self.by_number.values())

    def best(self, select: str) -> Record | None:
        """The winner: of the fully trained ones, the best of what `fit` would keep of them; the first of equals."""
        done = [(r.kept[select], -r.number, r) for r in self.ended() if r.status == "done" and r.kept]
        return max(done, key=lambda found: found[:2])[2] if done else None

    def tables(self) -> tuple[pd.DataFrame, pd.DataFrame]:
        """(a row an ended trial, a row an epoch of them); `full`, `missing` and `score` of a trial are of its kept epoch."""
        ended = self.ended()
        rows = []
        for record in ended:
            kept = record.kept or {}
            rows.append(
                {
                    "number": record.number,
                    "kind": record.kind,
                    "status": record.status,
                    **{f"param/{key}": value for key, value in record.params.items()},
                    **{name: kept.get(name, float("nan")) for name in ("full", "missing", "score")},
                    "epoch": kept.get("epoch"),
                    "step": record.step,
                    "steps": record.steps,
                    "seconds": record.seconds,
                    "attempts": record.attempts,
                    "error": record.error,
                }
            )
        trials = pd.DataFrame(rows)
        trials["pareto"] = _pareto(trials)
        curves = [{"number": r.number, **{name: row.get(name) for name in CURVE}} for r in ended for row in r.curve]
        return trials, pd.DataFrame(curves, columns=["number", *CURVE])

    def write_tables(self, out: Path) -> pd.DataFrame:
        """trials.parquet and curves.parquet; returns the first."""
        trials, curves = self.tables()
        for name, table in (("trials", trials), ("curves", curves)):
            with atomic(out / f"{name}.parquet") as part:
                _one_type(table).to_parquet(part, index=False)
        return trials


def _pareto(trials: pd.DataFrame) -> np.ndarray:
    """bool: which fully trained trials no other one beats in `full` or `missing` without losing in the other."""
    if trials.empty:
        return np.zeros(0, bool)
    points = trials[["full", "missing"]].to_numpy(float)
    done = (trials["status"] == "done").to_numpy() & np.isfinite(points).all(axis=1)
    no_worse = (points[:, None] >= points[None]).all(axis=2)
    better = (points[:, None] > points[None]).any(axis=2)
    beaten = (no_worse & better & done[:, None]).any(axis=0)
    return np.asarray(done & ~beaten)


def _one_type(table: pd.DataFrame) -> pd.DataFrame:
    """Columns that hold several types, such as a choice between null and a number, as text: Parquet has one a column."""
    mixed = {
        name: table[name].map(lambda value: value if value is None else str(value))
        for name in table.columns
        if table[name].dtype == object and table[name].dropna().map(type).nunique() > 1
    }
    return table.assign(**mixed)
