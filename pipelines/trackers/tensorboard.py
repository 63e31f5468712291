"""TensorBoard: event files in the run folder."""

from __future__ import annotations

import struct
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from equipoise.pipelines.trackers.tracker import Point, Tracker

if TYPE_CHECKING:
    from equipoise.pipelines.run import Run


class TensorBoard(Tracker):
    """One event, so one record, a row: a record that a kill cut short is no row, for us as for TensorBoard. Each attempt
    writes a file of its own into `<run>/tensorboard`. Numbers are float32 there, as in all scalars of TensorBoard.
    """

    install = "pip install tensorboardX"

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        self.folder = run.path / "tensorboard"
        self._writer: Any = None

    @classmethod
    def needs(cls) -> tuple[str, ...]:
        return ("tensorboardX",)

    def held(self) -> dict[str, set[int]]:
        from tensorboardX.proto.event_pb2 import Event

        if self._writer is not None:
            # After an error: what is still in its buffer must not come later, beside the same rows in another file.
            with suppress(OSError):
                self._writer.close()
            self._writer = None
        found: dict[str, set[int]] = {}
        for path in self.folder.glob("events.out.tfevents.*"):
            for record in _records(path):
                event = Event.FromString(record)
                for value in event.summary.value:
                    found.setdefault(value.tag, set()).add(event.step)
        return found

    def write(self, points: Sequence[Point]) -> None:
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.proto.summary_pb2 import Summary

        if self._writer is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            # Seconds alone would give two attempts one file; TensorBoard reads files in the order of their names.
            self._writer = EventsWriter(str(self.folder / "events"), f".{time.time_ns()}")
        for step, values in points:
            scalars = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
            self._writer.write_event(Event(wall_time=time.time(), step=step, summary=Summary(value=scalars)))
        self._writer.flush()

    def finish(self) -> None:
        if self._writer is not None:
            self._writer.close()


def _records(path: Path) -> Iterator[bytes]:
    """The whole records of an event file: length, its checksum, data, the data's checksum."""
    data = path.read_bytes()
    at = 0
    while at + 12 <= len(data):
        (length,) = struct.unpack_from("<Q", data, at)
        at += 12 + length + 4
        if at > len(data):
            return
        yield data[at - 4 - length : at - 4]


TRACKER = TensorBoard
