"""Train, validation and test where a data set brings no split of its own: about 70 / 15 / 15 in every class."""

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.model_selection import StratifiedGroupKFold, train_test_split


def stratified(target: ArrayLike, seed: int) -> NDArray[np.object_]:
    """The split of every row, rows drawn by `seed` in each class."""
    target = np.asarray(target)
    rows = np.arange(len(target))
    state = seed % 2**32  # as far as scikit-learn counts
    _, rest = train_test_split(rows, test_size=0.3, stratify=target, random_state=state)
    validation, test = train_test_split(rest, test_size=0.5, stratify=target[rest], random_state=state)
    split = np.full(len(rows), "train", object)
    split[validation], split[test] = "validation", "test"
    return split


def stratified_groups(target: ArrayLike, groups: ArrayLike, seed: int, parts: int = 7) -> NDArray[np.object_]:
    """The split of every row, whole groups, so that each class is spread as evenly as groups allow.

    One part in `parts` is test, another validation. Groups of different sizes are dealt out largest first, which leaves
    little to chance, so `seed` also chooses the parts: the parts of seeds in a row are different ones.
    """
    target = np.asarray(target)
    dealt = StratifiedGroupKFold(parts, shuffle=True, random_state=seed % 2**32).split(target, target, groups)
    folds = [rows for _, rows in dealt]
    split = np.full(len(target), "train", object)
    split[folds[seed % parts]], split[folds[(seed + 1) % parts]] = "test", "validation"
    return split
