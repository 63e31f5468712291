"""The configuration of a comparison: which methods, on which data, with how much tuning, over how many seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from equipoise import balancers, valuation
from equipoise.models.errors import EquipoiseError, unknown
from equipoise.pipelines.config import Section, override, pairs, read_mapping, validated

#: What every claim is judged against, so always run: plain training, unimodal losses, steps and copies without valuation,
#: masks, and a model a modality.
CONTROLS = ("joint", "summed", "joint+more_steps", "joint+random_copies", "modality_dropout", "ensemble")
#: What every method is compared with.
REFERENCES = ("joint", "summed")
#: Sections of a training's configuration that the comparison chooses, and those that would end trainings at other steps.
CHOSEN = ("data", "out", "seed", "balancer", "resampler")
ENDING = ("max_epochs", "early_stopping")


class DataSet(Section):
    """A data set: one to prepare, `source` with its options, or one that is prepared, `path`.

    A seed draws its own train and validation rows (`seed_as: seed`) or names the fold held out (`seed_as: fold`); those of
    a prepared one are always the same, and seeds differ in the model's first weights and the order of rows.
    """

    source: str | None = None
    options: dict[str, Any] = Field(default_factory=dict)
    path: str | None = None
    seed_as: Literal["seed", "fold"] | None = Field(None, description="seed, where there is a source")
    seeds: int | None = Field(None, ge=1, description="at most so many")
    methods: list[str] | None = Field(None, description="only these, `joint` and `summed` among them")
    base: dict[str, Any] = Field(default_factory=dict, description="what differs from the base of all data sets")

    @model_validator(mode="after")
    def _one_origin(self) -> DataSet:
        if (self.source is None) == (self.path is None):
            raise EquipoiseError(
                "A data set of a comparison needs either `source` (what `equipoise prepare` takes) or `path` (what it wrote)."
            )
        if given := [key for key in ("seed", "fold") if key in self.options]:
            raise EquipoiseError(
                f"`options` of a data set cannot set {given[0]!r}: each seed of the comparison gives its own (`seed_as`)."
            )
        _check_base(self.base)
        if self.methods is not None and (lacking := [m for m in REFERENCES if m not in self.methods]):
            raise EquipoiseError(
                f"The `methods` of a data set leave out {' and '.join(lacking)}, which all are compared with: name them too."
            )
        return self


class TuningConfig(Section):
    """How much tuning every method gets on every data set: configurations of one seed, chosen on validation."""

    configurations: int = Field(8, ge=1, description="of a method with one objective and no resampler")
    several: int = Field(4, ge=1, description="of the others, which cost a multiple")
    seed: int = Field(0, ge=0, description="of the design; every method gets the same learning rates and weight decays")


class CompareConfig(Section):
    """Everything that a comparison is made of. Unknown keys are errors."""

    out: str = Field(description="folder of the runs and the results")
    data: dict[str, DataSet]
    balancers: list[str] | Literal["all"] = "all"
    resamplers: list[str] | Literal["all"] = Field("all", description="run with each of `resampled`")
    resampled: list[str] = Field(["joint"], description="balancers that are also run with the resamplers")
    seeds: int = Field(5, ge=1)
    tuning: TuningConfig = TuningConfig()
    select: Literal["score", "full", "missing"] = Field(
        "score", description="on validation: full, the mean with one modality missing, or the mean of the two"
    )
    equal_time: bool = Field(True, description="run everything once more with the processor time of joint")
    severity: int = Field(3, ge=1, le=5, description="of the noise on test rows")
    base: dict[str, Any] = Field(default_factory=dict, description="of every training, as in a configuration of `fit`")
    space: dict[str, Any] = Field(
        default_factory=dict, description="changes of what is searched along with every method"
    )
    jobs: int | None = Field(None, ge=1, description="trainings at a time; None: a core or a GPU each")

    @field_validator("data")
    @classmethod
    def _some(cls, value: dict[str, DataSet]) -> dict[str, DataSet]:
        if not value:
            raise EquipoiseError("A comparison needs one data set or more under `data`.")
        for name in value:
            if not name or "/" in name or name.startswith("."):
                raise EquipoiseError(f"A data set cannot be called {name!r}: its name becomes a folder.")
        return value

    @model_validator(mode="after")
    def _known(self) -> CompareConfig:
        for kind, named, known in (
            ("balancer", [*self._named("balancers"), *self.resampled], balancers.names()),
            ("resampler", self._named("resamplers"), valuation.names()),
        ):
            for name in named:
                if name not in known:
                    raise unknown(kind, name, known)
        everything = {method.label for method in self.methods()}
        for name, data in self.data.items():
            for label in data.methods or ():
                if label not in everything:
                    raise unknown(f"method of the data set {name!r}:", label, everything)
        for key in self.space:
            first = key.split(".")[0]
            if first in ("balancer", "resampler"):
                raise EquipoiseError(
                    f"`space` cannot change {key!r}: every method has its own options, and their spaces lie in tune_spaces/."
                )
            if first in (*CHOSEN, *ENDING, "max_steps"):
                raise EquipoiseError(f"`space` cannot change {key!r}: it is the same for all that is compared.")
        _check_base(self.base)
        return self

    def _named(self, which: str) -> list[str]:
        value = getattr(self, which)
        return [] if value == "all" else list(value)

    def methods(self) -> list[Method]:
        """All methods, the controls first."""
        plain = balancers.names() if self.balancers == "all" else self._named("balancers")
        resamplers = valuation.names() if self.resamplers == "all" else self._named("resamplers")
        wanted = [Method.of(label) for label in (*CONTROLS, *plain)]
        wanted += [Method(balancer, name) for balancer in self.resampled for name in resamplers]
        return list(dict.fromkeys(wanted))

    def methods_of(self, name: str) -> list[Method]:
        """Those that are run on a data set."""
        only = self.data[name].methods
        return [method for method in self.methods() if only is None or method.label in only]

    def seeds_of(self, name: str) -> range:
        return range(min(self.seeds, self.data[name].seeds or self.seeds))


@dataclass(frozen=True)
class Method:
    """A balancer with a resampler."""

    balancer: str
    resampler: str = "none"

    @classmethod
    def of(cls, label: str) -> Method:
        balancer, _, resampler = label.partition("+")
        return cls(balancer, resampler or "none")

    @property
    def label(self) -> str:
        return self.balancer if self.resampler == "none" else f"{self.balancer}+{self.resampler}"

    @property
    def several(self) -> bool:
        """Whether a step costs a multiple: several gradients, or sweeps between epochs."""
        return balancers.get(self.balancer).separate or self.resampler != "none"


def _check_base(base: Mapping[str, Any]) -> None:
    for key in base:
        first = key.split(".")[0]
        if first in CHOSEN:
            raise EquipoiseError(f"`base` cannot set {key!r}: the comparison chooses it.")
        if first in ENDING:
            raise EquipoiseError(
                f"`base` cannot set {key!r}: a comparison is made at equal optimiser steps, so give max_steps alone."
            )


def load_compare(source: str | Path | Mapping[str, Any], overrides: Sequence[str] = ()) -> CompareConfig:
    """Read a comparison from YAML or a mapping, with `key=value` overrides, dotted for what lies deeper.

    Raises:
        EquipoiseError: what cannot be read, an unknown key or name, in a sentence.
    """
    raw, where = read_mapping(source)
    for key, value in pairs(overrides).items():
        override(raw, key, value)
    return validated(CompareConfig, raw, where)
