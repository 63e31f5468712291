"""Shoulder exercises recorded by a smartwatch: accelerometer and gyroscope, 10 subjects (seglearn's `watch` data).

140 recordings at 50 Hz. How well a model does depends strongly on which subjects are held out, so use all five folds.
"""

from collections.abc import Iterator
from typing import Any, cast

import numpy as np

from equipoise.datasets.opening import load_object_array
from equipoise.datasets.sources import Source
from equipoise.datasets.sources.installed import package_file
from equipoise.models import rowhash
from equipoise.models.errors import EquipoiseError, unknown
from equipoise.models.modality import Modality

RATE = 50  # Hz
FOLDS = 5
_INSTALL = "`pip install 'equipoise[data]'` or `pip install seglearn==1.2.5`"
_TERMS = "Burns et al., arXiv:1802.01489; shipped with seglearn (BSD-3-Clause)."


def load(*, window: float = 2.0, fold: int = 0, features: str = "signal", validation: str = "subjects") -> Source:
    """`accelerometer` and `gyroscope` of windows of `window` seconds that do not overlap.

    `features`: "signal", float32 (window * 50, 3), or "statistics", float32 (33,), the 11 of seglearn's `base_features` of
    each axis. `fold` holds out two subjects for test. `validation`: "subjects" holds out the next fold's two as well, so
    that no subject straddles splits and six are left to train on; "recordings" holds out about one in seven recordings of
    the other eight subjects, so that only test is of subjects never seen.
    Raises `EquipoiseError` without seglearn, and for an option that cannot be.
    """
    for option, value, known in (
        ("features", features, ("signal", "statistics")),
        ("validation", validation, ("subjects", "recordings")),
    ):
        if value not in known:
            raise unknown(f"choice for {option}", str(value), known)
    if isinstance(fold, bool) or not isinstance(fold, int) or not 0 <= fold < FOLDS:
        raise EquipoiseError(f"fold must be one of 0..{FOLDS - 1}, found {fold!r}.")
    if isinstance(window, bool) or not isinstance(window, int | float) or not 0.1 <= window <= 10:
        raise EquipoiseError(f"window must be 0.1 to 10 seconds, found {window!r}: a recording is 19 to 52 s long.")
    # Opened without seglearn's own loader, which would unpickle whatever the file holds.
    file = package_file("watch", "seglearn", "seglearn/data/watch_dataset.npy", _INSTALL)
    steps = round(window * RATE)
    data = cast(dict[str, Any], load_object_array(file))
    labels = tuple(map(str, data["y_labels"]))
    subjects = np.unique(data["subject"])

    def held_out(of: int) -> set[int]:
        return set(subjects[2 * (of % FOLDS) : 2 * (of % FOLDS) + 2].tolist())

    def stream() -> Iterator[dict[str, Any]]:
        for i, (signal, label, subject) in enumerate(zip(data["X"], data["y"], data["subject"], strict=True)):
            if validation == "subjects":
                aside = subject in held_out(fold + 1)
            else:
                aside = bool(rowhash.uniform("watch", "validation", i) < 1 / 7)
            split = "test" if subject in held_out(fold) else "validation" if aside else "train"
            count = len(signal) // steps
            windows = signal[: count * steps].reshape(count, steps, 6).astype(np.float32)
            if features == "statistics":
                windows = _statistics(windows)
            half = windows.shape[-1] // 2
            for w, x in enumerate(windows):
                yield {
                    "source_id": f"rec{i:03d}-w{w:03d}",
                    "group": f"subject-{subject:02d}",
                    "split": split,
                    "target": labels[label],
                    "accelerometer": x[..., :half],
                    "gyroscope": x[..., half:],
                }

    return Source(
        name="watch",
        modalities=tuple(
            Modality(name=name, shape=(steps, 3) if features == "signal" else (33,), transform="standardize")
            for name in ("accelerometer", "gyroscope")
        ),
        labels=labels,
        rows=stream(),
        grouped=validation == "subjects",
        terms=_TERMS,
    )


def _statistics(windows: np.ndarray) -> np.ndarray:
    """float32 [n, 66] of windows [n, steps, 6]: 11 statistics of each axis, the accelerometer's three axes first."""
    from seglearn.feature_functions import base_features

    found = np.stack([f(windows.astype(np.float64)) for f in base_features().values()], axis=2)  # [n, 6, 11]
    return np.nan_to_num(found).reshape(len(windows), -1).astype(np.float32)
