"""Stopping a run on purpose: Ctrl-C (or SIGTERM) asks the workers for a checkpoint; and one `fit` at a time on a folder."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from filelock import FileLock, Timeout

from equipoise.models.errors import EquipoiseError
from equipoise.pipelines.files import read_json
from equipoise.pipelines.run import Run


@contextmanager
def alone(folder: Path, command: str = "fit", what: str = "run folder") -> Iterator[None]:
    """Keep a folder to this process until the block ends; the system gives it back however the process ends.

    Raises:
        EquipoiseError: another process is at work on it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock", timeout=0)
        lock.acquire()
    except OSError as error:
        if isinstance(error, Timeout):
            raise EquipoiseError(
                f"Another `equipoise {command}` is at work in {folder}: wait for it, stop it, or choose another out=..."
            ) from None
        raise EquipoiseError(f"Cannot write the {what} {folder}: {error.strerror}. Choose another out=...") from None
    try:
        yield
    finally:
        lock.release()


def interruptible(run: Run, train: Callable[[], Any], ours: bool) -> None:
    """Call `train` so that the first Ctrl-C lets the workers stop with a checkpoint, and the second stops at once.

    `ours`: Ray was started for this run, and may be ended with it.

    Raises:
        KeyboardInterrupt: training was stopped; its text says where, and that the same command goes on from there.
        Exception: what `train` raised.
    """
    import ray

    run.stop.unlink(missing_ok=True)
    (run.path / "stopped.json").unlink(missing_ok=True)
    if threading.current_thread() is not threading.main_thread():
        # Only the main thread hears signals; whoever called from another one has their own way to stop.
        train()
        return
    raised: list[BaseException] = []

    def call() -> None:
        try:
            train()
        except BaseException as error:
            raised.append(error)

    def ask(number: int, frame: FrameType | None) -> None:
        if run.stop.exists():
            raise KeyboardInterrupt(_where(run, "at once"))
        run.stop.touch()
        print("\nStopping after the next steps, with a checkpoint. Once more stops at once.", file=sys.stderr)

    # Not in this thread: there Ray would install its own handler, which aborts without a checkpoint.
    thread = threading.Thread(target=call, name="training", daemon=True)
    former = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        thread.start()
        while thread.is_alive():
            thread.join(0.2)
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
        run.stop.unlink(missing_ok=True)
        if thread.is_alive() and ours:
            # Stopped at once: training ends with the Ray that was started for it.
            ray.shutdown()
    if raised:
        raise raised[0]
    if (run.path / "stopped.json").exists():
        raise KeyboardInterrupt(_where(run, "as asked"))


def _where(run: Run, how: str) -> str:
    positions = run.checkpoints.positions()
    if not positions:
        return f"Stopped {how}, before the first checkpoint: the same command begins again."
    found = read_json(run.path / "stopped.json")
    where = f"before step {found['step']} of epoch {found['epoch']}" if found else how
    return f"Stopped {where}. The newest checkpoint is {positions[-1]}; the same command goes on from there."
