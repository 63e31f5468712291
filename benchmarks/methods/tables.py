"""The tables of the page."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from benchmarks.first_results import wording as w
from benchmarks.first_results.statistics import LEVEL, Difference
from benchmarks.methods.results import FIGURES, MethodResults
from benchmarks.methods.studies import JOINT, SEVERITY, methods
from equipoise import balancers, valuation
from equipoise.datasets import noise
from equipoise.datasets.reading import Reader

#: How a mark is put on an interval that leaves out zero.
MARK = "*"
NOISE = {
    "image": f"pixels, deviation {noise.PIXEL_DEVIATION[SEVERITY]:g} of 1",
    "text": f"{w.percent(noise.WORD_PROBABILITY[SEVERITY])} of the words lost",
    "audio": f"{noise.SIGNAL_TO_NOISE[SEVERITY]:g} dB",
}
NUMBERS = f"{noise.RELATIVE_DEVIATION[SEVERITY]:g} deviation of the train rows"


def what_they_are(results: Sequence[MethodResults]) -> str:
    """Every method: what it changes, its objectives, how often it goes backward, its time beside that of joint training."""
    rows = []
    for method, differs in methods().items():
        if not any(method in found.runs or method in found.refused for found in results):
            continue
        config = {"balancer": JOINT, **differs}
        kind = balancers.get(config["balancer"])
        passes = " / ".join(f"{kind.backward_passes(m)}" for m in (2, 3))
        if "resampler" in config:
            name = config["resampler"]["name"]
            line = (valuation.resampler_class(name).__doc__ or "").strip().split("\n")[0].rstrip(".")
            cells = ["rows", f"{kind.losses}; {line[:1].lower()}{line[1:]}"]
        else:
            cells = [kind.family, kind.losses]
        fusion = kind.fusions[0] if kind.fusions else "concat"
        ratio = relative_seconds(results, method)
        rows.append([f"`{method}`", *cells, fusion, passes, w.number(ratio, 1) if ratio else "–"])
    header = ["method", "family", "objectives", "fusion", "backward passes at 2 / 3 modalities", "seconds / joint"]
    return w.table(header, rows)


def relative_seconds(results: Sequence[MethodResults], method: str) -> float:
    """Processor seconds over those of joint training, geometric mean over data sets; 0 where it ran on none."""
    ratios = [
        found.spread(method, "seconds").mean / found.spread(JOINT, "seconds").mean
        for found in results
        if method in found.runs
    ]
    return float(np.exp(np.mean(np.log(ratios)))) if ratios else 0.0


def noises(results: Sequence[MethodResults], data: dict[str, str]) -> str:
    """The noise on each modality; `data` {data set: a folder of it}."""
    rows = []
    for found in results:
        for modality in Reader(data[found.name]).manifest.modalities:
            rows.append([found.name, modality.name, modality.kind, NOISE.get(modality.kind, NUMBERS)])
    return w.table(["data set", "modality", "kind", "noise on every test row"], rows)


def accuracies(found: MethodResults) -> str:
    seeds = f"{found.seeds} seed{'s' * (found.seeds > 1)}"
    rows = [
        [
            f"`{method}`",
            *(w.spread(found.spread(method, name)) for name in FIGURES),
            w.spread(found.spread(method, "seconds"), 1),
        ]
        for method in found.methods
    ]
    return w.table([f"{found.name}, {seeds}", *FIGURES, "seconds"], rows)


def differences(found: MethodResults, reference: str) -> str:
    rows = [
        [f"`{method}`", *(marked(found.difference(method, reference, name)) for name in FIGURES)]
        for method in found.methods
        if method != reference
    ]
    interval = f"{w.percent(LEVEL)} interval" if found.seeds > 1 else "one seed: no interval"
    return w.table([f"{found.name}, minus `{reference}`: {interval}", *FIGURES], rows)


def marked(d: Difference) -> str:
    """Mean [interval], marked where the interval leaves out zero."""
    return w.difference(d) + (f" {MARK}" if leaves_out_zero(d) else "")


def leaves_out_zero(d: Difference) -> bool:
    return not math.isnan(d.low) and not d.low <= 0 <= d.high
