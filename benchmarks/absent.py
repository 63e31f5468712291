"""What a modality that rows lack costs: `python -m benchmarks.absent`, from the root of the repository.

The first modality of each model is there in a share of the rows, the others in all of them. Each round times, for every
share and one after another in turning order:

- step: forward, backward and update of a balanced step (joint);
- sweep: every coalition's score of the same batch, as a valuation does it.

Each column has a number a share. `calls` and `rows`: how often the first encoder was called in one step or sweep, and with
how many rows in all, counted by hooks (the other encoders' rows are the whole batch, which is asserted). `whole`: the time
beside that of all rows present. `encoder`: the part of it that the first encoder costs, (t(share) - t(0)) / (t(1) - t(0)) of
the medians. An encoder is not run on rows that lack its modality, so `encoder` is about the share; the target is for a half.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from torch import nn

from benchmarks.sweep import machine
from equipoise import balancers
from equipoise.balancers import BalancedStep
from equipoise.models import Batch, Classification, DenseFusion, LateFusion, Segmentation, Task, UNet
from equipoise.models.encoders import GRU, CNN1d, CNN2d
from equipoise.pipelines.tables import table
from equipoise.valuation import sweep

SHARES = (1.0, 0.75, 0.5, 0.25, 0.0)
TARGET = 0.60  # of the encoder's time, where half of the rows lack its modality
PRINTED = {"calls": "d", "rows": "d", "whole": ".2f", "encoder": ".2f"}
IMAGE, SIGNAL, SCAN = (3, 64, 64), (64, 6), (1, 16, 16, 16)


@dataclass(frozen=True)
class Case:
    """A model whose first modality rows may lack, and the size of its batches."""

    title: str
    rows: int
    shapes: dict[str, tuple[int, ...]]
    encoders: Callable[[], dict[str, nn.Module]]
    dense: bool = False

    @property
    def task(self) -> Task:
        return Segmentation(["WT", "TC", "ET"]) if self.dense else Classification(10)

    def build(self) -> LateFusion:
        torch.manual_seed(0)
        return (DenseFusion if self.dense else LateFusion)(self.encoders(), self.task.num_outputs)

    def batch(self, share: float) -> Batch:
        """`share` of the rows, evenly spread, have the first modality; what stands in the others' tensors is NaN."""
        draw = torch.Generator().manual_seed(1)
        inputs = {m: torch.randn(self.rows, *shape, generator=draw) for m, shape in self.shapes.items()}
        present = torch.ones(self.rows, len(self.shapes), dtype=torch.bool)
        number = torch.arange(self.rows + 1) * share
        present[:, 0] = number[1:].floor() > number[:-1].floor()
        inputs[next(iter(inputs))][~present[:, 0]] = torch.nan
        shape = (self.rows, 3, *SCAN[1:]) if self.dense else (self.rows,)
        return Batch(
            sample_id=torch.arange(self.rows),
            copy=torch.zeros(self.rows, dtype=torch.int16),
            inputs=inputs,
            present=present,
            target=torch.randint(0, 2 if self.dense else 10, shape, generator=draw),
        )


def with_gru() -> dict[str, nn.Module]:
    return {"image": CNN2d(IMAGE[0], hidden=16, depth=3), "signal": GRU(SIGNAL[1], 32)}


def with_cnn() -> dict[str, nn.Module]:
    return {"image": CNN2d(IMAGE[0], hidden=16, depth=3), "signal": CNN1d(SIGNAL[1], hidden=32)}


def unets() -> dict[str, nn.Module]:
    return {m: UNet(1, out_features=8, hidden=8) for m in ("t1", "t1ce", "t2", "flair")}


PAIR = {"image": IMAGE, "signal": SIGNAL}
#: Images are 3 x 64 x 64, signals 64 x 6, scans four sequences of 16 x 16 x 16.
CASES = [
    *(Case("cnn2d + gru", rows, PAIR, with_gru) for rows in (64, 256)),
    *(Case("cnn2d + cnn1d", rows, PAIR, with_cnn) for rows in (64, 256)),
    Case("4 unets", 16, dict.fromkeys(("t1", "t1ce", "t2", "flair"), SCAN), unets, dense=True),
]


