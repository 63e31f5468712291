"""What a search saves: `python -m benchmarks.search_efficiency`, from the root of the repository.

Does TPE with ASHA reach the validation score of random search without stopping, within 0.5 points, with 60 % of its
optimiser steps? A repeat is one seed, of the sampler and of every training alike. Each runs random search (24 trials to
their end), then other ways with 60 % of the steps that this took and as many trials as they pay for, all beginning with the
default.

These are the searches of `equipoise tune`: its study, sampler, rungs, records and budget (`pipelines.tuning`), with light
trials that train for real. Only Ray's processes are not there: trials run one after another in this one, so that a machine
with other work changes no number. In `tune` several run at a time, and a suggestion then knows less.

A best of more trials is also a luckier one, on validation. So the winners are looked at on test as well, which chose nothing.

What is done is kept in --out, and the same command goes on.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import date
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console
from scipy import stats

from benchmarks.sweep import machine
from equipoise.pipelines.config import Config
from equipoise.pipelines.files import read_json, write_json
from equipoise.pipelines.light import train_light
from equipoise.pipelines.tuning.config import TuneConfig, load_tune
from equipoise.pipelines.tuning.confirm import light_test
from equipoise.pipelines.tuning.records import Records
from equipoise.pipelines.tuning.search import Halving, Recorder, Search
from equipoise.pipelines.tuning.trials import complete, reported, run_of

PAGE = Path(__file__).parents[1] / "docs" / "search.md"
START, END = (
    "<!-- figures of benchmarks.search_efficiency -->",
    "<!-- end of the figures of benchmarks.search_efficiency -->",
)
TRIALS, SHARE, WITHIN = 24, 0.6, 0.005
RANDOM = "random, none stopped"
#: What each way changes in a search; of all but the first the steps are bounded.
WAYS: dict[str, dict[str, Any]] = {
    RANDOM: {"sampler": "random", "stop": "none"},
    "TPE + ASHA": {"sampler": "tpe", "stop": "asha"},
    "TPE + ASHA, grace 0.1": {"sampler": "tpe", "stop": "asha", "grace": 0.1},
    "random + ASHA": {"sampler": "random", "stop": "asha"},
}


class EndedEarlyError(Exception):
    """Out of a training that is stopped."""


def settings(config: TuneConfig) -> dict[str, Any]:
    """Of light trials here."""
    return {"base": config.base.model_dump(mode="json"), "threads": 1, "device": "cpu"}


def search(config: TuneConfig) -> Records:
    """The search that `equipoise tune` makes of a configuration, trial by trial in this process."""
    Path(config.out).mkdir(parents=True, exist_ok=True)
    records = Records(Path(config.out))
    searcher = Search(config, records, "light", lambda params: complete("light", settings(config), params), time.time())
    halving = Halving(config, records) if config.stop == "asha" else None
    recorder = Recorder(records, lambda record: None)
    while len(records.ended()) < config.trials.light:
        name = f"trial-{time.time_ns()}"
        suggested = searcher.suggest(name)
        if not isinstance(suggested, dict):
            break  # the budget is spent
        trial: Any = SimpleNamespace(trial_id=name, config=suggested)

        def report(row: Mapping[str, Any], trial: Any = trial) -> None:
            result = reported(row)
            action = halving.on_trial_result(None, trial, result) if halving else "CONTINUE"
            recorder.on_trial_result(0, [], trial, result)
            if action == "STOP":
                raise EndedEarlyError

        recorder.on_trial_start(0, [], trial)
        if halving:
            halving.on_trial_add(None, trial)  # type: ignore[arg-type]
        with suppress(EndedEarlyError):
            made = Config.model_validate(json.loads(suggested["config"]))
            train_light(run_of(made, Path(config.out), suggested["number"]), (), report)
        searcher.on_trial_complete(name)
    return records


def repeated(
    data: Path, balancer: str, steps: int, seed: int, way: str, budget: int | None, out: Path
) -> dict[str, Any]:
    """{"score", "test", "spent", "trials", "stopped", "path": (steps spent, best so far) a trial} of one search."""
    if (kept := read_json(out / "result.json")) is not None:
        return kept  # type: ignore[no-any-return]
    base = {"data": str(data), "balancer": balancer, "batch_size": 64, "max_steps": steps, "seed": seed}
    said: dict[str, Any] = {"base": base, "out": str(out), "seed": seed, "trials": {"light": TRIALS}, **WAYS[way]}
    if budget is not None:
        said |= {"budget": {"steps": budget}, "trials": {"light": 20 * TRIALS}}
    config = load_tune(said)
    records = search(config)
    best = records.best("score")
    assert best is not None
    assert best.kept is not None
    spent, top, path = 0, -np.inf, []
    for record in sorted(records.ended(), key=lambda r: r.number):
        spent += record.steps
        if record.status == "done" and record.kept is not None:
            top = max(top, record.kept["score"])
        path.append((spent, float(top)))
    found = {
        "score": best.kept["score"],
        "test": light_test(complete("light", settings(config), best.params))["score"],
        "spent": records.steps,
        "trials": len(records.ended()),
        "stopped": sum(record.status == "stopped" for record in records.ended()),
        "path": path,
    }
    write_json(out / "result.json", found)
    return found


def first_within(found: Mapping[str, Any], wanted: float, of: int) -> float | None:
    """The share of `of` steps after which the best so far was `wanted` or more; None where it never was."""
    return next((spent / of for spent, best in found["path"] if best >= wanted), None)


def lines(name: str, found: Mapping[str, list[dict[str, Any]]]) -> Iterator[str]:
    random = found[RANDOM]
    yield f"**{name}**, {len(random)} repeats"
    yield ""
    yield (
        "| way | trials | stopped | steps | best score on validation | beside random, points (95 %) | repeats within 0.5 | "
        "there after, median | its winners on test, points beside random's (95 %) | target |"
    )
    yield "|---|---|---|---|---|---|---|---|---|---|"
    for way, runs in found.items():
        mean = {key: float(np.mean([run[key] for run in runs])) for key in ("trials", "stopped", "spent", "score")}
        share = sum(run["spent"] for run in runs) / sum(run["spent"] for run in random)
        row = f"| {way} | {mean['trials']:.1f} | {mean['stopped']:.1f} | {100 * share:.0f} % | {100 * mean['score']:.2f} | "
        if way == RANDOM:
            yield row + "| | | | |"
            continue
        gaps = [run["score"] - other["score"] for run, other in zip(runs, random, strict=True)]
        tests = [run["test"] - other["test"] for run, other in zip(runs, random, strict=True)]
        near = sum(gap >= -WITHIN for gap in gaps)
        there = [
            first_within(run, other["score"] - WITHIN, other["spent"]) for run, other in zip(runs, random, strict=True)
        ]
        middle = float(np.median([np.inf if at is None else at for at in there]))
        after = f"{100 * middle:.0f} %" if np.isfinite(middle) else "never"
        judged = verdict(gaps) if share <= SHARE else "missed"
        yield row + (f"{interval(gaps)} | {near} of {len(gaps)} | {after} | {interval(tests)} | {judged} |")
    yield ""


def verdict(gaps: list[float]) -> str:
    """Whether all that the interval holds is within the target, or only the mean."""
    low = stats.ttest_1samp(gaps, 0).confidence_interval().low if len(gaps) > 1 else -np.inf
    if np.mean(gaps) < -WITHIN:
        return "missed"
    same = len(gaps) > 1 and np.std(gaps) == 0
    return "met" if same or low >= -WITHIN else "met by the mean, not by its interval"


def interval(values: list[float]) -> str:
    """Mean with Student's t interval, in points."""
    mean = f"{100 * np.mean(values):+.2f}"
    if len(values) < 2 or np.std(values) == 0:
        return mean
    low, high = stats.ttest_1samp(values, 0).confidence_interval()
    return f"{mean} ({100 * low:+.2f} to {100 * high:+.2f})"


