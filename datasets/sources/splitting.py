"""Train, validation and test where a data set brings no split of its own: about 70 / 15 / 15 in every class."""

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.model_selection import StratifiedGroupKFold, train_test_split

from equipoise.models.errors import EquipoiseError


def stratified(target: ArrayLike, seed: int, test_seed: int | None = None) -> NDArray[np.object_]:
    """The split of every row, rows drawn by `seed` in each class.

    With a `test_seed`, test is what it draws and the same for all seeds, which divide the rest: so what was tuned on the
    validation rows of one seed has seen none of the test rows of another.
    """
    target = np.asarray(target)
    rows = np.arange(len(target))
    state = seed % 2**32  # as far as scikit-learn counts
    split = np.full(len(rows), "train", object)
    if test_seed is not None:
        _check(test_seed)
        split[stratified(target, test_seed) == "test"] = "test"
        known = rows[split != "test"]
        _, validation = train_test_split(known, test_size=0.15 / 0.85, stratify=target[known], random_state=state)
        split[validation] = "validation"
        return split
    _, rest = train_test_split(rows, test_size=0.3, stratify=target, random_state=state)
    validation, test = train_test_split(rest, test_size=0.5, stratify=target[rest], random_state=state)
    split[validation], split[test] = "validation", "test"
    return split


def stratified_groups(
    target: ArrayLike, groups: ArrayLike, seed: int, parts: int = 7, test_seed: int | None = None
) -> NDArray[np.object_]:
    """The split of every row, whole groups, so that each class is spread as evenly as groups allow; `test_seed` as above.

    One part in `parts` is test, another validation. Groups of different sizes are dealt out largest first, which leaves
    little to chance, so `seed` also chooses the parts: the parts of seeds in a row are different ones.
    """
    target, groups = np.asarray(target), np.asarray(groups)
    if test_seed is not None:
        _check(test_seed)
        split = np.full(len(target), "test", object)
        known = stratified_groups(target, groups, test_seed, parts) != "test"
        divided = stratified_groups(target[known], groups[known], seed, parts - 1)
        split[known] = np.where(divided == "validation", "validation", "train")
        return split
    dealt = StratifiedGroupKFold(parts, shuffle=True, random_state=seed % 2**32).split(target, target, groups)
    folds = [rows for _, rows in dealt]
    split = np.full(len(target), "train", object)
    split[folds[seed % parts]], split[folds[(seed + 1) % parts]] = "test", "validation"
    return split


def _check(test_seed: object) -> None:
    if isinstance(test_seed, bool) or not isinstance(test_seed, int) or test_seed < 0:
        raise EquipoiseError(f"test_seed must be an integer of 0 or more, found {test_seed!r}.")
