"""What is counted while rows are staged, and what a whole data set can be refused for."""

from collections import Counter
from typing import Any

import numpy as np

from equipoise.datasets.bad_value import BadValueError
from equipoise.datasets.manifest import SPLITS
from equipoise.datasets.targets import encode_target
from equipoise.datasets.task_spec import TaskSpec
from equipoise.models.errors import EquipoiseError, unknown


class Census:
    """Counts of rows, labels, groups and present modalities a split. `task` None: classes, whose names are inferred."""

    def __init__(self, modalities: tuple[str, ...], task: TaskSpec | None) -> None:
        labels = task.labels if task is not None else None
        self.task = task if task is not None and task.kind != "classification" else None
        if labels is not None and len(set(labels)) != len(labels):
            twice = next(name for name, n in Counter(labels).items() if n > 1)
            raise EquipoiseError(f"The label {twice!r} is given twice: every class needs its own name.")
        self.modalities, self.labels = modalities, labels
        self.rows: Counter[str] = Counter()
        self._train_bits = 0
        self._kind: type | None = None
        self._first: dict[str, dict[str, str]] = {split: {} for split in SPLITS}
        self._split_of_group: dict[str, str] = {}

    def target(self, value: Any) -> str | bytes:
        """What is staged of a row's target: the class name, or the bytes that are stored. Raises `BadValueError`."""
        return self.label(value) if self.task is None else encode_target(self.task, value)

    def label(self, value: Any) -> str:
        """The class name of a row's target. Raises `BadValueError` for what is no label, or none of the classes."""
        if isinstance(value, np.generic) or (isinstance(value, np.ndarray) and value.ndim == 0):
            value = value.item()
        if value is None:
            raise BadValueError("has no target: give a class name or an index")
        if isinstance(value, bool) or not isinstance(value, int | str):
            raise BadValueError(f"has the target {value!r} ({type(value).__name__}): give a class name or an index")
        if self._kind not in (None, type(value)):
            raise BadValueError(f"has the target {value!r}, but rows before it have targets of another type: use one")
        self._kind = type(value)
        if isinstance(value, str):
            if self.labels is not None and value not in self.labels:
                near = str(unknown("label", value, self.labels)).partition(": ")[2].rstrip(".")
                raise BadValueError(f"has the label {value!r}, which is none of task_labels: {near}")
            return value
        if value < 0 or (self.labels is not None and value >= len(self.labels)):
            last = "..." if self.labels is None else str(len(self.labels) - 1)
            raise BadValueError(f"has the label {value}, outside the classes 0..{last}: mend it, or give task_labels")
        return str(value) if self.labels is None else self.labels[value]

    def count(self, source_id: str, split: str, group: str | None, target: str | bytes, present: int) -> None:
        """Take in a row. Raises `EquipoiseError` if its group was seen in another split."""
        self.rows[split] += 1
        if isinstance(target, str):
            self._first[split].setdefault(target, source_id)
        self._train_bits |= present if split == "train" else 0
        if group is not None and self._split_of_group.setdefault(group, split) != split:
            raise EquipoiseError(
                f"Group {group!r} has rows in {self._split_of_group[group]} and in {split} (row {source_id!r}): a group "
                "must lie in one split. Mend the split column, or leave it out and let prepare split by group."
            )

    def spec(self, source: str) -> TaskSpec:
        """The task, with the class names in the order of their indices. Raises `EquipoiseError` for a whole that cannot be
        trained on: an empty split, a modality or a label that train never shows, fewer than two classes.
        """
        empty = [split for split in SPLITS if not self.rows[split]]
        if empty:
            counts = ", ".join(f"{split} {self.rows[split]}" for split in SPLITS)
            raise EquipoiseError(
                f"The {empty[0]} split of {source!r} is empty ({counts}): train, validation and test all need rows. Mend "
                "the split column, or change fractions, seed or group."
            )
        for bit, name in enumerate(self.modalities):
            if not self._train_bits >> bit & 1:
                raise EquipoiseError(
                    f"Modality {name!r} is absent in every train row: leave it out, or mend its column."
                )
        if self.task is not None:
            return self.task
        train = self._first["train"]
        for split in SPLITS[1:]:
            for label, source_id in self._first[split].items():
                if label not in train:
                    raise EquipoiseError(
                        f"Row {source_id!r} of {split} has the label {label!r}, which no train row has: no model can learn "
                        "it. Move rows of that label to train, or drop them."
                    )
        classes = self.labels or self._inferred(train)
        if len(classes) < 2:
            raise EquipoiseError(f"{source!r} has the one label {classes[0]!r}: classification needs at least two.")
        return TaskSpec(labels=classes)

    def _inferred(self, train: dict[str, str]) -> tuple[str, ...]:
        if self._kind is str:
            return tuple(sorted(train))
        found = sorted(map(int, train))
        if found != list(range(len(found))):
            missing = next(i for i in range(len(found) + 1) if i not in found)
            raise EquipoiseError(
                f"The train rows have integer labels up to {found[-1]} but none has {missing}: number the classes from 0 "
                "without a gap, or give task_labels."
            )
        return tuple(map(str, found))
