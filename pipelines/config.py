"""The configuration of a run: typed, with one way in (a YAML file or a dict, plus `key=value` overrides)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from equipoise import balancers, valuation
from equipoise.balancers import Monitor
from equipoise.balancers.compiled import check_compile
from equipoise.datasets.impairment import Impairment
from equipoise.models import ModelConfig
from equipoise.models.errors import EquipoiseError, unknown

S = TypeVar("S", bound=BaseModel)
_NAMING = ("balancer", "balancer.name", "resampler", "resampler.name")


class Section(BaseModel):
    """Part of a configuration: frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Method(Section):
    """A method by name, with its options; in YAML also just the name."""

    name: str
    options: dict[str, Any] = Field(default_factory=dict)


class OptimizerConfig(Section):
    """The optimiser, by torch's names."""

    name: Literal["adamw", "adam", "sgd"] = "adamw"
    lr: float = Field(1e-3, gt=0)
    weight_decay: float = Field(1e-2, ge=0)
    momentum: float = Field(0.9, ge=0, lt=1, description="sgd only")


class ScheduleConfig(Section):
    """The learning rate by share of the run's steps: constant or half a cosine down to zero, after a linear warm-up."""

    kind: Literal["constant", "cosine"] = "constant"
    warmup: float = Field(0.0, ge=0, lt=1, description="share of max_steps")


class ValuationConfig(Section):
    """Sweeps: how, when beside those that a resampler asks for, and where."""

    batch_size: int = Field(
        256, ge=1, description="rows a forward pass of a sweep; results depend on it to rounding only"
    )
    final: bool = Field(True, description="one train sweep of the best checkpoint at the end")
    lag: Literal[0, 1] = Field(
        0, description="0: the plan of an epoch uses the weights the epoch starts with; 1: those an epoch older"
    )
    every: int | None = Field(
        None, ge=1, description="for the record: a sweep of train every so many epochs, whatever the resampler"
    )
    warmup: int = Field(0, ge=0, description="the first epochs without a sweep for the record")
    sample: float = Field(1.0, gt=0, le=1, description="share of the train rows that a sweep for the record values")
    timeout: float = Field(600.0, gt=0, description="seconds without any chunk valued, then the actors are lost")
    placement: Literal["shared", "separate", "cpu"] = Field(
        "shared", description="where the actors sit: with the workers, on devices and cores of their own, on CPUs only"
    )


class CheckpointConfig(Section):
    """When checkpoints are written, and which of them stay."""

    every_steps: int | None = Field(None, ge=1, description="also in mid-epoch; None: at the end of every epoch only")
    keep: int = Field(2, ge=1, description="how many of the newest stay, beside the best")


class EarlyStoppingConfig(Section):
    """When a run ends before its budget; see `EarlyStopping`."""

    patience: int | None = Field(None, ge=1, description="epochs without a better validation metric, then stop")
    min_delta: float = Field(0.0, ge=0, description="what counts as better: more than the best by this")


