"""Weights & Biases, online or (WANDB_MODE=offline) into files that `wandb sync` uploads."""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from equipoise.pipelines.config import flat
from equipoise.pipelines.trackers.tracker import Point, Tracker, run_id

if TYPE_CHECKING:
    from equipoise.pipelines.run import Run

_BLOCK = 32768


class WandB(Tracker):
    """One W&B run through all attempts, by the id in tracker.json, in the project WANDB_PROJECT or "equipoise".

    Online or not, W&B keeps what it was given in `<run>/wandb/*/run-<id>.wandb`, and these files say which rows it has. A
    history row a point, numbered in the order of training; charts go by the column `step`.
    """

    install = "pip install 'equipoise[wandb]'"

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        self._session: Any = None
        self._rows = 0

    @classmethod
    def needs(cls) -> tuple[str, ...]:
        return ("wandb",)

    def held(self) -> dict[str, set[int]]:
        if self._session is not None:
            self._session.finish()  # what is under way is in the file then
        self._session = None
        found: dict[str, set[int]] = {}
        self._rows = 0
        for path in self.run.path.glob(f"wandb/*run-*/run-{run_id(self.run)}.wandb"):
            if not any(_records(path.read_bytes())):
                shutil.rmtree(path.parent)  # killed before it wrote anything; `wandb sync` gives up on such a file
                continue
            for row in history(path):
                self._rows += 1
                for name in row:
                    found.setdefault(name, set()).add(int(row["step"]))
        self._connect()
        return found

    def write(self, points: Sequence[Point]) -> None:
        for step, values in points:
            self._session.log({"step": step, **values}, step=self._rows, commit=True)
            self._rows += 1

    def finish(self) -> None:
        self._session.finish()

    def _connect(self) -> None:
        import wandb

        self._session = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or "equipoise",
            id=run_id(self.run),
            name=self.run.path.name,
            dir=str(self.run.path),
            config=flat(self.run.config.model_dump(mode="json")),
            resume="allow",
            settings=wandb.Settings(silent=True, console="off"),
        )
        for table in ("steps", "metrics"):
            self._session.define_metric(f"{table}/*", step_metric="step")


def history(path: Path) -> Iterator[dict[str, Any]]:
    """The rows in a .wandb file: a log of LevelDB's format (7 bytes of header, then records cut at blocks of 32 KiB) of
    protocol buffers. What a kill cut short is left out.
    """
    from wandb.proto import wandb_internal_pb2

    messages: Any = wandb_internal_pb2  # whose classes are made when it is imported
    for data in _records(path.read_bytes()):
        record = messages.Record.FromString(data)
        if record.WhichOneof("record_type") == "history":
            items = record.history.item
            yield {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in items}


def _records(data: bytes) -> Iterator[bytes]:
    at, parts = 7, b""
    while at + 7 <= len(data):
        if _BLOCK - at % _BLOCK < 7:
            at += _BLOCK - at % _BLOCK
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        at += 7 + length
        if not 1 <= kind <= 4 or at > len(data):
            return
        # A record whole, or its first, a middle, or its last part.
        parts = data[at - length : at] if kind in (1, 2) else parts + data[at - length : at]
        if kind in (1, 4):
            yield parts


TRACKER = WandB
