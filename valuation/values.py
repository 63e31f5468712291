"""The score tables of some rows with their ids, and how a table is packed into one column."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from equipoise.valuation.coalitions import bits
from equipoise.valuation.shapley import shapley


@dataclass(frozen=True, eq=False)
class Values:
    """The values of some rows: `sample_id` int64 [n], `score` bool (graded: float32) [n, 2**M - 1], `present` bool [n, M]."""

    sample_id: NDArray[np.int64]
    score: NDArray[Any]
    present: NDArray[np.bool_]

    @property
    def graded(self) -> bool:
        return self.score.dtype != np.bool_

    @cached_property
    def contributions(self) -> NDArray[np.float64]:
        """Shapley contributions float64 [n, M], NaN where absent."""
        return shapley(self.score, self.present)

    @property
    def benefit(self) -> NDArray[np.float64]:
        """The benefit of all present modalities together: float64 [n]."""
        return self.score[np.arange(len(self.score)), bits(self.present) - 1].astype(np.float64)


def pack(score: NDArray[Any], kind: pa.DataType) -> pa.Array:
    """Scores [n, 2**M - 1] as a column: bits in a byte or in fixed-size binary, or a list of floats."""
    if pa.types.is_list(kind):
        offsets = np.arange(len(score) + 1, dtype=np.int32) * score.shape[1]
        return pa.ListArray.from_arrays(offsets, pa.array(score.ravel()))
    packed = np.packbits(score, axis=1, bitorder="little")
    if pa.types.is_uint8(kind):
        return pa.array(packed[:, 0])
    return pa.FixedSizeBinaryArray.from_buffers(kind, len(packed), [None, pa.py_buffer(packed.tobytes())])


def unpack(column: pa.Array, width: int, graded: bool) -> NDArray[Any]:
    """The inverse of `pack`: scores [n, width]."""
    if graded:
        flat: NDArray[Any] = column.flatten().to_numpy(zero_copy_only=False)
        return flat.reshape(len(column), width)
    if pa.types.is_uint8(column.type):
        packed = column.to_numpy(zero_copy_only=False)[:, None]
    else:
        packed = np.frombuffer(b"".join(column.to_pylist()), np.uint8).reshape(len(column), column.type.byte_width)
    return np.unpackbits(packed, axis=1, count=width, bitorder="little").astype(bool)
