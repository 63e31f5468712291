"""The contract of a resampler: from the values of a sweep to the plan of an epoch. And the registry of all there are.

A resampler holds no state: its plan is a pure function of (values, seed, epoch) and, where contributions are averaged over
sweeps, of the `state` that it made of the earlier ones; so a plan can be made anywhere and again after a crash.
"""

from collections.abc import Iterable
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from equipoise.models.errors import EquipoiseError, unknown
from equipoise.valuation.plan import Plan
from equipoise.valuation.values import Values


class ResamplerOptions(BaseModel):
    """The options of a resampler and their defaults. This class is their only source."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Schedule(ResamplerOptions):
    """Options of a resampler that needs values.

    - `warmup`: so many epochs are plain; the first resampled one is epoch `warmup` (counted from 0).
    - `every`: a new sweep every so many epochs; in between, plans are made of the last one.
    - `max_entries`: bound on the epoch's length before padding: a seeded random subset of the copies is kept.
    """

    warmup: int = Field(5, ge=0)
    every: int = Field(1, ge=1)
    max_entries: int | None = Field(None, ge=1)


class Resampler:
    """One way of choosing what is learnt more often. Subclasses set `name`, `Options` and `_plan`.

    `needs_values`: whether it asks for sweeps at all. `keeps_state`: whether `state` has to be kept from sweep to sweep.
    """

    name: ClassVar[str]
    needs_values: ClassVar[bool] = False
    Options: ClassVar[type[ResamplerOptions]] = ResamplerOptions
    options: ResamplerOptions

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        _registry[cls.name] = cls

    def __init__(self, options: ResamplerOptions | None = None) -> None:
        self.options = self.Options() if options is None else options

    @property
    def keeps_state(self) -> bool:
        return False

    def values_epoch(self, epoch: int, lag: int = 0) -> int | None:
        """The epoch after which the sweep was made that the plan of `epoch` is made of; None for a plain epoch.

        `lag` = 1 takes weights one epoch older, so that valuation and training can overlap.
        """
        if not self.needs_values or not isinstance(self.options, Schedule):
            return None
        first = max(self.options.warmup, 1 + lag)  # there are no values before the first epoch
        return None if epoch < first else epoch - (epoch - first) % self.options.every - 1 - lag

    def wants_values(self, epoch: int, lag: int = 0) -> bool:
        """Whether a sweep is needed after training epoch `epoch`, for the plan of epoch + 1 + lag."""
        return self.values_epoch(epoch + 1 + lag, lag) == epoch

    def valued_ids(self, num_rows: int, epoch: int, seed: int) -> NDArray[np.int64] | None:
        """The sample ids that the sweep after `epoch` has to value, ascending; None for all."""
        return None

    def state(
        self, values: Iterable[Values], num_rows: int, num_modalities: int, previous: NDArray[np.float64] | None = None
    ) -> NDArray[np.float64] | None:
        """What a sweep leaves for later ones, a pure function of its values and of the state before; None for nothing."""
        return None

    def plan(
        self,
        epoch: int,
        values: Iterable[Values] | None,
        num_rows: int,
        num_modalities: int,
        *,
        seed: int,
        lag: int = 0,
        present: NDArray[np.bool_] | None = None,
        state: NDArray[np.float64] | None = None,
    ) -> Plan:
        """The plan of `epoch`: plain where `values_epoch(epoch, lag)` is None, else made of that sweep's `values`.

        `present` bool [N, M]: what the rows hold, for resamplers that value only some of them (None: everything).
        `state`: what `state()` gave for this sweep, where `keeps_state`.
        """
        if self.values_epoch(epoch, lag) is None:
            return Plan.plain(num_rows, num_modalities)
        if values is None:
            raise EquipoiseError(
                f"The plan of epoch {epoch} of resampler {self.name!r} is made of the sweep after epoch "
                f"{self.values_epoch(epoch, lag)}, and there are no values of it: value that epoch first."
            )
        return self._plan(epoch, values, num_rows, num_modalities, seed, present, state)

    def _plan(
        self,
        epoch: int,
        values: Iterable[Values],
        num_rows: int,
        num_modalities: int,
        seed: int,
        present: NDArray[np.bool_] | None,
        state: NDArray[np.float64] | None,
    ) -> Plan:
        raise NotImplementedError


_registry: dict[str, type[Resampler]] = {}


def names() -> list[str]:
    """The names of all resamplers, those of subclasses defined elsewhere included."""
    return sorted(_registry)


def resampler_class(name: str) -> type[Resampler]:
    if name not in _registry:
        raise unknown("resampler", name, _registry)
    return _registry[name]


def get(name: str, **options: Any) -> Resampler:
    """A resampler by name: `get("sample", warmup=2)`."""
    cls = resampler_class(name)
    try:
        return cls(cls.Options(**options))
    except ValidationError as error:
        first = error.errors()[0]
        option = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            raise unknown(f"option of resampler {name!r}:", option, cls.Options.model_fields) from None
        raise EquipoiseError(
            f"Option {option!r} of resampler {name!r} cannot be {first['input']!r}: {first['msg']}."
        ) from None
