"""What a run is doing right now: a small file that rank 0 writes, and the display that reads it."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

from equipoise.pipelines.files import read_json, write_json


class ProgressFile:
    """Writes progress.json at most four times a second; a phase's first and last line always get through."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._last = 0.0

    def write(self, phase: str, done: int, total: int, **more: Any) -> None:
        """Say that `done` of `total` rows of a phase ("train", "validation", "sweep") are done."""
        now = time.monotonic()
        if now - self._last > 0.25 or done in (0, total):
            self._last = now
            write_json(self.path, {"phase": phase, "done": done, "total": total, **more})


class ProgressDisplay:
    """Shows a run's progress file on the terminal until closed; prints nothing where there is no terminal."""

    def __init__(self, path: Path, console: Console) -> None:
        self._path = path
        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> ProgressDisplay:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._thread.join()

    def _follow(self) -> None:
        with self._bar:
            task = self._bar.add_task("starting Ray and the workers", total=None, note="")
            shown = ""
            while not self._stop.wait(0.2):
                now = read_json(self._path)
                if not now:
                    continue
                title = f"epoch {now['epoch']}  {now['phase']}"
                if title != shown:
                    self._bar.remove_task(task)
                    task, shown = self._bar.add_task(title, total=now["total"], note=""), title
                self._bar.update(task, completed=now["done"], total=now["total"], note=now.get("note", ""))
