"""scikit-learn's diabetes study: how far the disease is a year later, from body measures and from blood serum. Regression.

442 patients; the target is 25 to 346, with mean 152 and deviation 77.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from sklearn.datasets import load_diabetes
from sklearn.model_selection import train_test_split

from equipoise.datasets.sources import Source
from equipoise.datasets.task_spec import TaskSpec
from equipoise.models.modality import Modality

GROUPS = {"body": ("age", "sex", "bmi", "bp"), "serum": ("s1", "s2", "s3", "s4", "s5", "s6")}
_TERMS = "Diabetes data of Efron, Hastie, Johnstone and Tibshirani (2004), as shipped with scikit-learn (BSD-3-Clause)."


def load(*, seed: int = 0, tolerance: float = 50.0) -> Source:
    """`body` float32 (4,) and `serum` (6,), as measured; 70 / 15 / 15 split by `seed`. A prediction counts as right within
    `tolerance`.
    """
    found = load_diabetes(scaled=False)
    columns = {name: found.feature_names.index(name) for names in GROUPS.values() for name in names}
    rows = np.arange(len(found.target))
    train, rest = train_test_split(rows, test_size=0.3, random_state=seed % 2**32)
    validation, _ = train_test_split(rest, test_size=0.5, random_state=seed % 2**32)
    split = np.full(len(rows), "test", object)
    split[train], split[validation] = "train", "validation"

    def stream() -> Iterator[dict[str, Any]]:
        for i, numbers in enumerate(found.data.astype(np.float32)):
            groups = {m: numbers[[columns[name] for name in names]] for m, names in GROUPS.items()}
            yield {"source_id": f"patient-{i:03d}", "split": split[i], "target": float(found.target[i]), **groups}

    return Source(
        "diabetes",
        tuple(Modality(name=m, shape=(len(names),), transform="standardize") for m, names in GROUPS.items()),
        stream(),
        terms=_TERMS,
        task=TaskSpec(kind="regression", labels=("progression",), tolerance=tolerance),
    )
