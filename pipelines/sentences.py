"""Carrying a sentence meant for the user out of a worker, past Ray's layers of tracebacks."""

import errno
import json
import os
from pathlib import Path

from equipoise.models.errors import EquipoiseError


def sentence_of(error: BaseException | None) -> EquipoiseError | None:
    """The `EquipoiseError` at the root of an exception, if there is one; a full disk gets its own."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, EquipoiseError):
            # Ray's copies are of a class that also derives from RayTaskError and prints the remote traceback.
            remote = hasattr(error, "traceback_str")
            return EquipoiseError(_last_line(error)) if remote else EquipoiseError(*error.args)
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return EquipoiseError(
                f"The disk of the run is full ({error}). Its newest checkpoint is whole: make room, and the same command goes on."
            )
        error = _within(error)
    return None


def _within(error: BaseException) -> BaseException | None:
    """The exception that another one carries: Ray Train keeps those of its workers and its controller as attributes."""
    workers = getattr(error, "worker_failures", None) or {}
    carried = [getattr(error, "cause", None), getattr(error, "controller_failure", None), *workers.values()]
    found = [one for one in [*carried, error.__cause__, error.__context__] if isinstance(one, BaseException)]
    return found[0] if found else None


def _last_line(error: BaseException) -> str:
    cause = getattr(error, "cause", None)
    return str(cause) if isinstance(cause, EquipoiseError) else str(error).strip().splitlines()[-1].partition(": ")[2]


def write_sentence(run: Path, error: BaseException) -> None:
    """Leave the sentence for the driver in the run folder, where the error has one. The first worker's stays."""
    sentence = sentence_of(error)
    if sentence is not None:
        part = run / f".error.{os.getpid()}"
        try:
            part.write_text(json.dumps(str(sentence)))
            os.link(part, run / "error.json")
        except OSError:
            pass  # another worker's is there, or no room even for this: the driver then finds it in the exception
        finally:
            part.unlink(missing_ok=True)


def refused(run: Path) -> str | None:
    """The sentence that a worker left, if one did."""
    path = run / "error.json"
    return json.loads(path.read_text()) if path.exists() else None
