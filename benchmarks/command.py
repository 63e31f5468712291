"""What the commands of the studies have in common: which data sets they use, and how they end."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import typer
from rich.console import Console

from equipoise.models.errors import EquipoiseError, unknown


def chosen(only: str, known: Iterable[str], study: str) -> list[str]:
    """The data sets that `--only` names, with commas; all that are known where it names none.

    Raises:
        EquipoiseError: an unknown one: "Unknown data set of the <study> ...".
    """
    known = list(known)
    wanted = [name.strip() for name in only.split(",") if name.strip()] or known
    for name in wanted:
        if name not in known:
            raise unknown(f"data set of the {study}", name, known)
    return wanted


@contextmanager
def command(*written: Path) -> Iterator[Console]:
    """The console of a command that writes these files: it says so at the end, with the seconds it took. What the user can
    mend is printed as a sentence, and the exit status is 2.
    """
    began, console = time.perf_counter(), Console(width=120)
    try:
        yield console
    except EquipoiseError as error:
        console.print(str(error), style="red")
        raise typer.Exit(2) from None
    console.print(f"{' and '.join(map(str, written))} written, {time.perf_counter() - began:.0f} s in all")
