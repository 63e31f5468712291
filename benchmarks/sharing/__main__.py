"""The command: `python -m benchmarks.sharing`, from the root of the repository."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer

from benchmarks.command import chosen, command
from benchmarks.sharing.page import write_page
from benchmarks.sharing.runs import STUDIES, Results, ensure


def main(
    out: Annotated[Path, typer.Option(help="the page")] = Path("docs/sharing.md"),
    data: Annotated[Path, typer.Option(help="folder of the prepared data sets")] = Path("data/sharing"),
    runs: Annotated[Path, typer.Option(help="folder of the records, one a run")] = Path("runs/sharing"),
    only: Annotated[str, typer.Option(help="data sets to use, with commas; default: all")] = "",
    seeds: Annotated[int, typer.Option(help="seeds a data set", min=2)] = 5,
) -> None:
    """Run what is missing, one training at a time, and write the page."""
    torch.set_num_threads(1)
    with command(out) as console:
        results: list[Results] = [
            ensure(STUDIES[name], data, runs, seeds, lambda line: console.print(line, style="dim", highlight=False))
            for name in chosen(only, STUDIES, "study")
        ]
        write_page(out, results)


if __name__ == "__main__":
    typer.run(main)
