"""A trained model with all that it takes to read rows as they come: modalities, fitted state, task. No Ray."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from equipoise.datasets.bad_rows import BadRowError
from equipoise.datasets.bad_value import BadValueError
from equipoise.datasets.cells import Cells, decoded
from equipoise.datasets.decoding import RowDecoder, Stored
from equipoise.datasets.targets import dtype_of
from equipoise.datasets.task_spec import TaskSpec
from equipoise.models import Batch, ModelConfig, MultimodalModel, Task, build_model, to_batch
from equipoise.models.errors import EquipoiseError
from equipoise.models.modality import Modality
from equipoise.pipelines.assembly import fills
from equipoise.pipelines.fingerprint import model_hash

if TYPE_CHECKING:
    from equipoise.pipelines.run import Run

WEIGHTS, CONFIG = "model.safetensors", "config.json"


class ExportConfig(BaseModel):
    """What stands in the config.json of an exported folder, beside `versions` and `run` for whoever reads it."""

    model_config = ConfigDict(extra="forbid")

    format_version: Literal[1] = 1
    model: ModelConfig
    unimodal: str
    task: TaskSpec
    modalities: tuple[Modality, ...]
    fitted: dict[str, dict[str, list[float] | str]]
    sample_key: str | None
    data: dict[str, Any]
    run: dict[str, Any]
    versions: dict[str, str]
    model_hash: str

    def build_task(self) -> Task:
        return self.task.build(self.fitted.get("target"))


@dataclass(frozen=True)
class TrainedModel:
    """The best model of a run, from its folder or from an exported one.

    >>> trained = equipoise.load_exported("exported")                            # doctest: +SKIP
    >>> trained.predict([{"image": png_bytes, "text": "a red square"}])          # doctest: +SKIP

    `model` is on the CPU, in eval mode. `config` says what it was made of.
    """

    model: MultimodalModel
    config: ExportConfig

    @property
    def modalities(self) -> tuple[Modality, ...]:
        return self.config.modalities

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the classes, labels, numbers or regions, in the order of the logits."""
        return self.config.task.labels

    @cached_property
    def task(self) -> Task:
        """What reads the logits: `task.predict(logits)` gives classes, labels, numbers in the target's units, or masks."""
        return self.config.build_task()

    def stored(self, row: Mapping[str, Any], number: int = 0, cells: Cells | None = None) -> tuple[str, Stored]:
        """A raw row's id and its checked values. Raises `BadRowError`."""
        key = self.config.sample_key
        found = row.get(key) if key else None
        source_id = f"row-{number}" if found is None else str(found)
        where, place = f"Row {number} ({source_id!r})", f"the column {key!r} "
        values: list[bytes | str | None] = []
        try:
            decoded(source_id)
            for m in self.modalities:
                place = f"modality {m.name!r} "
                values.append((cells or Cells()).stored(m, row))
        except BadValueError as error:
            raise BadRowError(where, f"{place}{error}", source_id) from error
        if all(value is None for value in values):
            raise BadRowError(where, "no modality is present: drop the row, or give at least one value", source_id)
        return source_id, tuple(values)

    def batch(self, stored: Sequence[Stored]) -> Batch:
        """Checked values as a batch; its `target` has the task's shape and means nothing. Raises `EquipoiseError`."""
        columns = RowDecoder(self.modalities, self.config.fitted)(stored)
        rows, task = len(stored), self.config.task
        columns |= {
            "sample_id": np.arange(rows),
            "copy": np.zeros(rows, np.int16),
            "target": np.zeros((rows, *task.row_shape), dtype_of(task)),
        }
        return to_batch(columns, self.model.modalities)

    def encode(self, rows: Sequence[Mapping[str, Any]], folder: str | Path | None = None) -> Batch:
        """Raw rows {column: value} as a batch. A modality may be missing or None; an image or audio is bytes or, with
        `folder`, the name of a file there. Raises `EquipoiseError`.
        """
        cells = Cells(None if folder is None else Path(folder))
        try:
            return self.batch([self.stored(row, number, cells)[1] for number, row in enumerate(rows)])
        except BadRowError as bad:
            raise EquipoiseError(f"{bad}.") from bad

    @torch.no_grad()
    def logits(self, batch: Batch) -> Tensor:
        """float32 [B, len(labels)], of a segmentation [B, regions, *shape]."""
        found: Tensor = self.model(batch["inputs"], batch["present"]).logits
        return found

    def predict(self, rows: Sequence[Mapping[str, Any]], folder: str | Path | None = None) -> list[dict[str, Any]]:
        """What is predicted of each raw row, see `encode`, under the names in `labels`: the probability of a class or label,
        a number in the units of the target, or a region's mask, bool [*shape].
        """
        logits = self.logits(self.encode(rows, folder))
        kind = self.config.task.kind
        if kind == "segmentation":
            found: Any = self.task.predict(logits).numpy()
        elif kind == "regression":
            found = self.task.predict(logits).tolist()
        else:
            found = (logits.softmax(dim=1) if kind == "classification" else logits.sigmoid()).tolist()
        return [dict(zip(self.labels, row, strict=True)) for row in found]


