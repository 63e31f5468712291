"""Writing a file whole or not at all."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A path beside `path` to write to; it takes the place of `path` when the block ends well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically."""
    with atomic(path) as part:
        part.write_text(json.dumps(value, indent=1))


def read_json(path: Path) -> Any:
    """JSON from a file, None where there is none."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return None
