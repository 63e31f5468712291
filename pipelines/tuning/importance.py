"""Which parameters decide: fANOVA (Hutter, Hoos and Leyton-Brown, ICML 2014), on a study rebuilt from a table of trials.

Which trials? Those that were stopped were so for being among the worst: without them, a parameter that decides who is
stopped looks unimportant. But their last score is of a shorter training, which would make the stop itself the effect. So
there are two answers: of all trials at the step where the first can be stopped, equal for all; and of the fully trained ones
at their end.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.importance import FanovaImportanceEvaluator, get_param_importances

from equipoise.pipelines.tuning.found import Found
from equipoise.tune_spaces import Parameter

#: The largest of so many shuffles is passed by chance once in 20 times.
SHUFFLES = 19
FEW = 4  # below so many trials nothing is said
_TREES = 16


@dataclass(frozen=True)
class Importance:
    """`shares` {key: share of the variance of the score that the parameter explains, 1 in all}; `chance` {key: the largest
    share in `SHUFFLES` analyses of the same trials with shuffled scores}; `trials` that went in; `left` keys that did not:
    drawn in some trials only.
    """

    shares: Mapping[str, float]
    chance: Mapping[str, float]
    trials: int
    left: Sequence[str]

    @property
    def clear(self) -> list[str]:
        """The parameters above what shuffled scores give."""
        return [key for key, share in self.shares.items() if share > self.chance[key]]


def importance(
    parameters: Sequence[Parameter], trials: Sequence[tuple[Mapping[str, Any], float]], seed: int = 0
) -> Importance | str:
    """Importance by trials of (parameters, score), higher is better; or, in a sentence, why nothing can be said."""
    known = [(params, value) for params, value in trials if math.isfinite(value)]
    shared = [p for p in parameters if all(p.key in params for params, _ in known)]
    left = [p.key for p in parameters if p not in shared]
    varied = [p for p in shared if len({str(params[p.key]) for params, _ in known}) > 1]
    if len(known) < FEW:
        return f"{len(known)} trials are too few to say which parameters decide."
    if not varied:
        return "No parameter differs between these trials."
    if len({value for _, value in known}) < 2:
        return "All these trials have the same score: no parameter decides."
    distributions = {p.key: _wide_enough(p, [params[p.key] for params, _ in known]) for p in varied}
    rows = [{p.key: params[p.key] for p in varied} for params, _ in known]
    values = [value for _, value in known]
    draw = np.random.default_rng(seed)
    shares = _shares(distributions, rows, values, seed)
    by_chance = [_shares(distributions, rows, draw.permutation(values).tolist(), seed + i) for i in range(SHUFFLES)]
    chance = {key: max(found[key] for found in by_chance) for key in shares}
    return Importance(shares, chance, len(known), left)


def importances(found: Found) -> dict[str, Importance | str]:
    """{what trials they are: importance}, early and at the end."""
    keep = found.select
    out = {}
    if found.of("stopped"):
        reached = [(t.params, v) for t in found.trials if (v := t.at(found.early, keep)) is not None]
        out[f"all trials, after step {found.early}"] = importance(found.parameters, reached)
    done = [(t.params, t.values[keep]) for t in found.of("done")]
    return {**out, "fully trained": importance(found.parameters, done)}


def _shares(
    distributions: Mapping[str, BaseDistribution], rows: Sequence[dict[str, Any]], values: Sequence[float], seed: int
) -> dict[str, float]:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(direction="maximize")
    study.add_trials(
        [
            optuna.create_trial(params=params, distributions=dict(distributions), value=v)
            for params, v in zip(rows, values)
        ]
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = get_param_importances(study, evaluator=FanovaImportanceEvaluator(n_trees=_TREES, seed=seed))
    return {key: float(share) for key, share in found.items()}


def _wide_enough(parameter: Parameter, values: Sequence[Any]) -> BaseDistribution:
    """The distribution, and a base's own value outside of it, which the first trial has."""
    d = parameter.distribution
    if isinstance(d, CategoricalDistribution):
        return CategoricalDistribution([*d.choices, *{v: None for v in values if v not in d.choices}])
    low, high = min(values), max(values)
    if isinstance(d, IntDistribution):
        return IntDistribution(min(d.low, low), max(d.high, high), log=d.log)
    assert isinstance(d, FloatDistribution)
    return FloatDistribution(min(d.low, low), max(d.high, high), log=d.log)
