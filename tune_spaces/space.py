"""What is searched for a balancer and a resampler: their own options, and the training parameters along with them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from optuna.trial import BaseTrial

from equipoise.models.errors import EquipoiseError
from equipoise.tune_spaces.parameter import Parameter

FOLDER = Path(__file__).parent
TRAINING = "training"


@dataclass(frozen=True)
class Space:
    """`parameters` in an order in which each comes after those that it depends on; `left` {key: why it is not searched}."""

    parameters: tuple[Parameter, ...]
    left: Mapping[str, str]

    def __post_init__(self) -> None:
        known: set[str] = set()
        for parameter in self.parameters:
            for key in parameter.when:
                if key not in known:
                    raise EquipoiseError(
                        f"The space of {parameter.key!r} depends on {key!r}, which is not searched before it: name it first, "
                        "or leave the condition out."
                    )
            known.add(parameter.key)

    def suggest(self, trial: BaseTrial) -> dict[str, Any]:
        """{key: value} from Optuna, only of what applies."""
        found: dict[str, Any] = {}
        for parameter in self.parameters:
            if parameter.applies(found):
                found[parameter.key] = parameter.suggest(trial)
        return found

    def defaults(self) -> dict[str, Any]:
        """{key: default}, only of what applies."""
        found: dict[str, Any] = {}
        for parameter in self.parameters:
            if parameter.applies(found):
                found[parameter.key] = parameter.default
        return found

    def design(self, number: int, seed: int = 0) -> list[dict[str, Any]]:
        """`number` configurations fixed by the seed: the defaults, then a Latin hypercube over the rest.

        A parameter's values depend on its key, `number` and the seed only. So all methods get the same learning rates and
        weight decays in the same order: none is luckier than another.
        """
        if number < 1:
            raise EquipoiseError(f"A tuning needs one configuration or more, found {number}.")
        drawn = {parameter.key: _strata(parameter.key, number - 1, seed) for parameter in self.parameters}
        configurations = [self.defaults()]
        for i in range(number - 1):
            found: dict[str, Any] = {}
            for parameter in self.parameters:
                if parameter.applies(found):
                    found[parameter.key] = parameter.quantile(drawn[parameter.key][i])
            configurations.append(found)
        return configurations


def load(name: str) -> tuple[str, Space]:
    """(kind, space) of the file of a method, or of "training".

    Raises:
        EquipoiseError: there is none, or it cannot be read as a space.
    """
    path = FOLDER / f"{name}.yaml"
    if not path.is_file():
        raise EquipoiseError(
            f"No search space for {name!r}: write tune_spaces/{name}.yaml (another file there shows how), or give the "
            "parameters under `space:` in the configuration."
        )
    said = yaml.safe_load(path.read_text())
    kind = said["kind"]
    prefix = "" if kind == TRAINING else f"{kind}.options."
    parameters = tuple(Parameter.of(prefix + option, how, prefix) for option, how in (said.get("search") or {}).items())
    return kind, Space(parameters, {prefix + option: str(why) for option, why in (said.get("left") or {}).items()})


def searched() -> list[str]:
    """The methods that have a space."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml") if path.stem != TRAINING)


def space_for(balancer: str, resampler: str = "none", changes: Mapping[str, Any] | None = None) -> Space:
    """The training parameters, then those of the balancer, then those of the resampler.

    `changes` {dotted key: how, as in a file}: replaces or adds a parameter; None leaves one out.

    Raises:
        EquipoiseError: a method without a space, or a change that cannot be read.
    """
    parts = [load(name)[1] for name in (TRAINING, balancer, resampler)]
    found = {parameter.key: parameter for part in parts for parameter in part.parameters}
    left = {key: why for part in parts for key, why in part.left.items()}
    for key, how in (changes or {}).items():
        if how is None:
            found.pop(key, None)
            left[key] = "left out by the configuration"
            continue
        former = found.get(key)
        if former is not None and isinstance(how, Mapping) and "default" not in how:
            how = {**how, "default": former.default}
        found[key] = Parameter.of(key, how)
        left.pop(key, None)
    return Space(tuple(found.values()), left)


def _strata(key: str, number: int, seed: int) -> np.ndarray:
    """float64 [number]: one draw in each of `number` equal parts of [0, 1), in an order of its own."""
    rng = np.random.default_rng([seed, *sha256(key.encode()).digest()])
    return (rng.permutation(number) + rng.random(number)) / max(number, 1)
