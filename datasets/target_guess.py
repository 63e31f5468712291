"""Which column of a person's table is the target, and what kind of task it makes."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from equipoise.datasets.looking import DISTINCT, ColumnLook
from equipoise.datasets.task_spec import SEPARATOR
from equipoise.models.errors import EquipoiseError, unknown

_TARGETS = (
    "target", "label", "labels", "class", "category", "y", "genre", "species", "diagnosis", "outcome", "answer", "emotion",
    "sentiment", "survived", "churn",
)  # fmt: skip
_CERTAIN = ("target", "label", "labels")  # names that nothing but a target has
_MOST_CLASSES, _MOST_LABELS = 200, 50


@dataclass
class TargetGuess:
    """`reason`: why this column; `predicts`: its classes, labels or range in words. `task` None: classification."""

    column: str
    reason: str
    predicts: str
    task: dict[str, Any] | None = None
    task_labels: list[str] | None = None


def guess_target(looks: dict[str, ColumnLook], asked: str | None, source: Path, others: set[str]) -> TargetGuess:
    """The column to predict: the one asked for, else the likeliest that is none of `others`. Raises `EquipoiseError`."""

    def may_be(c: ColumnLook) -> bool:
        labels = c.kind == "text" or (c.kind == "number" and c.integers and not _is_number(c))
        return labels and 2 <= c.distinct <= min(_MOST_CLASSES, max(2, c.present // 2))

    if asked is not None:
        if asked not in looks:
            raise unknown(f"column of {source}", asked, looks)
        found = looks[asked]
        if found.kind not in ("text", "number") or found.distinct < 2:
            raise EquipoiseError(
                f"The column {asked!r} of {source} cannot be predicted: it holds {found.kind} with {found.distinct} different "
                "values, and a target has class names or numbers, two or more."
            )
        return _predicted(found, "you said so")
    named = [c for c in looks.values() if c.name.lower() in _TARGETS and (may_be(c) or _is_number(c) or _is_labels(c))]
    named.sort(key=lambda c: (c.name.lower() not in _CERTAIN, not may_be(c)))
    left = [c for c in looks.values() if may_be(c) and c.name not in others]
    short = [c for c in left if c.distinct <= 50 and max(c.words, default=1) <= 3]
    for some in (named, [c for c in short if c.kind == "text"][-1:], short[-1:]):
        if some:
            return _predicted(some[0], "its name" if some is named else "the last with few values")
    raise EquipoiseError(
        f"No column of {source} looks like a target (some classes, each in several rows; or numbers in a column of that "
        f"name): name it with --target COLUMN. There are {', '.join(looks)}."
    )


def _predicted(c: ColumnLook, reason: str) -> TargetGuess:
    """What kind of task the target is."""
    out = TargetGuess(c.name, reason, "")
    if _is_number(c):
        # One digit that counts: a tenth of the range is a guess, and should look like one.
        tolerance = float(f"{(c.high - c.low) / 10:.1g}")
        out.task = {"kind": "regression", "tolerance": int(tolerance) if tolerance >= 1 else tolerance}
        out.predicts = f"numbers of {c.low:g} to {c.high:g}: a regression"
    elif _is_labels(c):
        out.task, out.task_labels = {"kind": "multilabel"}, sorted(c.names)
        out.predicts = f"{len(c.names)} labels joined by {SEPARATOR}: {few(out.task_labels)}"
    else:
        count = f"{c.distinct} classes" if c.distinct <= DISTINCT else "many classes"
        out.predicts = f"{count}: {few(sorted(map(str, c.values)))}"
    if c.missing:
        out.predicts += f"; {c.missing} of {c.rows} rows have none and cannot be used"
    return out


def _is_number(c: ColumnLook) -> bool:
    """A quantity, to be regressed: not whole, or whole with many values that do not count classes from 0 or 1."""
    if c.kind != "number" or not c.low < c.high:
        return False
    counted = c.low in (0, 1) and c.high - c.low + 1 == c.distinct
    return not c.integers or (c.distinct > 20 and not counted)


def _is_labels(c: ColumnLook) -> bool:
    """Names joined by `;`: a few short ones, each of them in several rows."""
    fitting = 2 <= len(c.names) <= min(_MOST_LABELS, c.present // 2) and 2 * len(c.names) <= c.names.total()
    return c.kind == "text" and c.joined > 0 and fitting and all(len(name.split()) <= 3 for name in c.names)


def few(values: Sequence[str]) -> str:
    return ", ".join(values[:4]) + (", ..." if len(values) > 4 else "")
