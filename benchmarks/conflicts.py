"""Gradients along training: `python -m benchmarks.conflicts`, from the root of the repository.

Light runs, equal steps, paired seeds:

- conflict rate and angles between the losses of every set of modalities, with joint training, the mean of the sets' losses,
  and GMD, on a Dynamic Sharing model: the same monitor looks at all of them, every tenth step, at the weights of that step;
- the unimodal losses of each modality, with and without BalGrad's reweighting.

Writes docs/conflicts.md with two pictures beside it. Everything on the page is worked out from the runs.
"""

from __future__ import annotations

import platform
import time
from pathlib import Path
from typing import Annotated, Any

import matplotlib
import matplotlib.figure
import numpy as np
import torch
import typer

from benchmarks.first_results.statistics import paired
from equipoise.datasets.prepare import prepare
from equipoise.pipelines.config import load_config
from equipoise.pipelines.light import train_light

SETS: dict[str, dict[str, Any]] = {"digits": {}, "mfeat": {"views": ("fou", "zer", "mor")}}
STEPS, EVERY = 400, 10
METHODS: dict[str, Any] = {
    "joint": "joint",
    "mean of the sets' losses": {"name": "gmd", "options": {"project": False}},
    "gmd": "gmd",
}
REWEIGHTED: dict[str, Any] = {
    "reweighted": "balgrad",
    "equal weights": {"name": "balgrad", "options": {"reweight": False}},
}
COLOURS = ("#555555", "#c2570c", "#1f5fa8")
STYLE: Any = {"svg.fonttype": "none", "svg.hashsalt": "conflicts", "font.size": 8, "font.family": "sans-serif"}


def steps_of(data: Path, balancer: Any, seed: int, **how: Any) -> list[dict[str, Any]]:
    """One light run's row a step."""
    config = load_config(
        {
            "data": str(data), "out": "unused", "balancer": balancer, "seed": seed, "max_steps": STEPS, "batch_size": 64,
            "optimizer": {"lr": 0.003}, **how,
        }
    )  # fmt: skip
    return train_light(config).steps


