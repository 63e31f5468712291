"""Checkpoints: a folder each, whole or not there, named by where training goes on."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from equipoise.models.errors import EquipoiseError
from equipoise.pipelines.files import read_json, write_json

_NAME = re.compile(r"epoch-(\d+)-step-(\d+)$")


@dataclass(frozen=True, order=True)
class Position:
    """Where training goes on: the epoch, and the step in that epoch."""

    epoch: int
    step: int

    def __str__(self) -> str:
        return f"epoch-{self.epoch:04d}-step-{self.step:06d}"


class Checkpoints:
    """The checkpoints of a run: `<position>/model.pt` (weights), `<position>/state.pt` (everything else), `best.json`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def positions(self) -> list[Position]:
        """The whole checkpoints, oldest first."""
        found = [_NAME.match(p.name) for p in self.folder.glob("epoch-*") if p.is_dir()]
        return sorted(Position(int(m[1]), int(m[2])) for m in found if m)

    def draft(self, position: Position, model: Mapping[str, Any]) -> Path:
        """A checkpoint in the making, with its weights: a folder that no resume looks at.

        Raises:
            EquipoiseError: the disk is full or refuses; so does `commit`.
        """
        draft = self.folder / f".draft-{position}"
        shutil.rmtree(draft, ignore_errors=True)
        with self._room(position, draft):
            draft.mkdir(parents=True)
            torch.save(dict(model), draft / "model.pt")
        return draft

    def commit(self, draft: Path, position: Position, state: Mapping[str, Any]) -> Path:
        """Add the state, and make the draft a checkpoint in one rename."""
        final = self.folder / str(position)
        with self._room(position, draft):
            torch.save(dict(state), draft / "state.pt")
            shutil.rmtree(final, ignore_errors=True)
            os.replace(draft, final)
        return final

    @contextmanager
    def _room(self, position: Position, draft: Path) -> Iterator[None]:
        """Say what a failed write means. torch reports a full disk as a RuntimeError about positions in a file."""
        try:
            yield
        except (OSError, RuntimeError) as error:
            shutil.rmtree(draft, ignore_errors=True)
            free = shutil.disk_usage(self.folder.parent).free >> 20
            before = self.positions()
            kept = f"The one before it, {before[-1]}, is whole" if before else "There is none before it"
            raise EquipoiseError(
                f"The checkpoint {position} could not be written to {self.folder}, where {free} MiB are free ({error}). {kept}: "
                "make room, and the same command goes on."
            ) from error

    def load(self, position: Position) -> tuple[dict[str, Any], dict[str, Any]]:
        """(weights, state) on the CPU."""
        folder = self.folder / str(position)
        return (
            torch.load(folder / "model.pt", map_location="cpu", weights_only=True),
            torch.load(folder / "state.pt", map_location="cpu", weights_only=True),
        )

    @property
    def best(self) -> dict[str, Any] | None:
        """{"epoch", "checkpoint", "metric", "value", "loss", "model_hash"} of the best epoch so far, None before any."""
        return read_json(self.folder / "best.json")

    def set_best(self, best: Mapping[str, Any] | None) -> None:
        """Point at the best checkpoint, or (None) at none."""
        if best is None:
            (self.folder / "best.json").unlink(missing_ok=True)
        else:
            write_json(self.folder / "best.json", dict(best))

    def retain(self, keep: int, needed: Position | None = None) -> None:
        """Delete all but the newest `keep`, the best, and the one that is still `needed`."""
        best = self.best
        for position in self.positions()[:-keep]:
            if position != needed and (best is None or best["checkpoint"] != str(position)):
                shutil.rmtree(self.folder / str(position))
