"""HTAD: seven activities at home, a wrist accelerometer and sound recorded together, in the package multiviewstacking.

1,386 rows of features, in the order of 22 recording runs of one activity each. Neighbours in a run are alike, so a
split by rows flatters: it puts them on both sides.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from equipoise.datasets.sources import Source
from equipoise.datasets.sources.installed import package_file
from equipoise.datasets.sources.splitting import stratified, stratified_groups
from equipoise.models.errors import EquipoiseError, unknown
from equipoise.models.modality import Modality

BLOCK = 25  # rows
FOLDS = 3
_HELD_OUT = ("blocks", "rows", "runs")
_INSTALL = "`pip install 'equipoise[data]'` or `pip install multiviewstacking==0.7.5`"
_TERMS = (
    "HTAD may be used for research and education only: competitions and commercial purposes need its authors' written "
    "permission. Whatever reports results on it must cite: E. Garcia-Ceja et al., HTAD: A Home-Tasks Activities Dataset "
    "with Wrist-accelerometer and Audio Features, MultiMedia Modeling (MMM) 2021, "
    "https://link.springer.com/chapter/10.1007/978-3-030-67835-7_17"
)


def load(*, held_out: str = "blocks", fold: int = 0, seed: int = 0, test_seed: int | None = None) -> Source:
    """`accelerometer` float32 (16,), statistics of a window, and `audio` float32 (36,), its MFCCs.

    `held_out`, what validation and test are made of: "blocks", of 25 rows in a row; "rows"; or "runs": test is every
    third recording run of an activity, beginning with number `fold` (0, 1 or 2), and validation is blocks of the other
    runs, so only test is of recordings never heard. Blocks and rows are drawn by `seed`, about 70 / 15 / 15.
    Raises `EquipoiseError` without multiviewstacking, and for an option that cannot be.
    """
    if held_out not in _HELD_OUT:
        raise unknown("choice for held_out", str(held_out), _HELD_OUT)
    if isinstance(fold, bool) or not isinstance(fold, int) or not 0 <= fold < FOLDS:
        raise EquipoiseError(f"fold must be one of 0..{FOLDS - 1}, found {fold!r}.")
    if fold and held_out != "runs":
        raise EquipoiseError(f"fold={fold} has no meaning with held_out={held_out!r}: choose by seed instead.")
    if test_seed is not None and held_out == "runs":
        raise EquipoiseError(
            "test_seed has no meaning with held_out='runs', whose test rows the fold fixes: leave it out."
        )
    table = pd.read_csv(package_file("htad", "multiviewstacking", "multiviewstacking/data/htad.csv", _INSTALL))
    target = table["class"].to_numpy()
    run, block = _runs(target)
    if held_out == "rows":
        split = stratified(target, seed, test_seed)
    elif held_out == "blocks":
        split = stratified_groups(target, block, seed, test_seed=test_seed)
    else:
        known = _nth_of_its_class(target, run) % FOLDS != fold
        split = np.where(known, "train", "test").astype(object)
        drawn = stratified_groups(target[known], block[known], seed, parts=4)  # fewer blocks, and yet all classes
        split[known] = np.where(drawn == "validation", "validation", "train")
    sound = table.filter(like="v1_").to_numpy(np.float32)
    motion = table.filter(like="v2_").to_numpy(np.float32)

    def stream() -> Iterator[dict[str, Any]]:
        for i in range(len(table)):
            yield {
                "source_id": f"row-{i:04d}",
                "group": str(block[i]),
                "split": split[i],
                "target": target[i],
                "accelerometer": motion[i],
                "audio": sound[i],
            }

    return Source(
        name="htad",
        modalities=(
            Modality(name="accelerometer", shape=(motion.shape[1],), transform="standardize"),
            Modality(name="audio", shape=(sound.shape[1],), transform="standardize"),
        ),
        labels=tuple(sorted(set(map(str, target)))),
        rows=stream(),
        grouped=held_out != "rows",
        terms=_TERMS,
    )


def _runs(target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The number of each row's run, and the name of its block, which lies in one run."""
    begins = np.flatnonzero(np.append(True, target[1:] != target[:-1]))
    run = np.searchsorted(begins, np.arange(len(target)), side="right") - 1
    part = (np.arange(len(target)) - begins[run]) // BLOCK
    return run, np.array([f"run-{r:02d}-block-{b}" for r, b in zip(run, part, strict=True)])


def _nth_of_its_class(target: np.ndarray, run: np.ndarray) -> np.ndarray:
    """How many runs of the same class lie before each row's run."""
    seen: dict[Any, list[int]] = {}
    for label, number in zip(target, run, strict=True):
        numbers = seen.setdefault(label, [])
        if number not in numbers:
            numbers.append(number)
    return np.array([seen[label].index(number) for label, number in zip(target, run, strict=True)])