def looks(steps: list[dict[str, Any]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Steps that were looked at, conflict rate at each, angles [looks, pairs] in degrees."""
    seen = [s for s in steps if "monitor/conflicts" in s]
    pairs = [k for k in seen[0] if k.startswith("monitor/cosine/")]
    cosines = np.array([[s[p] for p in pairs] for s in seen])
    return (
        np.array([s["step"] for s in seen]),
        np.array([s["monitor/conflicts"] for s in seen]),
        np.degrees(np.arccos(cosines)),
    )


def smooth(values: np.ndarray, width: int = 20) -> np.ndarray:
    """Means of `width` neighbouring steps."""
    return values[: len(values) // width * width].reshape(-1, width).mean(axis=1)


def main(
    out: Annotated[Path, typer.Option(help="the page")] = Path("docs/conflicts.md"),
    data: Annotated[Path, typer.Option(help="folder of the prepared data sets")] = Path("data/conflicts"),
    seeds: Annotated[int, typer.Option(min=2)] = 5,
) -> None:
    """Run all and write the page."""
    began = time.perf_counter()
    torch.set_num_threads(1)
    for name, options in SETS.items():
        if not (data / name).exists():
            prepare(name, data / name, **options)
    shared = {"model": {"kind": "sharing"}, "monitor": {"every": EVERY}}
    watched = {
        name: {m: [looks(steps_of(data / name, b, s, **shared)) for s in range(seeds)] for m, b in METHODS.items()}
        for name in SETS
    }
    curves = {
        name: {m: [steps_of(data / name, b, s) for s in range(seeds)] for m, b in REWEIGHTED.items()} for name in SETS
    }
    _draw_conflicts(out.with_name("conflicts.svg"), watched)
    _draw_losses(out.with_name("balgrad-losses.svg"), curves)
    out.write_text(_page(watched, curves, seeds, time.perf_counter() - began))
    typer.echo(f"{out} written, {time.perf_counter() - began:.0f} s in all")


def _draw_conflicts(path: Path, watched: dict[str, Any]) -> None:
    with matplotlib.rc_context(STYLE):
        figure = matplotlib.figure.Figure(figsize=(9, 2.6 * len(watched) + 0.4), layout="constrained")
        grid = figure.subplots(len(watched), 2, squeeze=False)
        for (rate, histogram), (name, runs) in zip(grid, watched.items(), strict=True):
            for (method, found), colour in zip(runs.items(), COLOURS, strict=True):
                rates = np.mean([r for _, r, _ in found], axis=0)
                rate.plot(found[0][0], rates, color=colour, linewidth=1.3, label=method)
                angles = np.concatenate([a[~np.isnan(a)] for _, _, a in found])
                weights = np.full(len(angles), 1 / len(angles))
                histogram.hist(angles, np.arange(0, 181, 10), weights=weights, histtype="step", color=colour)
            rate.set(title=f"{name}: conflict rate", xlabel="step", ylim=(-0.02, None))
            histogram.axvline(90, color="#999999", linewidth=0.8)
            histogram.set(title=f"{name}: angles, all looks", xlabel="degrees", ylabel="share")
        figure.legend(*grid[0][0].get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False)
        figure.savefig(path, format="svg", facecolor="white", metadata={"Date": None})


def _modalities(steps: list[dict[str, Any]]) -> list[str]:
    return [k.removeprefix("balgrad_loss_") for k in steps[0] if k.startswith("balgrad_loss_")]


def _draw_losses(path: Path, curves: dict[str, Any]) -> None:
    with matplotlib.rc_context(STYLE):
        figure = matplotlib.figure.Figure(figsize=(9, 3), layout="constrained")
        grid = figure.subplots(1, len(curves), squeeze=False)[0]
        for axes, (name, runs) in zip(grid, curves.items(), strict=True):
            for (kind, found), dash in zip(runs.items(), ("-", "--"), strict=True):
                for m, colour in zip(_modalities(found[0]), ("#1f5fa8", "#c2570c", "#1b7f4b"), strict=False):
                    line = np.mean([smooth(np.array([s[f"balgrad_loss_{m}"] for s in run])) for run in found], axis=0)
                    x = (np.arange(len(line)) + 0.5) * 20
                    axes.plot(x, line, color=colour, linestyle=dash, linewidth=1.3, label=f"{m}, {kind}")
            axes.set(title=f"{name}: unimodal training loss", xlabel="step", yscale="log")
            axes.legend(frameon=False, fontsize=7)
        figure.savefig(path, format="svg", facecolor="white", metadata={"Date": None})


def _difference(a: list[float], b: list[float], digits: int = 3) -> str:
    d = paired(a, b)
    return f"{d.mean:+.{digits}f} [{d.low:+.{digits}f}, {d.high:+.{digits}f}], {d.verdict}"


def _page(watched: dict[str, Any], curves: dict[str, Any], seeds: int, seconds: float) -> str:
    rows = []
    for name, runs in watched.items():
        rates = {m: [float(r.mean()) for _, r, _ in found] for m, found in runs.items()}
        angles = {m: [float(np.nanmean(a)) for _, _, a in found] for m, found in runs.items()}
        for m, found in runs.items():
            late = [float(r[len(r) // 2 :].mean()) for _, r, _ in found]
            beside = "" if m != "gmd" else _difference(rates["gmd"], rates["mean of the sets' losses"])
            rows.append(
                f"| {name} | {m} | {np.mean(rates[m]):.3f} ({np.std(rates[m], ddof=1):.3f}) | {np.mean(late):.3f} | "
                f"{np.mean(angles[m]):.1f} | {beside} |"
            )
    losses, said = [], []
    words = {"higher": "wider", "lower": "narrower"}
    for name, runs in curves.items():
        gaps: dict[str, list[float]] = {}
        for kind, found in runs.items():
            modalities = _modalities(found[0])
            table = np.array([[[s[f"balgrad_loss_{m}"] for s in run] for m in modalities] for run in found])
            gaps[kind] = [float(g) for g in (table.max(axis=1) - table.min(axis=1)).mean(axis=1)]
            means = ", ".join(f"{m} {v:.3f}" for m, v in zip(modalities, table.mean(axis=(0, 2)), strict=True))
            losses.append(f"| {name} | {kind} | {means} | {np.mean(gaps[kind]):.3f} | |")
        verdict = paired(gaps["reweighted"], gaps["equal weights"]).verdict
        said.append(f"{words.get(verdict, verdict)} on {name}")
        losses[-2] = losses[-2].removesuffix("| |") + f"| {_difference(gaps['reweighted'], gaps['equal weights'])} |"
    return f"""# Conflicts along training

What GMD's conflict removal does to the angles between gradients *later on*, and what BalGrad's reweighting does to the
losses of single modalities. Both follow from training, not from construction: every number of the first table is of
gradients taken anew, by the same monitor, at the weights a method has come to ([the indicator](indicator.md)).

## GMD

A Dynamic Sharing model (`model.kind=sharing`), losses of every set of modalities. Conflict rate: the share of the pairs
whose angle is obtuse; mean over all looks (every {EVERY} steps of {STEPS}), then over the second half. In brackets the
deviation over {seeds} seeds; differences are paired by seed, with Student's 95 % interval.

| data set | trained with | conflict rate | second half | mean angle | gmd − mean of the losses |
|---|---|---|---|---|---|
{chr(10).join(rows)}

![Conflict rate by step, and the angles](conflicts.svg)

## BalGrad's reweighting

Late fusion with own heads. Mean unimodal training loss over all steps, and the mean gap between the largest and the
smallest of a step; the last column is the difference of the gaps, paired by seed. With reweighting the gap is
{", ".join(said)}. (A weight of L_m / sum pulls the leader less to the others than equal weights do, and the laggard
more.)

| data set | KL losses | mean unimodal loss | mean gap | reweighted − equal weights |
|---|---|---|---|---|
{chr(10).join(losses)}

![Unimodal training losses](balgrad-losses.svg)

## How this page was made

`python -m benchmarks.conflicts`, {seconds:.0f} s on {platform.processor() or platform.machine()}, torch
{torch.__version__}, one thread; batches of 64, AdamW, learning rate 0.003, balancers by their defaults. No correction for
the number of comparisons.
"""


if __name__ == "__main__":
    typer.run(main)
