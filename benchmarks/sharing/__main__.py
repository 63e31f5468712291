"""The command: `python -m benchmarks.sharing`, from the root of the repository."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console

from benchmarks.sharing.page import write_page
from benchmarks.sharing.runs import STUDIES, Results, ensure
from equipoise.models.errors import EquipoiseError, unknown


def main(
    out: Annotated[Path, typer.Option(help="the page")] = Path("docs/sharing.md"),
    data: Annotated[Path, typer.Option(help="folder of the prepared data sets")] = Path("data/sharing"),
    runs: Annotated[Path, typer.Option(help="folder of the records, one a run")] = Path("runs/sharing"),
    only: Annotated[str, typer.Option(help="data sets to use, with commas; default: all")] = "",
    seeds: Annotated[int, typer.Option(help="seeds a data set", min=2)] = 5,
) -> None:
    """Run what is missing, one training at a time, and write the page."""
    began, console = time.perf_counter(), Console(width=120)
    torch.set_num_threads(1)
    wanted = [name.strip() for name in only.split(",") if name.strip()] or list(STUDIES)
    try:
        for name in wanted:
            if name not in STUDIES:
                raise unknown("data set of the study", name, STUDIES)
        results: list[Results] = [
            ensure(STUDIES[name], data, runs, seeds, lambda line: console.print(line, style="dim", highlight=False))
            for name in wanted
        ]
        write_page(out, results)
    except EquipoiseError as error:
        console.print(str(error), style="red")
        raise typer.Exit(2) from None
    console.print(f"{out} written, {time.perf_counter() - began:.0f} s in all")


if __name__ == "__main__":
    typer.run(main)
