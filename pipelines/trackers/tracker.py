"""What every tracker does: hand on the rows of a run that a checkpoint holds, each number once."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import import_module
from numbers import Real
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from equipoise.models.errors import EquipoiseError
from equipoise.pipelines.files import read_json, write_json

if TYPE_CHECKING:
    from equipoise.pipelines.run import Run

Row = Mapping[str, Any]


class Point(NamedTuple):
    """Numbers of one row, {"steps/loss": 0.3}, at `step`: that of a row of steps.parquet, and for a row of metrics.parquet
    the steps made until then.
    """

    step: int
    values: dict[str, float]


class Tracker:
    """Hands a run's rows to another program.

    Rows are handed on when a checkpoint holds them, never before, so none is ever taken back. Which numbers a tracker has is
    asked of itself, not of a note beside it that a kill could make wrong: whatever is missing, after a kill at any point, is
    handed on with the next checkpoint or the next start, and nothing twice. Only numbers are; null and text stay in Parquet.
    """

    #: What to install where a module that `needs` names is not there.
    install: ClassVar[str] = ""

    def __init__(self, run: Run) -> None:
        self.run = run
        self._there: dict[str, set[int]] | None = None
        self._steps = 0
        self._failure: Exception | None = None

    @classmethod
    def needs(cls) -> tuple[str, ...]:
        """Modules without which it cannot work."""
        return ()

    def held(self) -> dict[str, set[int]]:
        """{name: the steps at which the tracker has a number of it}; makes the connection."""
        raise NotImplementedError

    def write(self, points: Sequence[Point]) -> None:
        """Hand on points."""
        raise NotImplementedError

    def finish(self) -> None:
        """Nothing more comes."""

    def start(self, steps: Sequence[Row], metrics: Sequence[Row]) -> None:
        """Hand on what the attempt before did not come to; all rows that the newest checkpoint holds.

        Raises:
            EquipoiseError: the tracker cannot be reached.
        """
        self.log(steps, metrics)
        self._raise()

    def log(self, steps: Sequence[Row], metrics: Sequence[Row]) -> None:
        """Hand on those that the tracker lacks of all rows that the newest checkpoint holds.

        A tracker that fails does not stop the training: the rows are offered again at the next call.
        """
        try:
            if self._there is None:
                self._there, self._steps = self.held(), 0
            # Rows of metrics may get columns later (a sweep that lags); rows of steps never do.
            points = list(self._lacking(self._points(steps[self._steps :], metrics)))
            if points:
                self.write(points)
            for point in points:
                for name in point.values:
                    self._there.setdefault(name, set()).add(point.step)
            self._steps, self._failure = len(steps), None
        except Exception as error:
            self._there, self._failure = None, error

    def close(self) -> None:
        """The end of the training.

        Raises:
            EquipoiseError: rows are left that the tracker did not take.
        """
        self._raise()
        self.finish()

    def called(self, column: str) -> str:
        """What the tracker calls a column: itself, where any name will do there."""
        return column

    def _points(self, steps: Sequence[Row], metrics: Sequence[Row]) -> list[Point]:
        """In the order of training: the row of an epoch after that of its last step, whichever were committed together."""
        points = []
        for table, rows in (("metrics", metrics), ("steps", steps)):
            for row in rows:
                numbers = {self.called(f"{table}/{n}"): float(v) for n, v in row.items() if isinstance(v, Real)}
                points.append(Point(int(row["step"]), numbers))
        return sorted(points, key=lambda point: point.step)

    def _lacking(self, points: Iterable[Point]) -> Iterator[Point]:
        assert self._there is not None
        for step, values in points:
            if lacking := {name: v for name, v in values.items() if step not in self._there.get(name, ())}:
                yield Point(step, lacking)

    def _raise(self) -> None:
        if isinstance(self._failure, EquipoiseError):
            raise self._failure
        if self._failure is not None:
            said = " ".join(str(self._failure).split())[:300] or type(self._failure).__name__
            raise EquipoiseError(
                f"tracker={self.run.config.tracker} did not take the rows of {self.run.path}: {said.rstrip('.')}. No row is "
                "lost: mend this and run the same command again, which hands on what is missing."
            ) from self._failure


class NoTracker(Tracker):
    """tracker=none."""

    def held(self) -> dict[str, set[int]]:
        return {}

    def write(self, points: Sequence[Point]) -> None:
        pass


def tracker_for(run: Run) -> Tracker:
    """The tracker that a run's configuration names."""
    made: Tracker = _tracker_class(run.config.tracker)(run)
    return made


def check_tracker(name: str) -> None:
    """Raise an `EquipoiseError` that says what to install, where a tracker could not work here."""
    kind = _tracker_class(name)
    for module in kind.needs():
        try:
            import_module(module)
        except ImportError:
            raise EquipoiseError(
                f"tracker={name} needs the package {module!r}, which is not installed here: {kind.install}, or choose "
                "tracker=tensorboard or tracker=none."
            ) from None


def run_id(run: Run) -> str:
    """The name under which trackers know a run through all its attempts; made once, kept in tracker.json."""
    path = run.path / "tracker.json"
    kept = read_json(path)
    if kept is None:
        kept = {"id": uuid.uuid4().hex}
        write_json(path, kept)
    return str(kept["id"])


def _tracker_class(name: str) -> type[Tracker]:
    if name == "none":
        return NoTracker
    found: type[Tracker] = import_module(f"equipoise.pipelines.trackers.{name}").TRACKER
    return found
