"""Attempts at one run, each a process that is killed somewhere around a checkpoint and its log, but for the last.

    python tests/tracker_attempts.py RUN TRACKER

What an attempt does is what rank 0 does, without the training: it cuts the rows that the newest checkpoint lacks, starts the
tracker, and at each checkpoint writes rows, commits and logs.
"""

import os
import signal
import sys
from pathlib import Path

from equipoise.pipelines.checkpoint import Position
from equipoise.pipelines.config import Config
from equipoise.pipelines.history import History
from equipoise.pipelines.run import Run
from equipoise.pipelines.trackers import Point, Tracker, check_tracker, tracker_for

EPOCHS, STEPS = 4, 6
#: (steps made at the checkpoint, where in it the kill comes). A checkpoint comes every three steps.
KILLS = [(3, "rows"), (6, "committed"), (12, "half"), (15, "logged"), (18, "half"), (24, "committed")]


def step_row(step: int) -> dict:
    odd = [None, float("nan"), float("inf"), 1e-300][step % 4]
    row = {
        "step": step,
        "epoch": step // STEPS,
        "loss": 1 / (step + 1),
        "odd/one": odd,
        "monitor/norm/a+b": 2.0,
        "note": "x",
        "flag": step > 9,
    }
    return row if step > 4 else {**row, "only/first": None}


def epoch_row(epoch: int) -> dict:
    row = {"epoch": epoch, "step": STEPS * (epoch + 1), "validation/accuracy": 0.1 * epoch, "note": "x"}
    return row | ({"contribution/left": 0.3 + epoch} if epoch % 2 else {"contribution/left": None})


def attempt(run: Run, kill: tuple[int, str] | None) -> None:
    def dies(steps: int, where: str) -> bool:
        return kill == (steps, where)

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    at = max((position.step for position in run.checkpoints.positions()), default=0)
    steps = History(run.path / "steps.parquet", lambda row: row["step"] < at)
    metrics = History(run.path / "metrics.parquet", lambda row: row["step"] <= at)
    tracker = tracker_for(run)
    tracker.start(steps.rows, metrics.rows)
    for step in range(at, EPOCHS * STEPS):
        steps.append(step_row(step))
        made = step + 1
        if made % STEPS == 0:
            # The mean contribution of the epoch before comes late, as with a sweep that lags.
            for row in metrics.rows[-1:]:
                row["late"] = 7.0
            metrics.append(epoch_row(step // STEPS))
            metrics.write()
        if made % 3 == 0:
            steps.write()
            if dies(made, "rows"):
                die()
            run.checkpoints.commit(run.checkpoints.draft(Position(0, made), {}), Position(0, made), {})
            if dies(made, "committed"):
                die()
            if dies(made, "half"):
                half(tracker, die)
            tracker.log(steps.rows, metrics.rows)
            if dies(made, "logged"):
                die()
    tracker.close()


def half(tracker: Tracker, die) -> None:
    """Let the tracker's next write end in the middle of a row."""
    write = tracker.write

    def cut(points) -> None:
        middle = len(points) // 2
        some = dict(list(points[middle].values.items())[:2])
        write([*points[:middle], Point(points[middle].step, some)])
        die()

    tracker.write = cut  # type: ignore[method-assign]


def main(folder: Path, tracker: str) -> None:
    config = Config(data="nowhere", out=str(folder), max_steps=EPOCHS * STEPS, tracker=tracker)
    folder.mkdir()
    check_tracker(tracker)  # imports what it needs, once for all attempts
    for kill in [*KILLS, None]:
        child = os.fork()
        if child == 0:
            # A new process, as Ray Train would start; only what was imported is shared.
            attempt(Run(folder, config), kill)
            sys.exit(0)
        _, status = os.waitpid(child, 0)
        killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        assert killed if kill else status == 0, f"attempt {kill} ended with status {status}"


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
