"""The configuration of a search: what is searched around which run, with what budget."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from pydantic import Field, field_validator, model_validator

from equipoise.models.errors import EquipoiseError, unknown
from equipoise.pipelines.config import (
    Config,
    Section,
    differing_keys,
    flat,
    load_config,
    override,
    pairs,
    read_mapping,
    validated,
)
from equipoise.tune_spaces import Space, space_for

#: What trials can be chosen by, all on validation; see `equipoise.pipelines.objectives`.
OBJECTIVES = ("score", "full", "missing")
#: Keys of a run that say where and how long it runs, not how it learns: searching them would compare unequal runs.
_FIXED = (
    "data",
    "out",
    "seed",
    "max_steps",
    "max_epochs",
    "early_stopping",
    "workers",
    "actors",
    "threads",
    "device",
    "tracker",
    "report",
)
#: What may differ when a search goes on: how long, how wide, and what comes after it.
_MAY_CHANGE = ("out", "trials", "budget", "concurrent", "confirm", "base.out")


class Trials(Section):
    """How many, by kind: light ones (one process each), then whole runs of `fit`."""

    light: int = Field(24, ge=0, description="in one process each, for data that fits in its memory")
    train: int = Field(0, ge=0, description="whole runs under Ray Train, with base.workers and base.actors")


class Budget(Section):
    """Ceilings beside `trials`, over all sittings of a search."""

    hours: float | None = Field(None, gt=0, description="no trial starts later")
    steps: int | None = Field(None, ge=1, description="optimiser steps of all trials, never exceeded")


class ConfirmConfig(Section):
    """The look at test at the end: best against default."""

    seeds: int = Field(5, ge=0, description="seeds that the search has not used; 0: no look")


class TuneConfig(Section):
    """Everything that a search is made of. `base` is a configuration of `fit`, in YAML also the path to one."""

    base: Config
    out: str = Field(description="folder of the search")
    space: dict[str, Any] = Field(
        default_factory=dict, description="changes to the space of the base's methods: {key: how, null leaves it out}"
    )
    trials: Trials = Trials()
    budget: Budget = Budget()
    concurrent: int | None = Field(None, ge=1, description="trials at once; null: as many as fit")
    cpus: float = Field(1.0, gt=0, description="cores of a light trial; its torch threads are the whole ones")
    gpus: float = Field(0.0, ge=0, description="GPUs of a light trial, or a share of one")
    sampler: Literal["tpe", "random"] = "tpe"
    stop: Literal["asha", "none"] = "asha"
    grace: float = Field(
        0.12, gt=0, le=1, description="share of max_steps that every trial gets; with reduction 3, rungs at 12 and 36 %"
    )
    reduction: float = Field(3.0, gt=1, description="one in so many goes on past a rung")
    select: str = Field("score", description="what the winner and early stopping go by: score, full or missing")
    seed: int = Field(0, ge=0, description="of the sampler; base.seed is that of every training")
    confirm: ConfirmConfig = ConfirmConfig()

    @field_validator("select")
    @classmethod
    def _on_validation(cls, value: str) -> str:
        name = value.removeprefix("validation/")
        if name.partition("/")[0] == "test":
            raise EquipoiseError(
                f"select={value!r} would choose on test: trials are chosen on validation, by {', '.join(OBJECTIVES)}; test is "
                "looked at once, at the end (confirm.seeds)."
            )
        if name not in OBJECTIVES:
            raise unknown("objective", value, OBJECTIVES)
        return name

    @model_validator(mode="after")
    def _at_least_one_trial(self) -> TuneConfig:
        if self.base.max_steps is None:
            raise EquipoiseError(
                "A search gives every trial the same number of optimiser steps: give base.max_steps, such as base.max_steps=400."
            )
        if self.trials.light + self.trials.train < 1:
            raise EquipoiseError(
                "A search needs a trial at least: give trials.light or trials.train, such as trials.light=24."
            )
        if self.budget.steps is not None and self.budget.steps < self.base.max_steps:
            raise EquipoiseError(
                f"budget.steps={self.budget.steps} is below one trial, which takes base.max_steps={self.base.max_steps}: raise "
                "it, or shorten the trials."
            )
        if self.trials.light and self.base.device == "cuda" and not self.gpus:
            raise EquipoiseError(
                "base.device=cuda, but light trials ask for no GPU (gpus=0) and would train on the CPU: give gpus=1, or a share "
                "such as gpus=0.25, or leave base.device out."
            )
        return self

    @cached_property
    def searched(self) -> Space:
        """What is searched. Raises `EquipoiseError`: a space that cannot be read."""
        return space_for(self.base.balancer.name, self.base.resampler.name, self.space)

    @property
    def default(self) -> dict[str, Any]:
        """{key: value} of the first trial: the base as it is, and the methods' defaults where it is silent."""
        said = flat(self.base.model_dump())
        found: dict[str, Any] = {}
        for parameter in self.searched.parameters:
            if parameter.applies(found):
                found[parameter.key] = said.get(parameter.key, parameter.default)
        return found

    def candidate(self, params: Mapping[str, Any]) -> Config:
        """The run that some parameters make of the base."""
        return load_config(self.base.model_dump(), dict(params))

    def check_space(self) -> None:
        """Raises `EquipoiseError`: a parameter that no run has, or bounds that a run would refuse."""
        own = [parameter.key for parameter in space_for(self.base.balancer.name, self.base.resampler.name).parameters]
        for key, how in self.space.items():
            if how is None and key not in own:
                raise unknown("searched parameter", key, own)
        if not self.searched.parameters:
            raise EquipoiseError("The space is empty, so all trials would be the same: leave a parameter in `space:`.")
        for parameter in self.searched.parameters:
            if parameter.key.partition(".")[0] in _FIXED:
                raise EquipoiseError(
                    f"The space holds {parameter.key!r}, which says where or how long a run runs: trials are only comparable "
                    f"where it is the same. Set it under `base:`, and leave it out of `space:`."
                )
            said = self.default.get(parameter.key, parameter.default)
            if (
                isinstance(parameter.distribution, CategoricalDistribution)
                and said not in parameter.distribution.choices
            ):
                raise EquipoiseError(
                    f"The first trial is the base as it is, with {parameter.key}={said!r}, which the space does not hold: it "
                    f"has {', '.join(map(repr, parameter.distribution.choices))}. Add it there, or set base.{parameter.key}."
                )
            if not isinstance(parameter.distribution, CategoricalDistribution) and not _on_scale(
                parameter.distribution, said
            ):
                raise EquipoiseError(
                    f"The first trial is the base as it is, with {parameter.key}={said!r}, which has no place on the scale of "
                    f"its space ({parameter.text}): set base.{parameter.key}, say `choice:`, or leave it out "
                    f"({parameter.key}: null under `space:`)."
                )
            where = {key: values[0] for key, values in parameter.when.items()}
            for value in _ends(parameter.distribution):
                self.candidate({**self.default, **where, parameter.key: value})


