"""scikit-learn's handwritten digits, each image cut in two: columns 0-4 and columns 5-7.

1,797 images of 8 x 8 pixels. The left piece alone tells more than the right one, and both together more than either.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from sklearn.datasets import load_digits

from equipoise.datasets.sources import Source
from equipoise.datasets.sources.splitting import stratified
from equipoise.models.modality import Modality

_CUT = 5
_TERMS = "UCI ML hand-written digits (test set), as shipped with scikit-learn (BSD-3-Clause)."


def load(*, seed: int = 0, test_seed: int | None = None) -> Source:
    """`left` float32 (8, 5) and `right` (8, 3), pixels 0 .. 16; stratified 70 / 15 / 15 split fixed by `seed`."""
    digits = load_digits()
    split = stratified(digits.target, seed, test_seed)

    def stream() -> Iterator[dict[str, Any]]:
        for i, image in enumerate(digits.images.astype(np.float32)):
            yield {
                "source_id": f"digit-{i:04d}",
                "split": split[i],
                "target": int(digits.target[i]),
                "left": image[:, :_CUT],
                "right": image[:, _CUT:],
            }

    return Source(
        name="digits",
        modalities=(
            Modality(name="left", shape=(8, _CUT), transform="standardize"),
            Modality(name="right", shape=(8, 8 - _CUT), transform="standardize"),
        ),
        labels=tuple(map(str, digits.target_names)),
        rows=stream(),
        terms=_TERMS,
    )
