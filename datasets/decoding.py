"""Rows as they come, decoded as those of a prepared data set are: by the state that was fitted on its train rows."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from equipoise.datasets.columns import Decoder
from equipoise.datasets.manifest import value_fields
from equipoise.models.errors import EquipoiseError
from equipoise.models.modality import Modality

Stored = tuple[bytes | str | None, ...]  # the values of one row as `Cells.stored` gives them, one a modality


class RowDecoder:
    """Stored values -> the columns that `Reader.read` gives for rows on disk, bit for bit."""

    def __init__(self, modalities: tuple[Modality, ...], fitted: Mapping[str, Mapping[str, Any]]) -> None:
        self.modalities = modalities
        self._decoders = [Decoder(m, fitted.get(m.name, {})) for m in modalities]

    def __call__(self, rows: Sequence[Stored]) -> dict[str, np.ndarray]:
        """`present` bool [n, M], `<name>` [n, *decoded_shape] and, where it has one, `<name>_length` int64 [n].

        Raises `EquipoiseError` for a value that is not finite after its transform.
        """
        present = np.array([[value is not None for value in row] for row in rows]).reshape(len(rows), -1)
        out: dict[str, np.ndarray] = {"present": present}
        for bit, (m, field) in enumerate(zip(self.modalities, value_fields(self.modalities), strict=True)):
            shown = np.flatnonzero(present[:, bit]).tolist()
            values, lengths = self._decoders[bit](pa.array([rows[i][bit] for i in shown], field.type))
            if values.dtype == np.float32 and not np.isfinite(values).all():
                raise EquipoiseError(
                    f"A value of modality {m.name!r} is too large after its transform: it is far from all train rows."
                )
            out[m.name] = np.zeros((len(rows), *m.decoded_shape), m.decoded_dtype)
            out[m.name][shown] = values
            if lengths is not None:
                out[f"{m.name}_length"] = np.zeros(len(rows), np.int64)
                out[f"{m.name}_length"][shown] = lengths
        return out
