"""The command: `python -m benchmarks.first_results`, from the root of the repository."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.command import chosen, command
from benchmarks.first_results.page import write_page
from benchmarks.first_results.plot import write_figure
from benchmarks.first_results.results import Results
from benchmarks.first_results.schedule import Schedule
from benchmarks.first_results.studies import STUDIES


def main(
    out: Annotated[Path, typer.Option(help="the page; its figure is written beside it, as .svg")] = Path(
        "docs/first-results.md"
    ),
    data: Annotated[Path, typer.Option(help="folder of the prepared data sets")] = Path("data/first-results"),
    runs: Annotated[Path, typer.Option(help="folder of the records, one a run")] = Path("runs/first-results"),
    only: Annotated[str, typer.Option(help="data sets to use, with commas; default: all")] = "",
    seeds: Annotated[int, typer.Option(help="seeds a data set, where it does not have fewer", min=1)] = 5,
    jobs: Annotated[int, typer.Option(help="trainings at a time, one thread each", min=1)] = 2,
) -> None:
    """Run what is missing of the study, and write its page and its figure."""
    os.environ["OMP_NUM_THREADS"] = "1"  # read by the processes that train
    known = [study.name for study in STUDIES]
    with command(out, out.with_suffix(".svg")) as console:
        wanted = chosen(only, known, "study")
        schedule = Schedule(data, runs, seeds, jobs, lambda line: console.print(line, style="dim", highlight=False))
        there, absent = schedule.prepared([study for study in STUDIES if study.name in wanted])
        absent |= {name: "left out by `--only`" for name in known if name not in wanted}
        found = schedule.run(there)
        results = [Results(study, *found[study.name]) for study in there]
        calls = schedule.seconds(record for result in results for record in result.records)
        write_figure(out.with_suffix(".svg"), results)
        write_page(out, results, absent, calls, jobs)


if __name__ == "__main__":
    typer.run(main)
