"""What a balanced step costs beside joint training's: `python -m benchmarks.step`, from the root of the repository.

Each round times one step of every method, of joint training on the same model (of the kind that the method is defined
for), and the parts of a bare loop on it: forward with loss, backward, update; one after another in turning order.

- / joint: the step beside joint training's. The target of methods that differentiate one summed loss is 1.05.
- passes: how often each encoder was run forward and gone back through in one step, counted by hooks; autograd runs: how
  often autograd was started, which must be what `backward_passes` says.
- limit: forward and backward of the bare loop times these passes, and one update: what the counted passes cost at least,
  beside joint's step. / limit: the step beside that. The target of methods with several objectives is 1.10.
- live: tensors alive at the same time at the most beyond parameters and graph, in numbers of parameters P (a batch of 8 on
  wide encoders, so that the graph is small).

Ratios are medians of the ratios within a round, so that a busy machine bends them less. Targets are judged on the heavy
model, where encoders take at least 90 % of the time.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console

from benchmarks.step_cost import Live, counted
from benchmarks.sweep import CLOCKS, Clock, machine
from equipoise import EquipoiseError, balancers
from equipoise.balancers import BalancedStep, Balancer
from equipoise.models import MLP, Batch, Classification, CNN2d, LateFusion

TASK = Classification(10)
PAGE = Path(__file__).parents[1] / "docs" / "step.md"
START, END = "<!-- figures of benchmarks.step -->", "<!-- end of the figures -->"
ONE, SEVERAL, HEAVY = 1.05, 1.10, 0.90


@dataclass(frozen=True)
class Case:
    """M encoders of one kind over inputs of one shape."""

    title: str
    shape: tuple[int, ...]
    rows: int
    encoder: Callable[[], Any]

    def build(self, num_modalities: int, how: dict[str, Any]) -> LateFusion:
        torch.manual_seed(0)
        return LateFusion({f"m{i}": self.encoder() for i in range(num_modalities)}, TASK.num_outputs, **how)

    def batch(self, num_modalities: int, number: int) -> Batch:
        draw = torch.Generator().manual_seed(number)
        rows = self.rows
        return Batch(
            sample_id=torch.arange(rows) + rows * number,
            copy=torch.zeros(rows, dtype=torch.int16),
            inputs={f"m{i}": torch.randn(rows, *self.shape, generator=draw) for i in range(num_modalities)},
            present=torch.ones(rows, num_modalities, dtype=torch.bool),
            target=torch.arange(rows) % TASK.num_outputs,
        )


SMALL = Case("small", (16,), 64, lambda: MLP(16, (64,), 64))
LARGE = Case("encoder-heavy", (3, 64, 64), 64, lambda: CNN2d(3, hidden=16, depth=3))
#: For live memory: many parameters, few activations.
WIDE = Case("wide", (64,), 8, lambda: MLP(64, (1200, 1200), 64))


def kind(balancer: Balancer) -> dict[str, Any]:
    """The model that a method is defined for, as near to the default one as it can be."""
    fusion = balancer.fusions[0] if balancer.fusions else "concat"
    absence = {"absence": "drop"} if fusion == "average" else {}
    unimodal = "split" if "split" in balancer.accepts and fusion != "gated" else balancer.accepts[0]
    return {"fusion": fusion, "unimodal": unimodal, **absence}


def made(balancer: Balancer, model: LateFusion) -> BalancedStep:
    return BalancedStep(model, TASK, balancer, torch.optim.SGD(model.parameters(), lr=1e-4))


class Bare:
    """Forward, backward and update without any step around them; `parts`: seconds of each."""

    def __init__(self, model: LateFusion) -> None:
        self.model = model
        self.optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)

    def parts(self, batch: Batch, now: Clock) -> tuple[float, float, float]:
        at = [now()]
        loss = TASK.losses(self.model(batch["inputs"], batch["present"]).logits, batch["target"]).mean()
        at.append(now())
        loss.backward()
        at.append(now())
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        at.append(now())
        return at[1] - at[0], at[2] - at[1], at[3] - at[2]

    def encoders(self, batch: Batch, now: Clock) -> float:
        began = now()
        features = self.model.features(batch["inputs"], batch["present"])
        torch.stack([f.sum() for f in features.values()]).sum().backward()
        took = now() - began
        self.optimizer.zero_grad(set_to_none=True)
        return took


@dataclass(frozen=True)
class Counts:
    """Passes an encoder, forward and backward; autograd runs; objectives kept apart or summed; live memory in P."""

    forward: float
    backward: float
    runs: int
    objectives: int
    live: float


def count(balancer: Balancer, num_modalities: int) -> Counts:
    """What is counted in one step on the wide model, after two that give a method its state."""
    model = WIDE.build(num_modalities, kind(balancer))
    step = made(balancer, model)
    for number in range(2):
        step(WIDE.batch(num_modalities, number))
    step.optimizer.zero_grad(set_to_none=True)
    batch = WIDE.batch(num_modalities, 2)
    with counted(dict(model.encoders.items())) as passes:
        result = step(batch)
    step.optimizer.zero_grad(set_to_none=True)
    live = Live().known(chain(model.parameters(), model.buffers()))
    with live:
        step(batch)
    each = [sum(found.values()) / num_modalities for found in (passes.forward, passes.backward)]
    return Counts(*each, passes.runs, len(result.losses), live.peak / 4 / step.layout.size)


def measure(case: Case, num_modalities: int, names: list[str], repeats: int, now: Clock) -> dict[str, Any]:
    """{"share": of the encoders, "rows": a row a method} of one model."""
    batches = [case.batch(num_modalities, number) for number in range(4)]
    methods = {name: balancers.get(name) for name in names}
    kinds = {name: tuple(sorted(kind(method).items())) for name, method in methods.items()}
    steps = {name: made(method, case.build(num_modalities, kind(method))) for name, method in methods.items()}
    joint = {how: made(balancers.get("joint"), case.build(num_modalities, dict(how))) for how in kinds.values()}
    bare = {how: Bare(case.build(num_modalities, dict(how))) for how in joint}
    plain = next(iter(bare.values()))
    ways: dict[Any, Callable[[Batch], Any]] = {
        **{("step", name): lambda b, s=step: timed(lambda: s(b), now) for name, step in steps.items()},
        **{("joint", how): lambda b, s=step: timed(lambda: s(b), now) for how, step in joint.items()},
        **{("bare", how): lambda b, p=loop: p.parts(b, now) for how, loop in bare.items()},
        ("encoders", ""): lambda b: plain.encoders(b, now),
    }
    found: dict[Any, list[Any]] = {way: [] for way in ways}
    order = list(ways)
    for turn in range(3 + repeats):
        order = [*order[1:], order[0]]
        for way in order:
            took = ways[way](batches[turn % len(batches)])
            if turn >= 3:
                found[way].append(took)
    whole = [sum(parts[:2]) for parts in found["bare", next(iter(bare))]]
    rows = []
    for name, method in methods.items():
        counts, how = count(method.__class__(**method.options.model_dump()), num_modalities), kinds[name]
        times, base = found["step", name], found["joint", how]
        limits = [counts.forward * f + counts.backward * b + u for f, b, u in found["bare", how]]
        rows.append(
            {
                "name": name,
                "separate": method.separate,
                "counts": counts,
                "ms": 1e3 * statistics.median(times),
                "joint": ratio(times, base),
                "limit": ratio(limits, base),
                "over": ratio(times, limits),
            }
        )
    share = ratio(found["encoders", ""], whole)
    return {"share": share, "rows": rows}


def timed(call: Callable[[], Any], now: Clock) -> float:
    began = now()
    call()
    return now() - began


def ratio(above: list[float], below: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


def verdict(row: dict[str, Any], heavy: bool) -> str:
    if not heavy:
        return ""
    good = row["over"] <= SEVERAL if row["separate"] else row["joint"] <= ONE
    return "met" if good else "missed"


def lines(title: str, found: dict[str, Any], heavy: bool) -> Iterator[str]:
    yield f"**{title}** (encoders take {100 * min(found['share'], 1.0):.0f} % of the bare forward and backward pass)"
    yield ""
    yield "| method | objectives | ms | / joint | passes | autograd runs | limit | / limit | live | target |"
    yield "|---|---|---|---|---|---|---|---|---|---|"
    for row in found["rows"]:
        c = row["counts"]
        apart = f"{c.objectives} apart" if row["separate"] else f"{c.objectives} summed" if c.objectives > 1 else "1"
        yield (
            f"| {row['name']} | {apart} | {row['ms']:.1f} | {row['joint']:.2f} | {c.forward:g} + {c.backward:g} | {c.runs} | "
            f"{row['limit']:.2f} | {row['over']:.2f} | {c.live:.2f} P | {verdict(row, heavy)} |"
        )
    yield ""


def fitting(only: str, console: Console) -> tuple[list[str], dict[str, str]]:
    """The methods that run on a late fusion of these encoders, joint first, and why others do not."""
    names, left = [], {}
    for name in ["joint", *(n for n in balancers.names() if n != "joint")]:
        if only and only not in name and name != "joint":
            continue
        try:
            method = balancers.get(name)
            made(method, SMALL.build(2, kind(method)))(SMALL.batch(2, 0))
            names.append(name)
        except (EquipoiseError, ImportError) as error:
            left[name] = str(error)
            console.print(f"{name}: left out. {error}")
    return names, left


@contextmanager
def threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def main(
    repeats: Annotated[int, typer.Option(help="timed rounds")] = 31,
    only: Annotated[str, typer.Option(help="methods whose name holds this, and joint")] = "",
    clock: Annotated[str, typer.Option(help="wall, or cpu where the machine has other work")] = "wall",
    write: Annotated[bool, typer.Option(help="write the figures into docs/step.md")] = False,
) -> None:
    """Time a step of every method beside joint training's, on one thread, and print tables in Markdown."""
    console = Console(width=160, soft_wrap=True)
    names, left = fitting(only, console)
    text: list[str] = []
    with threads(1):
        for case in (SMALL, LARGE):
            for num_modalities in (2, 3):
                found = measure(case, num_modalities, names, repeats, CLOCKS[clock])
                heavy = found["share"] >= HEAVY
                title = f"{case.title}, M = {num_modalities}, {case.rows} rows"
                text += lines(title, found, heavy)
                console.print("\n".join(lines(title, found, heavy)), markup=False)
    told = f"{'CPU' if clock == 'cpu' else 'wall'} seconds, medians of {repeats} interleaved rounds"
    settings = " ".join(f"{k}={v}" for k, v in sorted(os.environ.items()) if k.startswith("MALLOC_"))
    command = f"{settings} python -m benchmarks.step --repeats {repeats} --clock {clock} --write"
    text.append(f"`{command.strip()}`, {date.today()}, {told}; {machine(torch.device('cpu'))}.")
    text += [f"\n{name} was left out: {why}" for name, why in left.items()]
    console.print(text[-1], markup=False)
    if write:
        page = PAGE.read_text()
        head, tail = page[: page.index(START)], page[page.index(END) :]
        PAGE.write_text(f"{head}{START}\n\n" + "\n".join(text).strip() + f"\n\n{tail}")


if __name__ == "__main__":
    typer.run(main)
