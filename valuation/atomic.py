"""A file that is there is whole: written beside its place, then put there in one move."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields a temporary path in the same folder; what was written there takes the place of `path` when the block ends.

    A process that dies in between leaves `path` as it was, and at most a hidden `.name.*.tmp` beside it. The temporary
    name is unique: two processes may write the same file, and the last one wins whole.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{uuid4().hex}.tmp")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
