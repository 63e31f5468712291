"""The columns of predictions, by the kind of task."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from torch import Tensor

from equipoise.datasets.task_spec import SEPARATOR, TaskSpec
from equipoise.models import Task


def fields(spec: TaskSpec) -> list[pa.Field]:
    """What a row of predictions holds beside its id and its modalities.

    classification, multilabel: `predicted` (a class; names of labels joined by `;`) and `probability_<label>`.
    regression: `predicted` of a single number, else `predicted_<name>`. segmentation: `mask`, uint8 0 or 1 of shape
    [regions, *shape] in C order, and `fraction_<region>`, the share of the positions that belong to it.
    """
    if spec.kind == "regression":
        names = ["predicted"] if len(spec.labels) == 1 else [f"predicted_{name}" for name in spec.labels]
        return [pa.field(name, pa.float64()) for name in names]
    if spec.kind == "segmentation":
        return [
            pa.field("mask", pa.large_binary()),
            *(pa.field(f"fraction_{name}", pa.float32()) for name in spec.labels),
        ]
    chances = [pa.field(f"probability_{label}", pa.float32()) for label in spec.labels]
    return [pa.field("predicted", pa.string()), *chances]


def metadata(spec: TaskSpec) -> dict[bytes, bytes] | None:
    """Of the schema: what the bytes of a mask are, as JSON under the key `equipoise`."""
    if spec.kind != "segmentation":
        return None
    mask = {"dtype": "uint8", "shape": spec.row_shape, "regions": spec.labels}
    return {b"equipoise": json.dumps({"mask": mask}).encode()}


def columns(spec: TaskSpec, task: Task, logits: Tensor) -> Sequence[pa.Array]:
    """The values of `fields` for logits [B, ...]."""
    found = task.predict(logits).numpy()
    if spec.kind == "regression":
        return [pa.array(np.ascontiguousarray(numbers)) for numbers in found.T]
    if spec.kind == "segmentation":
        shares = found.reshape(*found.shape[:2], -1).mean(axis=2)
        masks = pa.array([mask.astype(np.uint8).tobytes() for mask in found], pa.large_binary())
        return [masks, *(pa.array(np.ascontiguousarray(share), pa.float32()) for share in shares.T)]
    if spec.kind == "multilabel":
        chances = logits.sigmoid()
        named = [SEPARATOR.join(n for n, there in zip(spec.labels, row, strict=True) if there) for row in found]
    else:
        chances = logits.softmax(dim=1)
        named = [spec.labels[k] for k in found]
    return [pa.array(named, pa.string()), *(pa.array(c) for c in chances.T.contiguous().numpy())]
