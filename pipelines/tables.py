"""Tables for the terminal."""

from collections.abc import Iterable, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> Table:
    """A plain table: text to the left, numbers to the right, floats with three digits."""
    out = Table(title=title, title_justify="left", title_style="bold")
    shown = list(rows)
    for i, column in enumerate(columns):
        numbers = any(isinstance(row[i], int | float) for row in shown)
        out.add_column(column, justify="right" if numbers else "left")
    for row in shown:
        # Text, not markup: "[i, m]" in a description is no tag.
        out.add_row(*(Text(f"{cell:.3f}" if isinstance(cell, float) else str(cell)) for cell in row))
    return out


def matrix_table(rows: Sequence[dict[str, Any]], title: str) -> Table:
    """The missing-modality matrix: a row a coalition."""
    names = [name for name in rows[0] if name not in ("coalition", "modalities")]
    cells = ([row["coalition"], *(int(row[n]) if n == "rows" else row.get(n, "-") for n in names)] for row in rows)
    return table(title, ["modalities present", *names], cells)
