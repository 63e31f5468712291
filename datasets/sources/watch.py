"""Shoulder exercises recorded by a smartwatch: accelerometer and gyroscope, 10 subjects (seglearn's `watch` data).

140 recordings at 50 Hz. How well a model does depends strongly on which subjects are held out, so use all five folds.
"""

from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any, cast

import numpy as np

from equipoise.datasets.opening import load_object_array
from equipoise.datasets.sources import Source
from equipoise.models.errors import EquipoiseError
from equipoise.models.modality import Modality

RATE = 50  # Hz
FOLDS = 5
_TERMS = "Burns et al., arXiv:1802.01489; shipped with seglearn (BSD-3-Clause)."


def load(*, window: float = 2.0, fold: int = 0) -> Source:
    """`accelerometer` and `gyroscope`, float32 (window * 50, 3), from windows of `window` seconds that do not overlap.

    Subjects never straddle splits: `fold` holds out two subjects for test, and the next fold's two for validation.
    Raises `EquipoiseError` without seglearn, and for a window or fold that cannot be.
    """
    if isinstance(fold, bool) or not isinstance(fold, int) or not 0 <= fold < FOLDS:
        raise EquipoiseError(f"fold must be one of 0..{FOLDS - 1}, found {fold!r}.")
    if isinstance(window, bool) or not isinstance(window, int | float) or not 0.1 <= window <= 10:
        raise EquipoiseError(f"window must be 0.1 to 10 seconds, found {window!r}: a recording is 19 to 52 s long.")
    steps = round(window * RATE)
    data = cast(dict[str, Any], load_object_array(_file()))
    labels = tuple(map(str, data["y_labels"]))
    subjects = np.unique(data["subject"])

    def held_out(of: int) -> set[int]:
        return set(subjects[2 * (of % FOLDS) : 2 * (of % FOLDS) + 2].tolist())

    def stream() -> Iterator[dict[str, Any]]:
        for i, (signal, label, subject) in enumerate(zip(data["X"], data["y"], data["subject"], strict=True)):
            split = "test" if subject in held_out(fold) else "validation" if subject in held_out(fold + 1) else "train"
            for w in range(len(signal) // steps):
                x = signal[w * steps : (w + 1) * steps].astype(np.float32)
                yield {
                    "source_id": f"rec{i:03d}-w{w:03d}",
                    "group": f"subject-{subject:02d}",
                    "split": split,
                    "target": labels[label],
                    "accelerometer": x[:, :3],
                    "gyroscope": x[:, 3:],
                }

    return Source(
        name="watch",
        modalities=tuple(
            Modality(name=name, shape=(steps, 3), transform="standardize") for name in ("accelerometer", "gyroscope")
        ),
        labels=labels,
        rows=stream(),
        grouped=True,
        terms=_TERMS,
    )


def _file() -> Path:
    # Found through the installed distribution: seglearn's own loader would unpickle whatever the file holds.
    try:
        path = Path(str(distribution("seglearn").locate_file("seglearn/data/watch_dataset.npy")))
    except PackageNotFoundError:
        path = None
    if path is None or not path.is_file():
        raise EquipoiseError(
            "The data set 'watch' is part of the package seglearn, which is not installed here: run "
            "`pip install 'equipoise[data]'` or `pip install seglearn==1.2.5`."
        )
    return path
