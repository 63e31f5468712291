"""scikit-learn's handwritten digits, each image cut in two: columns 0-4 and columns 5-7.

1,797 images of 8 x 8 pixels. The left piece alone tells more than the right one, and both together more than either.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from equipoise.datasets.sources import Source
from equipoise.models.modality import Modality

_CUT = 5
_TERMS = "UCI ML hand-written digits (test set), as shipped with scikit-learn (BSD-3-Clause)."


def load(*, seed: int = 0) -> Source:
    """`left` float32 (8, 5) and `right` (8, 3), pixels 0 .. 16; stratified 70 / 15 / 15 split fixed by `seed`."""
    digits = load_digits()
    rows = np.arange(len(digits.target))
    state = seed % 2**32  # as far as scikit-learn counts
    train, rest = train_test_split(rows, test_size=0.3, stratify=digits.target, random_state=state)
    validation, test = train_test_split(rest, test_size=0.5, stratify=digits.target[rest], random_state=state)
    split = np.empty(len(rows), object)
    split[train], split[validation], split[test] = "train", "validation", "test"

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