def _on_scale(distribution: BaseDistribution, value: Any) -> bool:
    """Whether a value is a number that a numeric distribution can be told of, within its bounds or not."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return False
    if isinstance(distribution, IntDistribution) and value != int(value):
        return False
    return value > 0 or not distribution.log  # type: ignore[attr-defined]  # floats and integers have it


def _ends(distribution: BaseDistribution) -> list[Any]:
    if isinstance(distribution, CategoricalDistribution):
        return list(distribution.choices)
    return [distribution.low, distribution.high]  # type: ignore[attr-defined]  # floats and integers have them


def load_tune(
    source: str | Path | Mapping[str, Any], overrides: Mapping[str, Any] | list[str] | None = None
) -> TuneConfig:
    """A `TuneConfig` from a YAML file or a mapping, with overrides as for `load_config`; paths become absolute.

    Raises:
        EquipoiseError: what a person can mend, in a sentence.
    """
    raw, where = read_mapping(source)
    given = dict(overrides) if isinstance(overrides, Mapping) else pairs(overrides or [])
    for key, value in sorted(given.items(), key=lambda item: item[0].count(".")):
        if key.startswith("space."):  # its keys have dots of their own
            raw["space"] = {**(raw.get("space") or {}), key.removeprefix("space."): value}
        elif not key.startswith("base."):
            override(raw, key, value)
    if isinstance(raw.get("out"), str):
        raw["out"] = str(Path(raw["out"]).resolve())
    if isinstance(base := raw.get("base"), str | Path | Mapping):
        inside = {key.removeprefix("base."): value for key, value in given.items() if key.startswith("base.")}
        found = load_config(base, {**inside, "out": str(Path(str(raw.get("out", ""))) / "best")})
        raw["base"] = found.model_copy(update={"data": str(Path(found.data).resolve())})
    config = validated(TuneConfig, raw, where)
    config.check_space()
    return config


def differences(former: TuneConfig, now: TuneConfig) -> list[str]:
    """What keeps a search from going on in the folder of another one: dotted keys, with both values."""
    return [
        line
        for line in differing_keys(former, now)
        if not any(f"{line}.".startswith((f"{k}:", f"{k}.")) for k in _MAY_CHANGE)
    ]
