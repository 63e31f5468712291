"""What `equipoise doctor` finds: lines with a mark, in sections, readable at 80 columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text

_STYLES = {"ok": "green", "look": "yellow", "wrong": "bold red"}


@dataclass(frozen=True)
class Finding:
    """One line: "ok", "look" (a run starts all the same) or "wrong" (it does not); what was looked at, what was found
    and, where that is not ok, what to do.
    """

    mark: Literal["ok", "look", "wrong"]
    what: str
    found: str
    do: str = ""


def show(console: Console, title: str, findings: Sequence[Finding]) -> None:
    """Print a section."""
    console.print(Text(title, style="bold"))
    grid = Table.grid(padding=(0, 1), expand=False)
    grid.add_column(width=5)
    grid.add_column(width=13)
    grid.add_column(overflow="fold")
    for line in findings:
        # Text, not markup: a path in brackets is no tag.
        found = Text.assemble(line.found, ("\n" + line.do if line.do else "", "italic"))
        grid.add_row(Text(line.mark, style=_STYLES[line.mark]), Text(line.what), found)
    console.print(grid)
    console.print()
