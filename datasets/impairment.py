"""What may be wrong with a data set's rows: modalities missing in some, noise in others. One block for training, evaluation
and tables.
"""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from equipoise.datasets.noise import RowNoise
from equipoise.models import rowhash
from equipoise.models.errors import option_error, unknown

Ratio = Annotated[float, Field(ge=0, le=1)]
Severity = Annotated[int, Field(ge=0, le=5)]


class Impairment(BaseModel):
    """Which modalities are impaired, and how much.

    - `missing`: {modality: r}. int(r N) of a split's N rows lack it, the same ones whenever they are read: those whose hash of
      (seed, modality, split, sample_id) is smallest. So the rows of a smaller r are among those of a larger one. A row that
      would be left with nothing keeps what it has.
    - `noise`: {modality: severity}, 0 (none, bit for bit) to 5, see `RowNoise`.
    - `share`: of the rows that get noise.
    - `seed`: of both. Noise belongs to (seed, modality, epoch, sample_id, copy), never to a place in a batch; outside
      training epoch and copy are 0.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    missing: dict[str, Ratio] = Field(default={}, description="modality: share of rows that lack it")
    noise: dict[str, Severity] = Field(default={}, description="modality: severity, 0 to 5")
    share: Ratio = Field(1.0, description="of the rows that get noise")
    seed: int = Field(0, ge=0, description="of which rows lack what, and of the noise")

    if not TYPE_CHECKING:  # type checkers take the signature from the fields

        def __init__(self, **fields: Any) -> None:
            try:
                super().__init__(**fields)
            except ValidationError as error:
                raise option_error("impairment", type(self), error) from None

    def check(self, modalities: Iterable[str]) -> None:
        """Raise an `EquipoiseError` for a name that is no modality of the data set."""
        names = list(modalities)
        for where, given in (("missing", self.missing), ("noise", self.noise)):
            for name in given:
                if name not in names:
                    raise unknown(f"modality in impairment.{where}", name, names)

    @property
    def of_rows(self) -> Impairment | None:
        """What is missing, without the noise: what values and plans of train rows must know of. None where nothing is."""
        return Impairment(missing=self.missing, seed=self.seed) if any(self.missing.values()) else None

    def lacking(self, modality: str, split: str, num_rows: int) -> NDArray[np.bool_]:
        """Which of a split's rows lack a modality: bool [num_rows]."""
        return missing_rows(self.missing.get(modality, 0.0), modality, split, num_rows, self.seed)

    def noises(
        self, modality: str, split: str, ids: NDArray[np.int64], epoch: int = 0, copies: NDArray[Any] | int = 0
    ) -> list[RowNoise | None] | None:
        """The noise of each row on one modality (None: a row that gets none); None where no row gets any."""
        severity = self.noise.get(modality, 0)
        if not severity:
            return None
        copy = np.broadcast_to(np.asarray(copies, np.int64), ids.shape)
        key = (self.seed, "noise", modality, split, epoch)
        hit = rowhash.uniform(*key, "share", ids, copy) < self.share
        return [
            RowNoise(severity, rowhash.seed_of(*key, int(i), int(c))) if some else None
            for i, c, some in zip(ids, copy, hit, strict=True)
        ]


def missing_rows(ratio: float, modality: str, split: str, num_rows: int, seed: int = 0) -> NDArray[np.bool_]:
    """bool [num_rows], int(ratio * num_rows) of them True; see `Impairment`."""
    count = int(Fraction(str(ratio)) * num_rows)
    order = np.argsort(rowhash.words(seed, "missing", modality, split, np.arange(num_rows)), kind="stable")
    out = np.zeros(num_rows, bool)
    out[order[:count]] = True
    return out
