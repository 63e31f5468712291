"""What the folder of a search holds, read back: every trial with its parameters and its curve."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
from optuna.distributions import CategoricalDistribution, IntDistribution

from equipoise.models.errors import EquipoiseError
from equipoise.pipelines.files import read_json
from equipoise.pipelines.tuning.config import TuneConfig, load_tune
from equipoise.tune_spaces import Parameter

PREFIX = "param/"


@dataclass(frozen=True)
class FoundTrial:
    """A row of trials.parquet. `params` only of what was drawn; `values` {"full", "missing", "score"} of the kept epoch, NaN
    where there is none; `curve` (step, {the same}) an epoch; `steps` all that were spent on it.
    """

    number: int
    kind: str
    status: str
    params: Mapping[str, Any]
    values: Mapping[str, float]
    curve: tuple[tuple[int, Mapping[str, float]], ...]
    step: int
    steps: int
    seconds: float
    error: str | None

    def at(self, step: int, objective: str) -> float | None:
        """The objective after the first epoch that ends at `step` or later; None where it never came so far."""
        return next((row[objective] for reached, row in self.curve if reached >= step), None)


@dataclass(frozen=True)
class Found:
    """The trials of a search in the order of their numbers, its configuration, and confirm.json, if it is there."""

    config: TuneConfig
    trials: tuple[FoundTrial, ...]
    confirmed: Mapping[str, Any] | None

    def of(self, status: str) -> list[FoundTrial]:
        return [trial for trial in self.trials if trial.status == status]

    @property
    def select(self) -> str:
        return self.config.select

    @property
    def max_steps(self) -> int:
        """Optimiser steps of a trial that is trained to its end."""
        return self.config.base.max_steps or 0

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        return self.config.searched.parameters

    @cached_property
    def best(self) -> FoundTrial | None:
        """The winner, by the rule of the search: the best of the fully trained, the first of equals."""
        done = [trial for trial in self.of("done") if math.isfinite(trial.values[self.select])]
        return max(done, key=lambda trial: (trial.values[self.select], -trial.number), default=None)

    @cached_property
    def default(self) -> FoundTrial | None:
        """The first trial with the parameters of the base."""
        return next((t for t in self.trials if dict(t.params) == self.config.default), None)

    @property
    def one_modality(self) -> bool:
        """Whether nothing can be missing: both objectives are then the same."""
        seen = [t.values for t in self.trials if math.isfinite(t.values["full"])]
        return bool(seen) and all(v["full"] == v["missing"] for v in seen)

    @property
    def early(self) -> int:
        """The step by which a trial can first be stopped: all are comparable there, stopped or not."""
        return max(1, round(self.config.grace * self.max_steps))


def read_search(out: Path) -> Found:
    """Read the folder of a search.

    Raises:
        EquipoiseError: there is no search, or no trial of it has ended.
    """
    path = out / "tune.yaml"
    if not path.is_file():
        raise EquipoiseError(f"{out} holds no search (no tune.yaml): give the folder that `equipoise tune` wrote to.")
    if not (out / "trials.parquet").is_file() or (table := pd.read_parquet(out / "trials.parquet")).empty:
        raise EquipoiseError(f"No trial in {out} has ended, so there is nothing to show yet: try again later.")
    config = load_tune(path)
    curves = pd.DataFrame(columns=["number", "epoch", "step", "full", "missing", "score"])
    if (out / "curves.parquet").is_file():
        curves = pd.read_parquet(out / "curves.parquet")
    by_trial = {int(str(number)): rows for number, rows in curves.sort_values("step").groupby("number")}
    trials = [_trial(row, by_trial.get(int(row["number"])), config) for row in table.to_dict("records")]
    return Found(config, tuple(sorted(trials, key=lambda trial: trial.number)), read_json(out / "confirm.json"))


def _trial(row: Mapping[Any, Any], curve: pd.DataFrame | None, config: TuneConfig) -> FoundTrial:
    params: dict[str, Any] = {}
    for parameter in config.searched.parameters:
        value = row.get(PREFIX + parameter.key)
        if parameter.applies(params) and (not _absent(value) or _holds_none(parameter)):
            params[parameter.key] = restored(parameter, value)
    points = [] if curve is None else curve.to_dict("records")
    step = _whole(row["step"])
    return FoundTrial(
        number=int(row["number"]),
        kind=str(row["kind"]),
        status=str(row["status"]),
        params=params,
        values=_values(row),
        curve=tuple((int(point["step"]), _values(point)) for point in points),
        step=step,
        steps=_whole(row.get("steps", step)),
        seconds=float(row["seconds"]),
        error=str(row["error"]) if isinstance(row.get("error"), str) else None,
    )


def restored(parameter: Parameter, value: Any) -> Any:
    """A parameter's value as it was drawn: Parquet has one type a column, so that choices may come as text or as floats."""
    d = parameter.distribution
    if isinstance(d, CategoricalDistribution):
        if value != value:  # pandas' NaN for None
            value = None
        same = [choice for choice in d.choices if choice == value] or [c for c in d.choices if str(c) == str(value)]
        return same[0] if same else value
    return int(value) if isinstance(d, IntDistribution) else float(value)


def _absent(value: Any) -> bool:
    return value is None or value != value


def _holds_none(parameter: Parameter) -> bool:
    return isinstance(parameter.distribution, CategoricalDistribution) and None in parameter.distribution.choices


def _values(row: Mapping[Any, Any]) -> dict[str, float]:
    return {name: float(row[name]) if row[name] is not None else math.nan for name in ("full", "missing", "score")}


def _whole(value: Any) -> int:
    return 0 if _absent(value) else int(value)