def main(
    data: Annotated[list[Path], typer.Argument(help="prepared data sets")],
    out: Annotated[Path, typer.Option(help="where the searches are kept")] = Path("runs/search-efficiency"),
    repeats: Annotated[int, typer.Option(help="seeds")] = 10,
    steps: Annotated[int, typer.Option(help="optimiser steps of a trial")] = 300,
    balancer: Annotated[
        str, typer.Option(help="whose options are searched, with learning rate and weight decay")
    ] = "balgrad",
    skip: Annotated[str, typer.Option(help="leave out ways whose name holds this")] = "",
    only: Annotated[str, typer.Option(help="ways whose name holds this, and random search")] = "",
    write: Annotated[bool, typer.Option(help="write the figures into docs/search.md")] = False,
) -> None:
    """Compare ways to search at 60 % of random search's steps, and print tables in Markdown."""
    console = Console(width=200, soft_wrap=True)
    torch.set_num_threads(1)
    began, text = time.process_time(), []
    for folder in data:
        found: dict[str, list[dict[str, Any]]] = {
            way: [] for way in WAYS if way == RANDOM or (only in way and not (skip and skip in way))
        }
        for seed in range(repeats):
            for way, runs in found.items():
                budget = None if way == RANDOM else int(SHARE * found[RANDOM][seed]["spent"])
                where = out.resolve() / folder.name / f"{way.replace(' ', '-').replace(',', '')}-{seed}"
                runs.append(repeated(folder, balancer, steps, seed, way, budget, where))
                console.print(
                    f"{folder.name}, seed {seed}, {way}: {runs[-1]['score']:.4f} after {runs[-1]['spent']} steps"
                )
        title = f"{folder.name}, {balancer}, {TRIALS} trials of {steps} steps"
        text += lines(title, found)
        console.print("\n".join(lines(title, found)), markup=False)
    said = " ".join(
        [
            *map(str, data),
            *([f"--only {only!r}"] if only else []),
            *([f"--skip {skip!r}"] if skip else []),
            f"--out {out}",
        ]
    )
    text.append(
        f"`python -m benchmarks.search_efficiency {said} --repeats {repeats} --steps {steps} --balancer {balancer} --write`, "
        f"{date.today()}; {machine(torch.device('cpu'))}."
    )
    console.print(f"{text[-1]} {time.process_time() - began:.0f} CPU seconds in this sitting.", markup=False)
    if write:
        page = PAGE.read_text()
        head, tail = page[: page.index(START)], page[page.index(END) :]
        PAGE.write_text(f"{head}{START}\n\n" + "\n".join(text).strip() + f"\n\n{tail}")


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    typer.run(main)
