"""The command: `python -m benchmarks.methods`, from the root of the repository."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.command import chosen, command
from benchmarks.methods.page import write_page
from benchmarks.methods.plot import write_figure
from benchmarks.methods.schedule import MethodSchedule
from benchmarks.methods.studies import STUDIES


def main(
    out: Annotated[Path, typer.Option(help="the page; its figure is written beside it, as .svg")] = Path(
        "docs/method-results.md"
    ),
    data: Annotated[Path, typer.Option(help="folder of the prepared data sets")] = Path("data/methods"),
    runs: Annotated[Path, typer.Option(help="folder of the records, one a run")] = Path("runs/methods"),
    only: Annotated[str, typer.Option(help="data sets to use, with commas; default: all")] = "",
    seeds: Annotated[int, typer.Option(help="seeds a data set", min=1)] = 5,
    jobs: Annotated[int, typer.Option(help="trainings at a time, one thread each", min=1)] = 2,
) -> None:
    """Run what is missing of the table, and write its page and its figure."""
    os.environ["OMP_NUM_THREADS"] = "1"  # read by the processes that train
    known = [study.name for study in STUDIES]
    with command(out, out.with_suffix(".svg")) as console:
        wanted = chosen(only, known, "table")
        schedule = MethodSchedule(
            data, runs, seeds, jobs, lambda line: console.print(line, style="dim", highlight=False)
        )
        there, absent = schedule.prepared([study for study in STUDIES if study.name in wanted])
        absent |= {name: "left out by `--only`" for name in known if name not in wanted}
        results = schedule.results(there)
        folders = {study.name: str(schedule.folder(study, 0)) for study in there}
        calls = schedule.seconds(record for found in results for record in found.records)
        write_page(out, results, absent, folders, calls, jobs)
        write_figure(out.with_suffix(".svg"), results)


if __name__ == "__main__":
    typer.run(main)