def load_trained(folder: str | Path) -> TrainedModel:
    """The model of a run folder, or of a folder that `export` wrote. Raises `EquipoiseError` where there is neither."""
    folder = Path(folder)
    try:
        exported, run = (folder / CONFIG).is_file(), (folder / "config.yaml").is_file()
    except OSError as error:
        raise EquipoiseError(f"Cannot read the folder {folder} ({error.strerror}).") from error
    if exported:
        return load_exported(folder)
    if not run:
        raise EquipoiseError(
            f"{folder} holds neither a run (config.yaml) nor an exported model ({CONFIG}): give the folder that `equipoise "
            "fit` or `equipoise export` printed."
        )
    from equipoise.pipelines.run import Run

    return from_run(Run.open(folder))


def from_run(run: Run) -> TrainedModel:
    """The best model of a run; its data set may be gone. Raises `EquipoiseError` where no epoch has been validated."""
    model, manifest = run.best_model(), run.own_manifest
    config = ExportConfig(
        model=run.config.model,
        unimodal=model.unimodal,
        task=manifest.task,
        modalities=manifest.modalities,
        fitted=manifest.fitted,
        sample_key=manifest.sample_key,
        data={"name": manifest.name, "hash": manifest.hash, "terms": manifest.terms},
        run={
            "balancer": run.config.balancer.model_dump(),
            "resampler": run.config.resampler.model_dump(),
            "seed": run.config.seed,
            "best": run.checkpoints.best,
        },
        versions=_versions(),
        model_hash=model_hash(model.state_dict()),
    )
    return TrainedModel(model, config)


def load_exported(folder: str | Path) -> TrainedModel:
    """The model in a folder that `equipoise export` wrote; needs neither Ray nor the data.

    Raises:
        EquipoiseError: no such folder, a config.json that is not ours, weights that are not those that were exported.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    folder = Path(folder)
    again = "export the run again"
    try:
        raw = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        if raw.get("format_version") != 1:
            raise EquipoiseError(
                f"{folder / CONFIG} has format version {raw.get('format_version')!r}, this release reads 1: {again}."
            )
        config = ExportConfig.model_validate(raw)
    except FileNotFoundError:
        raise EquipoiseError(
            f"{folder} holds no exported model (no {CONFIG}): `equipoise export RUN --out ...` writes one."
        ) from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, AttributeError) as error:
        raise EquipoiseError(f"{folder / CONFIG} cannot be read ({error}): {again}.") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise EquipoiseError(
            f"{folder / CONFIG} is not as `export` wrote it, at {where}: {first['msg']}; {again}."
        ) from None
    try:
        weights = load_file(folder / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise EquipoiseError(f"{folder / WEIGHTS} is missing or damaged ({error}): {again}.") from None
    if model_hash(weights) != config.model_hash:
        raise EquipoiseError(f"{folder / WEIGHTS} does not hold the weights that {CONFIG} was written for: {again}.")
    task = config.build_task()
    with torch.random.fork_rng(devices=[]):
        model = build_model(
            config.model,
            config.modalities,
            task.num_outputs,
            unimodal=config.unimodal,  # type: ignore[arg-type]
            dense=task.dense,
            fills=fills(config.modalities, config.fitted),
        )
    model.load_state_dict(weights)
    return TrainedModel(model.eval(), config)


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("equipoise", "torch", "numpy", "safetensors")}
