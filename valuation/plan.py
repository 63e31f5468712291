"""What an epoch holds beside the originals: how many copies and repeats of each sample."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from equipoise.models.errors import EquipoiseError
from equipoise.valuation.atomic import replacing


@dataclass(frozen=True, eq=False)
class Plan:
    """`copies` uint8 [N, M]: unimodal copies of sample_id i that keep modality m alone; `repeats` uint8 [N]: further entries
    of the whole sample. On disk one `.npy`, uint8 [N, M + 1], the last column the repeats.
    """

    copies: NDArray[np.uint8]
    repeats: NDArray[np.uint8]

    @classmethod
    def plain(cls, num_rows: int, num_modalities: int) -> Self:
        """An epoch of the originals alone."""
        return cls(np.zeros((num_rows, num_modalities), np.uint8), np.zeros(num_rows, np.uint8))

    @property
    def num_entries(self) -> int:
        """Length of the epoch before padding: originals, copies and repeats."""
        return len(self.copies) + int(self.copies.sum(dtype=np.int64)) + int(self.repeats.sum(dtype=np.int64))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the plan, whole or not at all."""
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.save(file, np.column_stack([self.copies, self.repeats]), allow_pickle=False)

    @classmethod
    def load(cls, path: str | os.PathLike[str], mmap: bool = True) -> Self:
        """Read a plan; with `mmap` its columns are views of the file, paged in as windows of it are used."""
        try:
            array = np.load(Path(path), mmap_mode="r" if mmap else None, allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise EquipoiseError(f"{path} is not a resampling plan: {error}") from None
        if not isinstance(array, np.ndarray) or array.dtype != np.uint8 or array.ndim != 2 or array.shape[1] < 2:
            raise EquipoiseError(
                f"{path} is not a resampling plan: a plan is one uint8 array of [rows, modalities + 1]."
            )
        return cls(array[:, :-1], array[:, -1])