class Config(Section):
    """Everything that a run is made of. Unknown keys are errors; `equipoise fit` writes it whole to config.yaml."""

    data: str = Field(description="folder of a prepared data set")
    out: str = Field(description="run folder")
    balancer: Method = Method(name="joint")
    resampler: Method = Method(name="none")
    model: ModelConfig = Field(default_factory=ModelConfig)
    workers: int = Field(1, ge=1, description="DDP workers")
    actors: int = Field(1, ge=1, description="valuation actors")
    batch_size: int = Field(64, ge=1, description="of the global batch, whatever the number of workers")
    max_steps: int | None = Field(None, ge=1, description="optimiser steps; the run's budget")
    max_epochs: int | None = Field(None, ge=1)
    seed: int = Field(0, ge=0)
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    clip_norm: float | None = Field(None, gt=0)
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    compile: bool = Field(False, description="torch.compile of the encoders; balancers of one summed objective")
    monitor: Monitor | None = Field(None, description="a look at the gradients now and then, see docs/indicator.md")
    valuation: ValuationConfig = ValuationConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    early_stopping: EarlyStoppingConfig = EarlyStoppingConfig()
    impairment: Impairment | None = Field(None, description="what is wrong with the train rows, see docs/impairment.md")
    on_valuation_loss: Literal["stop", "reuse"] = Field(
        "stop", description="actors lost for valuation.timeout: stop, or train on the last plan and mark the epochs"
    )
    tracker: Literal["none", "tensorboard", "mlflow", "wandb"] = "tensorboard"
    report: bool = Field(True, description="write report.html at the end")
    max_failures: int = Field(3, ge=0, description="how often lost workers are started again")
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int | None = Field(
        None,
        ge=1,
        description="torch threads of every worker and actor; None: the cores over the processes that compute",
    )

    @model_validator(mode="before")
    @classmethod
    def _names(cls, value: Any) -> Any:
        if isinstance(value, Mapping):
            return {
                k: {"name": v} if k in ("balancer", "resampler") and isinstance(v, str) else v for k, v in value.items()
            }
        return value

    @model_validator(mode="after")
    def _budget(self) -> Config:
        if self.max_steps is None and self.max_epochs is None:
            raise EquipoiseError("Give the run a budget: max_steps=400 (optimiser steps) or max_epochs=20.")
        if self.max_steps is None and (self.schedule.kind != "constant" or self.schedule.warmup):
            raise EquipoiseError("A schedule is a share of the run's steps: give max_steps beside it.")
        method = balancers.get(self.balancer.name, **self.balancer.options)
        if self.model.kind == "late" and self.model.fusion == "auto":
            fusion = method.fusions[0] if method.fusions else "concat"
            object.__setattr__(self, "model", ModelConfig.model_validate({**self.model.model_dump(), "fusion": fusion}))
        fusion = self.model.fusion if self.model.kind == "late" else self.model.kind
        if method.fusions and fusion not in method.fusions:
            raise EquipoiseError(
                f"Balancer {method.name!r} is defined for model.fusion={' or '.join(method.fusions)}, not for {fusion}: leave "
                "model.fusion and model.kind out, or choose another balancer."
            )
        if self.compile:
            check_compile(method)
        # Wrong methods and options are errors of the configuration, not of the first worker that meets them.
        valuation.get(self.resampler.name, **self.resampler.options)
        return self


def load_config(source: str | Path | Mapping[str, Any], overrides: Mapping[str, Any] | Sequence[str] = ()) -> Config:
    """A `Config` from a YAML file or a mapping, with overrides as {"balancer.options.alpha": 0.3} or ["key=value"].

    Values of "key=value" are read as YAML. Naming another balancer or resampler drops the options of the former one;
    naming the same one keeps them.

    Raises:
        EquipoiseError: no such file, not a mapping, an unknown key (the nearest is named), a value out of bounds.
    """
    raw, where = read_mapping(source)
    if not isinstance(overrides, Mapping):
        overrides = pairs(overrides)
    raw = {k: {"name": v} if k in ("balancer", "resampler") and isinstance(v, str) else v for k, v in raw.items()}
    # Names, then short keys: `balancer=ogm balancer.options.alpha=0.1` means the same in either order.
    for key, value in sorted(overrides.items(), key=lambda item: (item[0] not in _NAMING, item[0].count("."))):
        override(raw, key, value)
    return validated(Config, raw, where)


