"""A look at the columns of a person's table: what kind of thing their cells hold, and how much they differ."""

import json
import math
from collections import Counter
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from equipoise.datasets.cells import MISSING
from equipoise.datasets.targets import SEPARATOR

DISTINCT = 1000  # values that are told apart
_FILES = 20  # pictures or sounds that are opened
_SUFFIXES = {
    ".png": "image", ".jpg": "image", ".jpeg": "image",
    ".wav": "audio", ".ogg": "audio", ".oga": "audio", ".opus": "audio", ".flac": "audio",
}  # fmt: skip
_UNREAD = (".mp3", ".m4a", ".aac", ".gif", ".bmp", ".webp", ".tif", ".tiff", ".svg", ".mp4", ".avi", ".npy")
_MAGIC = {b"\x89PNG": "image", b"\xff\xd8\xff": "image", b"OggS": "audio", b"RIFF": "audio", b"fLaC": "audio"}


class ColumnLook:
    """What the cells of one column are, of the rows looked at.

    `kind`: number, text, image, audio, list, files (of a kind that is not read), bytes (of no kind we know), mixed or empty.
    `integers`: all numbers are whole, and in Parquet of a whole type.
    `unique`: no two cells are the same. `values`: up to `DISTINCT` of them. `words`: words a text. `shapes`: of lists; of
    images (channels, height, width). `seconds`: of sounds. `gaps`: equal where the same rows are missing. `low`, `high`: of
    finite numbers. `names`: how often each of the names is there that `;` joins in texts; `joined`: texts with a `;`.
    """

    def __init__(self, name: str, folder: Path | None, text: bool) -> None:
        self.name, self.folder, self.text = name, folder, text
        self.rows = self.missing = self.gaps = self.joined = 0
        self.low, self.high = math.inf, -math.inf
        self.names: Counter[str] = Counter()
        self.kinds: Counter[str] = Counter()
        self.integers = self.unique = True
        self.values: Counter[Any] = Counter()
        self.words: Counter[int] = Counter()
        self.shapes: Counter[tuple[int, ...]] = Counter()
        self.seconds: list[float] = []
        self.encoded = False  # cells hold files rather than their names
        self.unread = 0  # files that could not be opened
        self._seen: set[int] = set()

    def add(self, cell: Any) -> None:
        self.rows += 1
        if isinstance(cell, float) and math.isnan(cell):
            cell = None
        if isinstance(cell, str) and (not cell.strip() or (self.text and cell.strip().lower() in MISSING)):
            cell = None
        if cell is None:
            self.missing += 1
            self.gaps = hash((self.gaps, self.rows))
            return
        kind, key = self._kind(cell)
        self.kinds[kind] += 1
        if self.unique:
            self.unique = hash(key) not in self._seen
            self._seen.add(hash(key))
        else:
            self._seen.clear()  # most columns repeat soon: few are remembered whole
        if key in self.values or len(self.values) <= DISTINCT:
            self.values[key] += 1

    @property
    def kind(self) -> str:
        if not self.kinds:
            return "empty"
        if len(self.kinds) == 1:
            return next(iter(self.kinds))
        # Words among numbers are words, in a csv; so are names of files among words.
        return "mixed" if {"bytes", "list"} & set(self.kinds) or self.encoded else "text"

    @property
    def present(self) -> int:
        return self.rows - self.missing

    @property
    def distinct(self) -> int:
        return len(self.values)

    def _kind(self, cell: Any) -> tuple[str, Any]:
        if isinstance(cell, dict) and cell.keys() <= {"bytes", "path"}:
            cell = cell.get("bytes") or cell.get("path")
        if isinstance(cell, bytes):
            self.encoded = True
            kind = next((kind for magic, kind in _MAGIC.items() if cell.startswith(magic)), "bytes")
            self._open(kind, cell)
            return kind, cell[:64] + cell[-64:]
        if isinstance(cell, str):
            return self._kind_of_text(cell)
        if isinstance(cell, list | tuple | np.ndarray):
            return self._list(cell)
        if isinstance(cell, bool | int | float | np.number):
            self.integers &= isinstance(cell, int | np.integer) and not isinstance(cell, bool)
            if not isinstance(cell, bool):
                self._extend(float(cell))
            return "number", cell
        return "bytes", repr(cell)

    def _kind_of_text(self, cell: str) -> tuple[str, Any]:
        self.words[len(cell.split())] += 1
        if self.text:
            try:
                number = float(cell.replace("_", "?"))
                self.integers &= number.is_integer()
                self._extend(number)
                return "number", cell
            except (ValueError, OverflowError):
                pass
            if cell.startswith("["):
                try:
                    return self._list(json.loads(cell))
                except (ValueError, RecursionError):
                    pass
        if len(cell) < 300:
            for name in filter(None, map(str.strip, cell.split(SEPARATOR))):
                if name in self.names or len(self.names) <= DISTINCT:
                    self.names[name] += 1
            self.joined += SEPARATOR in cell
        kind, suffix = "text", Path(cell).suffix.lower() if self.folder is not None and len(cell) < 300 else ""
        if suffix in _UNREAD:
            return "files", cell
        if suffix in _SUFFIXES and self.folder is not None:
            kind = _SUFFIXES[suffix]
            self._open(kind, self.folder / cell)
        return kind, cell

    def _extend(self, number: float) -> None:
        if math.isfinite(number):
            self.low, self.high = min(self.low, number), max(self.high, number)

    def _list(self, cell: Any) -> tuple[str, Any]:
        try:
            found = np.asarray(cell)
        except ValueError:  # lists of different lengths
            return "bytes", repr(cell)[:100]
        if found.dtype.kind not in "biuf" or not found.size:
            return "bytes", repr(cell)[:100]
        self.shapes[found.shape] += 1
        return "list", found.tobytes()[:64]

    def _open(self, kind: str, where: bytes | Path) -> None:
        """The size of a picture or the length of a sound, of the first few."""
        if kind not in ("image", "audio") or sum(self.shapes.values()) + len(self.seconds) + self.unread >= _FILES:
            return
        try:
            if isinstance(where, Path) and not where.is_file():
                raise FileNotFoundError(where)
            file = BytesIO(where) if isinstance(where, bytes) else where
            if kind == "image":
                from PIL import Image

                with Image.open(file, formats=("PNG", "JPEG")) as image:
                    channels = 1 if image.mode in ("1", "L") else 3
                    self.shapes[(channels, image.height, image.width)] += 1
            else:
                import soundfile

                self.seconds.append(float(soundfile.info(file).duration))
        except Exception:  # each library has its own kinds; `prepare` says what is wrong with which
            self.unread += 1
