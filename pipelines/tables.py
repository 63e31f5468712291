"""Tables for the terminal."""

from collections.abc import Iterable, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text


def measured(value: float, digits: int = 3) -> str:
    """A number of any size: `digits` behind the point for what is about as large as a share, else `digits` + 1 that count."""
    size = abs(value)
    if size >= 10 ** (digits + 1):
        return f"{value:,.0f}"
    if size >= 10:
        return f"{value:#.{digits + 1}g}".rstrip(".")
    return f"{value:.{digits}f}" if size == 0 or size >= 10**-digits else f"{value:.{digits + 1}g}"


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> Table:
    """A plain table: text to the left, numbers to the right, floats as `measured` has them."""
    out = Table(title=title, title_justify="left", title_style="bold")
    shown = list(rows)
    for i, column in enumerate(columns):
        numbers = any(isinstance(row[i], int | float) for row in shown)
        out.add_column(column, justify="right" if numbers else "left", overflow="fold", no_wrap=i == 0)
    for row in shown:
        # Text, not markup: "[i, m]" in a description is no tag.
        out.add_row(*(Text(measured(cell) if isinstance(cell, float) else str(cell)) for cell in row))
    return out


def matrix_table(rows: Sequence[dict[str, Any]], title: str) -> Table:
    """The missing-modality matrix: a row a coalition."""
    names = [name for name in rows[0] if name not in ("coalition", "modalities")]
    cells = ([row["coalition"], *(int(row[n]) if n == "rows" else row.get(n, "-") for n in names)] for row in rows)
    return table(title, ["modalities present", *names], cells)