def read_mapping(source: str | Path | Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """(what a YAML file or a mapping holds, what to call it in a sentence).

    Raises:
        EquipoiseError: no such file, or no mapping in it.
    """
    if isinstance(source, Mapping):
        return dict(source), "the configuration"
    where = str(source)
    try:
        raw = yaml.safe_load(Path(source).read_text())
    except FileNotFoundError:
        raise EquipoiseError(f"No configuration at {where}: give a YAML file, such as examples/digits.yaml.") from None
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise EquipoiseError(f"{where} is not YAML: {error}") from None
    except OSError as error:
        raise EquipoiseError(f"Cannot read the configuration {where}: {error.strerror}.") from None
    if not isinstance(raw, dict):
        raise EquipoiseError(f"{where} must hold `key: value` lines, such as `balancer: joint`.")
    return raw, where


def validated(kind: type[S], raw: Mapping[str, Any], where: str) -> S:
    """A configuration of some kind from what a file holds, or the first error as a sentence."""
    try:
        return kind.model_validate(raw)
    except ValidationError as error:
        raise _sentence(error, where, kind) from None


def differing_keys(a: BaseModel, b: BaseModel) -> list[str]:
    """The dotted keys in which two configurations differ, with both values."""
    left, right = flat(a.model_dump()), flat(b.model_dump())
    return [
        f"{key}: {left.get(key)!r} -> {right.get(key)!r}"
        for key in sorted({*left, *right})
        if (key in left, left.get(key)) != (key in right, right.get(key))
    ]


def pairs(arguments: Sequence[str]) -> dict[str, Any]:
    """{key: value} of "key=value" arguments, values read as YAML."""
    return dict(map(_parse, arguments))


def _parse(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise EquipoiseError(f"Overrides are written key=value, such as max_steps=400; found {text!r}.")
    try:
        return key, yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise EquipoiseError(f"The value of the override {text!r} is not YAML: {error}") from None


def override(raw: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key of nested mappings."""
    *path, last = key.split(".")
    if key in _NAMING and isinstance(value, str):
        path, last = [], key.removesuffix(".name")
        former = raw.get(last)
        value = former if isinstance(former, Mapping) and former.get("name") == value else {"name": value}
    at = raw
    for part in path:
        at[part] = dict(at[part]) if isinstance(at.get(part), Mapping) else {}
        at = at[part]
    at[last] = value


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"balancer.name": "ogm", ...} of nested sections."""
    out: dict[str, Any] = {}
    for key, value in tree.items():
        out |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) and value else {prefix + key: value}
    return out


def _sentence(error: ValidationError, where: str, kind: type[BaseModel]) -> EquipoiseError:
    found = error.errors()
    # A misspelt key may leave a required one missing as well: name the misspelling.
    first = next((e for e in found if e["type"] == "extra_forbidden"), found[0])
    if isinstance(cause := first.get("ctx", {}).get("error"), EquipoiseError):
        return cause
    path = [str(part) for part in first["loc"] if "[" not in str(part)]  # pydantic's names for members of a union
    key = ".".join(path)
    if first["type"] == "extra_forbidden":
        near = unknown("config key", path[-1], _section(path[:-1], kind).model_fields)
        inside = f" under {'.'.join(path[:-1])!r}" if path[:-1] else ""
        return EquipoiseError(f"{near}".replace(f"{path[-1]!r}:", f"{key!r} in {where}{inside}:", 1))
    if first["type"] == "missing":
        return EquipoiseError(f"{where} gives no {key!r}: add `{key}: ...` or pass {key}=... on the command line.")
    if first["type"] == "model_type":
        keys = _section(path, kind).model_fields
        return EquipoiseError(
            f"Config key {key!r} in {where} is a section with the keys {', '.join(keys)}, found {first['input']!r}: write "
            f"{key}.{next(iter(keys))}=..., or leave it out."
        )
    return EquipoiseError(f"Config key {key!r} in {where}: {first['msg']}, found {first['input']!r}.")


def _section(path: Sequence[str], kind: type[BaseModel]) -> type[BaseModel]:
    """The section at a path of keys. Under `model.encoders`, any modality's name leads to the same one."""
    at: Any = kind
    for part in path:
        at = get_args(at)[1] if get_origin(at) is dict else at.model_fields[part].annotation
        if type(None) in get_args(at):  # an optional section
            at = next(kind for kind in get_args(at) if kind is not type(None))
    return at
