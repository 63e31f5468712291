"""One searched parameter: what it is drawn from, its default, where its range comes from, when it means anything."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import BaseTrial

from equipoise.models.errors import EquipoiseError, unknown

#: How a range is written: `log: [0.01, 1]`, `uniform: [0, 1]`, `integer: [1, 10]`, `choice: [mean, sum]`.
DRAWS = ("log", "uniform", "integer", "choice")
_FIELDS = ("default", "source", "when")


@dataclass(frozen=True)
class Parameter:
    """`key`: a dotted key of a configuration. `when` {key: values}: drawn only where these other parameters have one of
    the values; elsewhere it stays at its default.
    """

    key: str
    distribution: BaseDistribution
    default: Any
    source: str = ""
    when: Mapping[str, Sequence[Any]] = field(default_factory=dict)

    @classmethod
    def of(cls, key: str, said: Any, prefix: str = "") -> Parameter:
        """As a file says it; `prefix` stands before the keys of `when`.

        Raises:
            EquipoiseError: no such form, no such field, or bounds that hold nothing.
        """
        if not isinstance(said, Mapping) or len(draws := [name for name in DRAWS if name in said]) != 1:
            raise EquipoiseError(
                f"The space of {key!r} must say what to draw from, one of {', '.join(DRAWS)}, such as "
                f"{{log: [0.001, 0.1], default: 0.01}}; found {said!r}."
            )
        for name in said:
            if name not in (*DRAWS, *_FIELDS):
                raise unknown(f"field of the space of {key!r}:", str(name), (*DRAWS, *_FIELDS))
        kind, bounds = draws[0], said[draws[0]]
        try:
            distribution = _distribution(kind, bounds)
        except (TypeError, ValueError) as error:
            raise EquipoiseError(
                f"The space of {key!r} has {kind}: {bounds!r}, which holds nothing: {str(error).rstrip('.')}."
            ) from None
        if "default" not in said:
            raise EquipoiseError(f"The space of {key!r} needs a default, which is tried first: add `default: ...`.")
        if not isinstance(said.get("when") or {}, Mapping):
            raise EquipoiseError(
                f"The space of {key!r} has when: {said['when']!r}: say which values of what, such as {{optimizer.name: [sgd]}}."
            )
        when = {
            f"{prefix}{option}": tuple(values) if isinstance(values, list) else (values,)
            for option, values in (said.get("when") or {}).items()
        }
        return cls(key, distribution, _number(said["default"], distribution), str(said.get("source", "")), when)

    def applies(self, others: Mapping[str, Any]) -> bool:
        """Whether it is drawn, beside the values {key: value} of parameters before it."""
        return all(others.get(key) in values for key, values in self.when.items())

    def suggest(self, trial: BaseTrial) -> Any:
        """A value from Optuna, under the name `key`."""
        d = self.distribution
        if isinstance(d, FloatDistribution):
            return trial.suggest_float(self.key, d.low, d.high, log=d.log)
        if isinstance(d, IntDistribution):
            return trial.suggest_int(self.key, d.low, d.high, log=d.log)
        assert isinstance(d, CategoricalDistribution)
        return trial.suggest_categorical(self.key, d.choices)

    def quantile(self, u: float) -> Any:
        """The value at share u, in [0, 1), of the distribution."""
        d = self.distribution
        if isinstance(d, FloatDistribution):
            if d.log:
                return math.exp(math.log(d.low) + u * (math.log(d.high) - math.log(d.low)))
            return d.low + u * (d.high - d.low)
        if isinstance(d, IntDistribution):
            return d.low + int(u * (d.high - d.low + 1))
        assert isinstance(d, CategoricalDistribution)
        return d.choices[int(u * len(d.choices))]

    @property
    def text(self) -> str:
        """The distribution in words, such as "0.01 to 1, log"."""
        d = self.distribution
        if isinstance(d, CategoricalDistribution):
            return ", ".join(map(str, d.choices))
        assert isinstance(d, FloatDistribution | IntDistribution)
        return f"{d.low:g} to {d.high:g}" + (", log" if d.log else "")


def _number(value: Any, distribution: BaseDistribution) -> Any:
    """A default that YAML has read as a text, such as 1e-4, as the number that it is."""
    if isinstance(value, str) and not isinstance(distribution, CategoricalDistribution):
        with suppress(ValueError):
            return float(value)
    return value


def _distribution(kind: str, bounds: Any) -> BaseDistribution:
    if kind == "choice":
        if not isinstance(bounds, Sequence) or isinstance(bounds, str) or not bounds:
            raise ValueError("choices are a list, such as [mean, sum]")
        if odd := [choice for choice in bounds if not isinstance(choice, bool | int | float | str | None)]:
            raise ValueError(f"choices are numbers, texts, true, false or null, not {odd[0]!r}")
        return CategoricalDistribution(bounds)
    if not isinstance(bounds, Sequence) or isinstance(bounds, str) or len(bounds) != 2:
        raise ValueError("bounds are two numbers, such as [0.001, 0.1]")
    low, high = map(float, bounds)  # YAML reads 1e-4, without a point, as a text
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError("bounds are finite")
    if not low < high:
        raise ValueError("the lower bound comes first")
    if kind == "integer":
        if low != int(low) or high != int(high):
            raise ValueError("bounds are whole numbers")
        return IntDistribution(int(low), int(high))
    return FloatDistribution(low, high, log=kind == "log")