@contextmanager
def counted(model: LateFusion) -> Iterator[dict[str, list[int]]]:
    """{modality: rows of each call of its encoder}, of what is run inside."""
    calls: dict[str, list[int]] = {m: [] for m in model.modalities}
    hooks = [
        model.encoders[m].register_forward_pre_hook(lambda _, args, m=m: calls[m].append(len(args[0])))
        for m in model.modalities
    ]
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()


def measure(case: Case, shares: tuple[float, ...], rounds: int, warmup: int) -> list[dict[str, Any]]:
    """A row of counts, seconds and ratios a way and share."""
    model, task = case.build(), case.task
    step = BalancedStep(model, task, balancers.get("joint"), torch.optim.SGD(model.parameters(), lr=1e-4))
    ways: dict[str, Callable[[Batch], Any]] = {"step": step, "sweep": lambda batch: sweep(model, batch, task)}
    cells = [(way, share) for way in ways for share in shares]
    batches = {share: case.batch(share) for share in shares}
    counts = {}
    for way, share in cells:
        with counted(model) as calls:
            ways[way](batches[share])
        counts[way, share] = calls
    times: dict[tuple[str, float], list[float]] = {cell: [] for cell in cells}
    order = list(cells)
    for turn in range(warmup + rounds):
        order = [*order[1:], order[0]]
        for way, share in order:
            began = time.perf_counter()
            ways[way](batches[share])
            if turn >= warmup:
                times[way, share].append(time.perf_counter() - began)
    median = {cell: statistics.median(found) for cell, found in times.items()}
    first, *others = model.modalities
    return [
        {
            "case": case.title,
            "batch": case.rows,
            "way": way,
            "share": share,
            "calls": len(counts[way, share][first]),
            "rows": sum(counts[way, share][first]),
            "other_rows": [sum(counts[way, share][m]) for m in others],
            "seconds": median[way, share],
            "whole": median[way, share] / median[way, 1.0],
            "encoder": (median[way, share] - median[way, 0.0]) / (median[way, 1.0] - median[way, 0.0]),
        }
        for way, share in cells
    ]


def main(
    rounds: Annotated[int, typer.Option(help="timed rounds")] = 21,
    warmup: Annotated[int, typer.Option(help="rounds before them that are not counted")] = 3,
    threads: Annotated[int, typer.Option(help="of torch")] = 1,
    only: Annotated[str, typer.Option(help="cases whose title holds this")] = "",
    out: Annotated[Path | None, typer.Option(help="also write the figures here, as JSON")] = None,
) -> None:
    """Count and time the encoder of a modality that a share of the rows lacks, and print a table."""
    torch.set_num_threads(threads)
    console = Console(width=140)
    results = [row for case in CASES if only in case.title for row in measure(case, SHARES, rounds, warmup)]
    shown = []
    for at in range(0, len(results), len(SHARES)):
        found = results[at : at + len(SHARES)]
        half = found[SHARES.index(0.5)]
        others = {n for r in found for n in r["other_rows"]}
        assert others == {half["batch"]}, "an encoder whose modality all rows have runs on all of them"
        lines = [" ".join(f"{r[name]:{form}}" for r in found) for name, form in PRINTED.items()]
        verdict = "met" if half["encoder"] <= TARGET else "MISSED"
        shown.append(
            [half["case"], str(half["batch"]), half["way"], f"{1e3 * found[0]['seconds']:.1f}", *lines, verdict]
        )
    columns = ["model", "batch", "way", "ms", "calls", "rows", "whole", "encoder", f"<= {TARGET:.2f}"]
    heading = f"First modality there in {', '.join(f'{s:g}' for s in SHARES)} of the rows: medians of {rounds} rounds"
    console.print(table(heading, columns, shown))
    title = machine(torch.device("cpu"))
    console.print(title)
    if out is not None:
        out.write_text(json.dumps({"machine": title, "rounds": rounds, "results": results}, indent=1))


if __name__ == "__main__":
    typer.run(main)
