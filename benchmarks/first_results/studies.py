"""What is run: data sets, methods, settings. Everything here was fixed before any test split was looked at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from equipoise.pipelines.config import Config, load_config

WARMUP = {"warmup": 1}
#: {name: what differs from joint training}. All else is the same for all methods of a data set.
METHODS: dict[str, dict[str, Any]] = {
    "joint": {},
    "summed": {"balancer": "summed"},
    "modality_dropout": {"balancer": "modality_dropout"},
    "more_steps": {"resampler": {"name": "more_steps", "options": WARMUP}},
    "random_copies": {"resampler": {"name": "random_copies", "options": WARMUP}},
    "sample": {"resampler": {"name": "sample", "options": WARMUP}},
    "modality": {"resampler": {"name": "modality", "options": WARMUP}},
}
MEANING = {
    "joint": "plain training: one loss, all modalities",
    "summed": "joint, and a loss for each modality alone",
    "modality_dropout": "joint, each modality of a row masked with p = .3",
    "more_steps": "whole rows repeated, as many as `sample` would copy",
    "random_copies": "the unimodal copies of `sample`, of rows drawn at random",
    "sample": "unimodal copies, chosen by each row's own contributions",
    "modality": "unimodal copies of random rows, of the modality that contributes least on average",
}
#: Not methods but questions, asked of why `sample` does what it does: {name: (the method that it is, what differs)}.
#: `fewer_rows` has only as many steps as `sample` had whole rows to fill; the `slow` ones have the lowest rate of the tries.
SLOW = 1e-3
CHECKS: dict[str, tuple[str, dict[str, Any]]] = {
    "fewer_rows": ("joint", {}),
    "smoothed": ("sample", {"resampler.options.smoothing": 0.5}),
    "slow_joint": ("joint", {"optimizer.lr": SLOW}),
    "slow_random_copies": ("random_copies", {"optimizer.lr": SLOW}),
    "slow_sample": ("sample", {"optimizer.lr": SLOW}),
}
BATCH = 64


def grid(**choices: tuple[Any, ...]) -> tuple[dict[str, Any], ...]:
    """Every combination, as overrides with dotted keys written with two underscores."""
    keys = [key.replace("__", ".") for key in choices]
    return tuple(dict(zip(keys, values)) for values in product(*choices.values()))


SMALL = grid(optimizer__lr=(1e-3, 3e-3, 1e-2), model__encoder__hidden=(64, 256))


@dataclass(frozen=True)
class Study:
    """A data set and its budget. `tries` are the settings that validation chooses from, `fixed` those that it does not;
    `folds`: the seed also names the fold that is held out, and no other split is drawn. `slow`: whether there is time for
    the checks at the lowest rate.
    """

    name: str
    about: str
    steps: int
    tries: tuple[dict[str, Any], ...] = SMALL
    options: Mapping[str, Any] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    folds: bool = False
    most_seeds: int | None = None
    slow: bool = True

    def seeds(self, wanted: int) -> range:
        return range(min(wanted, self.most_seeds or wanted))

    def prepare_options(self, seed: int) -> dict[str, Any]:
        """Arguments of `prepare` for a seed."""
        return {**self.options, **({"fold": seed} if self.folds else {"seed": seed})}

    def config(self, method: str, seed: int, choice: Mapping[str, Any], data: str, steps: int | None = None) -> Config:
        """The configuration of a method or a check, with the settings `choice` and, where not the study's, another budget."""
        method, differs = CHECKS.get(method, (method, {}))
        return self.configured(METHODS[method], seed, {**choice, **differs}, data, steps)

    def configured(
        self, differs: Mapping[str, Any], seed: int, settings: Mapping[str, Any], data: str, steps: int | None = None
    ) -> Config:
        """The configuration of what `differs` from joint training, with the overrides `settings`."""
        base = {
            "data": data,
            "out": "unused",
            "seed": seed,
            "batch_size": BATCH,
            "max_steps": steps or self.steps,
            "schedule": {"kind": "cosine", "warmup": 0.05},
        }
        return load_config({**base, **differs}, {**self.fixed, **settings})

    def checks(self, choice: Mapping[str, Any]) -> list[str]:
        """The checks that say something new at the settings `choice`; `fewer_rows` is the first."""
        slow = self.slow and choice["optimizer.lr"] != SLOW
        return [name for name in CHECKS if slow or not name.startswith("slow")]


STUDIES = (
    Study("digits", "halves of a handwritten digit: columns 0-4 and 5-7", steps=600),
    Study("mfeat", "three descriptions of a handwritten digit", steps=600, options={"views": "fou,zer,mor"}),
    Study("htad", "seven activities at home; blocks of 25 rows held out", steps=600, options={"held_out": "blocks"}),
    Study(
        "watch",
        "shoulder exercises, windows of 3 s as statistics; two subjects held out in each of five folds",
        steps=600,
        options={"window": 3.0, "features": "statistics", "validation": "recordings"},
        folds=True,
        most_seeds=5,
    ),
    Study(
        "emoji",
        "picture and name of an emoji, eight categories",
        steps=300,
        tries=grid(optimizer__lr=(1e-3, 3e-3, 1e-2)),
        options={"text": "name", "held_out": "rows"},
        fixed={"model.encoders": {"image": {"hidden": 16, "depth": 3}}},
        slow=False,
    ),
    Study(
        "easy-vqa",
        "a question about a picture of one shape; 8,000 questions drawn",
        steps=800,
        tries=grid(optimizer__lr=(3e-3, 1e-2), model__fusion=("film", "gated")),
        options={"questions": 8000},
        fixed={"model.encoders": {"image": {"hidden": 16, "depth": 3}}},
        most_seeds=3,
        slow=False,
    ),
)
