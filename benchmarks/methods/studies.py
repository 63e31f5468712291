"""What is run. A new balancer or resampler is here by being registered."""

from __future__ import annotations

from typing import Any

from benchmarks.first_results.studies import STUDIES as ALL
from benchmarks.first_results.studies import WARMUP
from equipoise import balancers, valuation

#: Data sets of the first results, with their steps, and settings chosen for joint training.
STUDIES = tuple(study for study in ALL if study.name in ("digits", "mfeat", "watch", "htad", "emoji"))
#: Joint training, and what the others are compared with.
JOINT = "joint"
REFERENCES = (JOINT, "summed")
#: Of the noise on test rows.
SEVERITY = 3


def methods() -> dict[str, dict[str, Any]]:
    """{name: what differs from joint training}: balancers without resampling, then joint training with each resampler."""
    found: dict[str, dict[str, Any]] = {name: {"balancer": name} for name in balancers.names()}
    return found | {
        f"{JOINT}+{name}": {"balancer": JOINT, "resampler": {"name": name, "options": WARMUP}}
        for name in valuation.names()
        if name != "none"
    }
