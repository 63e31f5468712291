"""Numbers and lists as the page writes them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from equipoise.pipelines.comparing.wording import SPACE, difference, listed, number, paragraph, percent, spread

__all__ = ["SPACE", "difference", "listed", "number", "paragraph", "percent", "spread", "table"]


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" if line[0] != "---" else f"|{'|'.join(line)}|" for line in lines)
