"""A row's target on disk and in a batch. A class is an integer; other targets are raw bytes of the task's shape."""

import json
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from equipoise.datasets.bad_value import BadValueError
from equipoise.datasets.task_spec import SEPARATOR, TaskSpec
from equipoise.models.errors import EquipoiseError, unknown


def target_field(spec: TaskSpec) -> pa.Field:
    """The column of a shard: int64, or raw bytes (float64 for regression, a byte of 0 or 1 a label or position)."""
    return pa.field("target", pa.int64() if spec.kind == "classification" else pa.large_binary(), nullable=False)


def dtype_of(spec: TaskSpec) -> np.dtype[Any]:
    """Of a target in a batch."""
    return np.dtype({"classification": np.int64, "regression": np.float64}.get(spec.kind, np.uint8))


def decode_targets(spec: TaskSpec, column: pa.Array) -> NDArray[Any]:
    """Stored targets as [n, *row_shape]. Raises `EquipoiseError` for bytes of another length."""
    if spec.kind == "classification":
        return np.asarray(column.to_numpy(zero_copy_only=False))
    values = column.to_pylist()
    size = spec.row_values * dtype_of(spec).itemsize
    if any(len(value) != size for value in values):
        raise EquipoiseError(
            f"A stored target does not have {size} bytes: the shard is damaged, prepare the data set again."
        )
    flat = np.frombuffer(b"".join(values), dtype_of(spec).newbyteorder("<"))
    return flat.astype(dtype_of(spec)).reshape(len(values), *spec.row_shape)


def encode_target(spec: TaskSpec, value: Any) -> bytes:
    """The stored form of a multilabel, regression or segmentation target. Raises `BadValueError`.

    multilabel: names in a list or joined by `;`, or 0 and 1 for every label. regression: a number, or one an output.
    segmentation: 0 and 1 of shape [regions, *shape], also flat, or as bytes.
    """
    if value is None:
        raise BadValueError("has no target: give one, or drop the row")
    found = {"multilabel": _labels, "regression": _numbers, "segmentation": _mask}[spec.kind](spec, value)
    return found.astype(dtype_of(spec).newbyteorder("<")).tobytes()


def _labels(spec: TaskSpec, value: Any) -> NDArray[Any]:
    if isinstance(value, str):
        text = value.strip()
        value = (
            _listed(text) if text.startswith("[") else [name.strip() for name in text.split(SEPARATOR) if name.strip()]
        )
    items = list(value) if isinstance(value, Sequence | np.ndarray | set | frozenset) else [value]
    if items and all(isinstance(item, str) for item in items):
        for name in items:
            if name not in spec.labels:
                near = str(unknown("label", name, spec.labels)).partition(": ")[2].rstrip(".")
                raise BadValueError(f"has the label {name!r}, which is none of task_labels: {near}")
        return np.isin(np.array(spec.labels), items)
    if not items and len(spec.labels):
        return np.zeros(len(spec.labels), np.uint8)
    return _zero_one(_array(spec, items), (len(spec.labels),))


def _numbers(spec: TaskSpec, value: Any) -> NDArray[Any]:
    if isinstance(value, str):
        text = value.strip()
        try:
            value = _listed(text) if text.startswith("[") else float(text.replace("_", "?"))
        except ValueError:
            raise BadValueError(f"has the target {value!r}, where a number belongs") from None
    if isinstance(value, bool | np.bool_):
        raise BadValueError(f"has the target {value!r}, where a number belongs")
    cells = value if isinstance(value, list | tuple) else [value]
    if any(isinstance(cell, Decimal) for cell in cells):  # as Parquet's decimals come
        value = [float(cell) for cell in cells]
    found = _array(spec, value).reshape(-1).astype(np.float64)
    if found.shape != (len(spec.labels),):
        raise BadValueError(
            f"has a target of {found.size} numbers: {len(spec.labels)} belong ({', '.join(spec.labels)})"
        )
    if not np.isfinite(found).all():
        raise BadValueError(f"has the target {found[~np.isfinite(found)][0]}, which is not a finite number: mend it")
    return found


def _mask(spec: TaskSpec, value: Any) -> NDArray[Any]:
    if isinstance(value, bytes | bytearray | memoryview):
        value = np.frombuffer(bytes(value), np.uint8)
    found = _array(spec, value)
    if found.size == spec.row_values and found.ndim == 1:
        found = found.reshape(spec.row_shape)
    return _zero_one(found, spec.row_shape)


def _array(spec: TaskSpec, value: Any) -> NDArray[Any]:
    try:
        found = np.asarray(value)
    except ValueError as error:
        raise BadValueError("has a target with lists of different lengths inside") from error
    if found.dtype.kind not in "biuf":
        raise BadValueError(f"has the target {str(value)[:60]!r}, which is no {spec.kind} target: numbers belong there")
    return found


def _zero_one(found: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    if found.shape != shape:
        raise BadValueError(f"has a target of shape {found.shape}: expected {shape}")
    bad = (found != 0) & (found != 1)
    if bad.any():
        place = tuple(int(i) for i in np.argwhere(bad)[0])
        raise BadValueError(f"has {found[place]} at {list(place)} of its target, where 0 or 1 belongs")
    return found.astype(np.uint8)


def _listed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadValueError(f"has the target {text[:60]!r}, which is no JSON list") from error
