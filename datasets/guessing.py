"""What a person's table most likely is: which column is the id, the target, the group, the split, and which are modalities."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from math import ceil
from pathlib import Path
from typing import Any

from equipoise.datasets.foreign import open_table
from equipoise.datasets.looking import ColumnLook
from equipoise.datasets.manifest import SPLITS, check_modalities
from equipoise.datasets.target_guess import few, guess_target
from equipoise.models.errors import EquipoiseError
from equipoise.models.modality import Modality

ROWS, CELLS, BYTES = 10_000, 1_000_000, 1 << 27  # looked at, whichever is reached first
_IDS = ("id", "source_id", "sample_id", "row_id", "uid", "uuid", "key", "index", "name", "file", "filename")
_SPLITS = ("split", "fold", "subset", "partition", "set")
_GROUPS = (
    "group", "subject", "patient", "person", "participant", "user", "owner", "customer", "speaker", "artist", "author",
    "session", "site", "family", "device", "recording",
)  # fmt: skip
_LONGEST = 512


@dataclass
class Guess:
    """What the columns are taken for. `modalities`: {name: what stands in data.yaml}; `why`: (columns, taken as, reason)."""

    looked: int
    more: bool  # rows were left unlooked at
    target: str
    predicts: str  # classes, labels or a range, in words
    task: dict[str, Any] | None = None  # None: classification
    task_labels: list[str] | None = None
    sample_key: str | None = None
    split: str | None = None
    group: str | None = None
    modalities: dict[str, dict[str, Any]] = field(default_factory=dict)
    shown: dict[str, str] = field(default_factory=dict)  # {modality: what was seen}
    why: list[tuple[str, str, str]] = field(default_factory=list)


def guess(source: Path, target: str | None = None) -> Guess:
    """Look at the first rows of a table and guess. `target`: the column to predict, if the person named it.

    Raises `EquipoiseError` where there is no table, no row, or nothing that could be predicted or predicted from.
    """
    looks, looked, more = look(source)
    if not looked:
        raise EquipoiseError(f"{source} holds no rows.")
    left = dict(looks)
    others = {c.name for c in left.values() if _is_group(c) or c.name.lower() in _SPLITS}
    chosen = guess_target(left, target, source, others)
    out = Guess(looked, more, chosen.column, chosen.predicts, chosen.task, chosen.task_labels)
    out.why.append((chosen.column, "target", f"{chosen.reason}; {chosen.predicts}"))
    del left[chosen.column]
    _roles(out, left)
    _modalities(out, left)
    if not out.modalities:
        raise EquipoiseError(
            f"{source} has no column that could be a modality, beside the target {chosen.column!r}: look at it."
        )
    return out


def look(source: Path) -> tuple[dict[str, ColumnLook], int, bool]:
    """Every column of the first rows, how many these are, and whether there are more."""
    table = open_table(source)
    names = [name for name in table.columns if name]
    looks = {name: ColumnLook(name, table.cells.folder, table.cells.text) for name in names}
    rows = table.rows(names)
    looked = size = 0
    for row in islice(rows, ROWS):
        for name, cell in row.items():
            looks[name].add(cell)
            size += len(cell) if isinstance(cell, bytes) else 0
        looked += 1
        if size > BYTES or looked * len(names) > CELLS:
            break
    return looks, looked, next(rows, None) is not None


def _roles(out: Guess, left: dict[str, ColumnLook]) -> None:
    """Take split, id and group out of `left`."""
    for c in list(left.values()):
        if c.name.lower() in _SPLITS:
            if c.values and set(c.values) <= set(SPLITS):
                out.split = c.name
                out.why.append((c.name, "split", f"holds {few(sorted(c.values))}"))
            elif c.distinct <= 10:
                out.why.append((c.name, "ignored", f"a split, by its name, but it holds {few(sorted(map(str, c.values)))}: "
                                "rename its values to train, validation, test to use it"))  # fmt: skip
            else:
                continue
            del left[c.name]
    ids = [c for c in left.values() if c.unique and not c.missing and c.present > 1 and _one_word(c)]
    files = [c for c in left.values() if c.unique and not c.missing and c.kind in ("image", "audio") and not c.encoded]
    named = [c for c in ids if c.name.lower() in _IDS or c.name.lower().endswith("id")]
    named.sort(key=lambda c: _IDS.index(c.name.lower()) if c.name.lower() in _IDS else len(_IDS))
    first = [c for c in ids if c.name == next(iter(left), "") or c.kind == "text"]
    chosen = next(iter([*named, *first, *files]), None)
    if chosen is None:
        out.why.append(("-", "id", "no column has a value of its own in every row: rows are numbered"))
    else:
        out.sample_key = chosen.name
        out.why.append((chosen.name, "id", "a value of its own in every row"))
        if chosen not in files:
            del left[chosen.name]
    groups = [c for c in left.values() if _is_group(c)]
    if groups and out.split:
        out.why.append(
            (groups[0].name, "ignored", f"a group, by its name, but the column {out.split!r} fixes the split")
        )
        del left[groups[0].name]
    elif groups:
        out.group = groups[0].name
        out.why.append((out.group, "group", "its name, and rows that share a value: they stay in one split"))
        del left[out.group]


def _is_group(c: ColumnLook) -> bool:
    name = re.sub(r"[ _-]?id$", "", c.name.lower())
    return name in _GROUPS and not c.unique and _one_word(c) and c.distinct > 2


def _one_word(c: ColumnLook) -> bool:
    return (c.kind == "number" and c.integers) or (c.kind == "text" and max(c.words, default=0) <= 2)


def _modalities(out: Guess, left: dict[str, ColumnLook]) -> None:
    numbers: list[ColumnLook] = []
    for c in left.values():
        reason = _useless(c)
        if reason:
            out.why.append((c.name, "ignored", reason))
        elif c.kind == "number":
            numbers.append(c)
        else:
            given, seen = _given(c)
            if given is None:
                out.why.append((c.name, "ignored", seen))
            else:
                _add(out, c.name, {"column": c.name, **given}, seen, [c])
    for name, some in _groups(numbers):
        given = {"columns": _pattern([c.name for c in some], left), "transform": "standardize"}
        _add(out, name, given, "one column of numbers" if len(some) == 1 else f"{len(some)} columns of numbers", some)


def _useless(c: ColumnLook) -> str:
    if c.kind == "empty":
        return "empty"
    if c.kind == "files":
        return "names of files that are not read: make them PNG, JPEG, OGG, WAV or FLAC"
    if c.kind in ("bytes", "mixed"):
        return (
            "cells of no kind that we know" if c.kind == "bytes" else f"cells of several kinds ({', '.join(c.kinds)})"
        )
    if c.distinct == 1 and c.present > 1 and not c.missing:
        return "the same value in every row"
    if c.unique and c.present > 1 and (c.kind == "text" or c.name.lower() in _IDS) and _one_word(c):
        return "a word of its own in every row: a second id, most likely"
    return ""


def _given(c: ColumnLook) -> tuple[dict[str, Any] | None, str]:
    """What stands in data.yaml for a column, and what was seen."""
    if c.kind == "text":
        words = sorted(c.words.elements())
        longest = max(1, min(words[ceil(0.95 * len(words)) - 1], _LONGEST))
        same = words[0] == words[-1]
        seen = f"texts of {words[0]} words" if same else f"{words[0]} to {words[-1]} words; 95 % have up to {longest}"
        return {"kind": "text", "max_length": longest}, seen
    if c.kind == "audio":
        if not c.seconds:
            return None, "names of sounds, but none of the first could be opened"
        frames = max(1, min(ceil(100 * max(c.seconds)), _LONGEST))
        what = {"kind": "audio", "shape": [40], "max_length": frames, "transform": "standardize"}
        return what, f"sounds of up to {max(c.seconds):.1f} s; a frame every 10 ms"
    if not c.shapes:
        return None, "names of pictures, but none of the first could be opened"
    shape = c.shapes.most_common(1)[0][0]
    if c.kind == "image":
        sizes = {s[1:] for s in c.shapes}
        # A grey picture among coloured ones is read as a coloured one.
        shape = (max(s[0] for s in c.shapes), *shape[1:])
        seen = f"{shape[2]} x {shape[1]} pixels"
        if len(sizes) > 1:
            seen += f", but other sizes too ({len(sizes)} in the first {c.shapes.total()}): make them all alike before"
        return {"kind": "image", "shape": list(shape)}, seen
    tails = {s[1:] for s in c.shapes}
    if len(c.shapes) == 1:
        return {"kind": "array", "shape": list(shape), "transform": "standardize"}, f"lists of shape {shape}"
    if len(tails) > 1:
        return None, f"lists of different shapes ({few([str(s) for s in c.shapes])})"
    lengths = [s[0] for s in c.shapes]
    what = {
        "kind": "sequence",
        "shape": list(shape[1:]),
        "max_length": min(max(lengths), _LONGEST),
        "transform": "standardize",
    }
    return what, f"lists of {min(lengths)} to {max(lengths)} steps"


def _groups(numbers: Sequence[ColumnLook]) -> list[tuple[str, list[ColumnLook]]]:
    """Columns of numbers that belong together by their names: px1, px2, ...; acc_x, acc_y; the rest in one."""
    out: dict[str, list[ColumnLook]] = {}
    for c in numbers:
        counted = re.fullmatch(r"(.*?)(?:[ _.\-]?\d+)+", c.name)
        out.setdefault(f"{counted[1]}#" if counted and counted[1] else "", []).append(c)
    alone = out.pop("", [])
    for key in [key for key, some in out.items() if len(some) < 3]:
        alone += out.pop(key)
    for c in alone:
        head = re.split(r"[ _.\-]", c.name)[0]
        out.setdefault(head, []).append(c)
    alone = [c for key in [k for k, some in out.items() if len(some) < 2] for c in out.pop(key)]
    named = [(key.rstrip("#"), some) for key, some in out.items()]
    named += [("numbers" if len(alone) > 1 else alone[0].name, alone)] if alone else []
    return [whole for name, some in named for whole in _by_gaps(name, some)]


def _by_gaps(name: str, some: list[ColumnLook]) -> Iterable[tuple[str, list[ColumnLook]]]:
    """Columns that lack their values in the same rows: of a group, either all or none must be there."""
    parts: dict[int, list[ColumnLook]] = {}
    for c in some:
        parts.setdefault(c.gaps, []).append(c)
    largest = max(parts.values(), key=len)
    return [(name if part is largest else part[0].name, part) for part in parts.values()]


def _pattern(columns: list[str], others: Iterable[str]) -> list[str]:
    """The names, or one pattern where they are many and it matches no other column."""
    differing = (at for at, letters in enumerate(zip(*columns)) if len(set(letters)) > 1)
    head = columns[0][: next(differing, min(map(len, columns)))]
    plain = head and not set("*?[]") & set(head)
    if len(columns) > 8 and plain and [c for c in others if c.startswith(head)] == columns:
        return [f"{head}*"]
    return columns


def _add(out: Guess, column: str, given: dict[str, Any], seen: str, looks: Sequence[ColumnLook]) -> None:
    name = re.sub(r"\W+", "_", column).strip("_") or "column"
    name = name if name.isidentifier() else f"m_{name}"
    while not _free(name, out.modalities):
        name += "_"
    rows, has = looks[0].rows, max(c.present for c in looks)
    out.modalities[name] = given
    out.shown[name] = seen + ("" if has == rows else f"; {rows - has} of {rows} rows lack it")
    columns = ", ".join(c.name for c in looks[:3]) + (f", ... ({len(looks)})" if len(looks) > 3 else "")
    out.why.append((columns, f"modality {name}", out.shown[name]))


def _free(name: str, taken: Iterable[str]) -> bool:
    from equipoise.models.presence import check_names

    try:
        check_names([name])
        check_modalities((Modality(name=name, shape=(1,)),))
    except EquipoiseError:
        return False
    return name not in taken and f"{name}_length" not in taken and not name.endswith("_length")
