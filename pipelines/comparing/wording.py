"""Numbers and lists as the pages of results write them."""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Sequence

from equipoise.pipelines.comparing.statistics import Difference, Spread

#: Where a line must not break.
SPACE = "\N{NO-BREAK SPACE}"


def number(value: float, digits: int = 3, sign: bool = False) -> str:
    """.978, 1.204, +.013, −.002; a dash where there is none."""
    if math.isnan(value):
        return "–"
    text = f"{abs(value):,.{digits}f}"
    if text.startswith("0."):
        text = text[1:]
    zero = float(text.replace(",", "")) == 0
    return ("" if zero else "−" if value < 0 else "+" if sign else "") + text


def probability(p: float) -> str:
    """.031, < .001."""
    return "–" if math.isnan(p) else f"<{SPACE}.001" if p < 0.001 else number(p)


def spread(found: Spread, digits: int = 3) -> str:
    """Mean (standard deviation)."""
    if not found.n:
        return "–"
    return f"{number(found.mean, digits)}{SPACE}({number(found.deviation, digits)})"


def difference(found: Difference) -> str:
    """Mean [interval]."""
    if math.isnan(found.low):
        return number(found.mean, sign=True)
    mean, low, high = (number(value, sign=True) for value in (found.mean, found.low, found.high))
    return f"{mean}{SPACE}[{low},{SPACE}{high}]"


def percent(value: float) -> str:
    return f"{100 * value:.0f}{SPACE}%"


def count(n: int, word: str) -> str:
    """1 seed, 5 seeds."""
    return f"{n:,} {word}{'s' * (n != 1)}"


def listed(words: Sequence[str]) -> str:
    """a, b and c."""
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1] if words else "none"


def paragraph(text: str, indent: str = "") -> str:
    """Lines of one paragraph; only plain spaces may break."""
    return textwrap.fill(
        re.sub("[ \n]+", " ", text).strip(),
        118,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
