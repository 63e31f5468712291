"""The batch contract, and how decoded columns become one."""

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

import numpy as np
import torch
from torch import Tensor

from equipoise.models.errors import EquipoiseError


class Batch(TypedDict):
    """B rows: `sample_id` int64[B], `copy` int16[B] (0 = the original, 1, 2, ... its copies in an epoch), `inputs`
    {modality: [B, ...], modality_length: int64[B]}, `present` bool[B, M], `target` [B, ...].
    """

    sample_id: Tensor
    copy: Tensor
    inputs: dict[str, Tensor]
    present: Tensor
    target: Tensor


def to_batch(columns: Mapping[str, np.ndarray], modalities: Sequence[str], device: Any = None) -> Batch:
    """Decoded columns (`sample_id`, `copy`, `present`, `target`, one a modality, its `_length`) as a `Batch`.

    Nothing is converted: a column is a view where torch can share its memory.
    """

    def tensor(array: np.ndarray) -> Tensor:
        array = np.ascontiguousarray(array)
        # Columns out of Ray's object store are read-only; torch warns of that, and a copy of a batch is cheap.
        out = torch.from_numpy(array if array.flags.writeable else array.copy())
        return out.to(device, non_blocking=True) if device is not None else out

    names = [name for m in modalities for name in (m, f"{m}_length") if name in columns]
    return Batch(
        sample_id=tensor(columns["sample_id"]),
        copy=tensor(columns["copy"]),
        inputs={name: tensor(columns[name]) for name in names},
        present=tensor(columns["present"]),
        target=tensor(columns["target"]),
    )


def check_batch(batch: Batch, modalities: Sequence[str]) -> None:
    """Raise an `EquipoiseError` for a batch whose `present` has the wrong shape or that has a row with nothing present."""
    present = batch["present"]
    rows = len(batch["sample_id"])
    if present.dtype != torch.bool or tuple(present.shape) != (rows, len(modalities)):
        raise EquipoiseError(
            f"present must be bool [{rows}, {len(modalities)}] (rows, modalities {', '.join(modalities)}), "
            f"found {present.dtype} {tuple(present.shape)}."
        )
    missing = [m for m in modalities if m not in batch["inputs"]]
    if missing:
        raise EquipoiseError(
            f"The batch has no inputs for modality {missing[0]!r}: it holds {', '.join(batch['inputs'])}."
        )
    nothing = ~present.any(dim=1)
    if bool(nothing.any()):
        row = int(nothing.nonzero()[0])
        raise EquipoiseError(
            f"sample_id {int(batch['sample_id'][row])} (row {row} of the batch) has no modality present: drop the row, "
            "or mark at least one of its modalities as present."
        )
