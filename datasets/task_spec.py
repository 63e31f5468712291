"""What a data set's target is: the kind of task, the names of its outputs, and the choices that belong to it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import prod
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from equipoise.models.errors import EquipoiseError, option_error, unknown
from equipoise.models.modality import Modality

if TYPE_CHECKING:
    from equipoise.models.task import Task

SEPARATOR = ";"  # between the names of labels in a cell

Kind = Literal["classification", "multilabel", "regression", "segmentation"]
KINDS: tuple[str, ...] = get_args(Kind)

#: Which choices a kind has, beside `kind` and `labels`.
_CHOICES: dict[str, tuple[str, ...]] = {
    "classification": (),
    "multilabel": ("benefit",),
    "regression": ("loss", "benefit", "tolerance"),
    "segmentation": ("shape",),
}
#: What the outputs of a kind are called, one and several.
_OUTPUTS = {
    "classification": ("class", "classes"),
    "multilabel": ("label", "labels"),
    "regression": ("number", "numbers"),
    "segmentation": ("region", "regions"),
}
_BENEFITS = {"multilabel": ("labels", "exact"), "regression": ("tolerance", "sign")}


class TaskSpec(BaseModel):
    """What is predicted, and when a prediction is worth something.

    `labels` are the names of the outputs in their order: the classes (classification), the labels (multilabel), the numbers
    (regression) or the regions (segmentation); `num_classes` counts them. `shape` is that of a mask of one region. `loss`
    ("l1" or "l2"), `benefit` and `tolerance` (in the units of the target) are choices that docs/tasks.md describes; None
    where the kind has no such choice.

    Raises `EquipoiseError` for a choice that the kind has not, or one that it needs and that is not given.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Kind = "classification"
    num_classes: int = 0
    labels: tuple[str, ...] = ()
    shape: tuple[int, ...] | None = None
    loss: Literal["l1", "l2"] | None = None
    benefit: str | None = None
    tolerance: float | None = Field(None, gt=0, allow_inf_nan=False)

    @model_validator(mode="after")
    def _complete(self) -> TaskSpec:
        kind, choices = self.kind, _CHOICES[self.kind]
        for choice in ("shape", "loss", "benefit", "tolerance"):
            if getattr(self, choice) is not None and choice not in choices:
                raise EquipoiseError(f"task.{choice} has no meaning for the task {kind!r}: leave it out.")
        if kind == "regression" and not self.labels:
            object.__setattr__(self, "labels", ("value",))
        if kind in ("multilabel", "segmentation") and not self.labels:
            what = "labels" if kind == "multilabel" else "regions"
            raise EquipoiseError(f"The task {kind!r} needs the names of its {what}: give task_labels=[...].")
        twice = next((name for i, name in enumerate(self.labels) if name in self.labels[:i]), None)
        if twice is not None:
            raise EquipoiseError(f"The label {twice!r} is given twice: every output needs its own name.")
        self._check_labels()
        if self.num_classes not in (0, len(self.labels)):
            raise EquipoiseError(
                f"num_classes={self.num_classes} does not fit the {len(self.labels)} labels: leave it out, or mend the labels."
            )
        object.__setattr__(self, "num_classes", len(self.labels))
        self._choose(kind)
        return self

    def _check_labels(self) -> None:
        lower = [name.lower() for name in self.labels]
        for i, name in enumerate(self.labels):
            if self.kind == "segmentation" and lower[i] in lower[:i]:
                raise EquipoiseError(
                    f"The regions {self.labels[lower.index(lower[i])]!r} and {name!r} differ in capitals only: metrics are named "
                    "after them in small letters, rename one."
                )
            if self.kind == "multilabel" and (SEPARATOR in name or name != name.strip() or not name):
                raise EquipoiseError(
                    f"The label {name!r} could not be told from others in a cell, where labels are joined by {SEPARATOR!r}: "
                    "rename it."
                )

    def _choose(self, kind: str) -> None:
        """Fill in the choices that the kind has defaults for, and refuse those that have none."""
        if kind in _BENEFITS:
            if self.benefit is None:
                object.__setattr__(self, "benefit", _BENEFITS[kind][0])
            if self.benefit not in _BENEFITS[kind]:
                raise unknown(f"task.benefit of the task {kind!r}", str(self.benefit), _BENEFITS[kind])
        if kind == "regression":
            object.__setattr__(self, "loss", self.loss or "l1")
            if self.benefit == "tolerance" and self.tolerance is None:
                raise EquipoiseError(
                    "A regression needs task.tolerance: how far a prediction may lie off and still count as right, in the "
                    "units of the target (or task.benefit=sign, where its sign is what matters)."
                )
            if self.benefit == "sign" and self.tolerance is not None:
                raise EquipoiseError("task.tolerance has no meaning for task.benefit='sign': leave it out.")
        if kind == "segmentation" and (not self.shape or min(self.shape) < 1 or len(self.shape) not in (2, 3)):
            raise EquipoiseError(
                f"A segmentation needs task.shape, the shape of a mask: (H, W) or (D, H, W), found {self.shape}."
            )

    @property
    def row_shape(self) -> tuple[int, ...]:
        """The shape of a row's target in a batch: () for a class, (outputs,), or (regions, *shape)."""
        if self.kind == "classification":
            return ()
        return (len(self.labels), *(self.shape or ()))

    @property
    def row_values(self) -> int:
        return prod(self.row_shape)

    @property
    def outputs(self) -> str:
        """What is predicted, counted: "10 classes", "1 number"."""
        one, several = _OUTPUTS[self.kind]
        return f"{len(self.labels)} {one if len(self.labels) == 1 else several}"

    @property
    def described(self) -> str:
        """The task in words: "classification into 10 classes", "regression of 1 number"."""
        how = {"classification": "into", "multilabel": "with"}.get(self.kind, "of")
        return f"{'multi-label classification' if self.kind == 'multilabel' else self.kind} {how} {self.outputs}"

    @property
    def worth(self) -> str:
        """The benefit of a prediction in words, which follow "the benefit of a prediction is"."""
        if self.kind == "classification":
            return "1 where it is the right class, else 0"
        if self.kind == "segmentation":
            return "the Dice of its regions, their mean"
        if self.kind == "multilabel":
            share = "the share of its labels that are right"
            return share if self.benefit == "labels" else "1 where all its labels are right, else 0"
        what = "it is" if len(self.labels) == 1 else "all its numbers are"
        if self.benefit == "sign":
            return f"1 where {what} of the right sign, else 0"
        return f"1 where {what} within {self.tolerance:g} of the target, else 0"

    def check_modalities(self, modalities: Iterable[Modality]) -> None:
        """Raise an `EquipoiseError` for a modality whose positions are not those of the masks of a segmentation."""
        for m in modalities if self.kind == "segmentation" else ():
            if m.kind != "image" and (m.kind != "array" or len(m.shape) not in (3, 4)):
                raise EquipoiseError(
                    f"Segmentation needs images, or arrays of shape (channels, H, W) or (channels, D, H, W), and modality "
                    f"{m.name!r} is {m.kind} of shape {m.shape}: leave it out, or choose another task."
                )
            if m.shape[1:] != self.shape:
                raise EquipoiseError(
                    f"Modality {m.name!r} has positions {m.shape[1:]}, and a mask has {self.shape} (task.shape): they must be "
                    "the same, in the same order."
                )

    def build(self, fitted: Mapping[str, Any] | None = None) -> Task:
        """The task; `fitted` is the manifest's entry for the target, its train mean and deviation (regression)."""
        from equipoise import models  # torch, which reading alone does not need

        if self.kind == "classification":
            return models.Classification(len(self.labels))
        if self.kind == "multilabel":
            return models.MultiLabel(len(self.labels), benefit=cast(Any, self.benefit))
        if self.kind == "segmentation":
            return models.Segmentation(self.labels)
        scale = {"center": fitted["mean"], "scale": fitted["deviation"]} if fitted else {}
        return models.Regression(
            len(self.labels),
            loss=self.loss or "l1",
            benefit=cast(Any, self.benefit),
            tolerance=self.tolerance,
            **scale,
        )


def task_spec(task: Any, labels: Any = None, default: TaskSpec | None = None) -> TaskSpec | None:
    """A `TaskSpec` out of what a person gives: a kind, a mapping of choices or a `TaskSpec`, over a source's own `default`.

    None: single-label classification whose classes are still to be found. Raises `EquipoiseError`.
    """
    if isinstance(task, TaskSpec):
        return task
    if task is not None and not isinstance(task, str | Mapping):
        raise EquipoiseError(
            f"task is a kind ({', '.join(KINDS)}) or its choices, such as {{kind: regression}}; found {task!r}."
        )
    given = {"kind": task} if isinstance(task, str) else dict(task or {})
    if default is not None and given.get("kind", default.kind) == default.kind:
        inherited = default.model_dump(exclude={"num_classes", "labels"})
        if given.get("benefit", default.benefit) != default.benefit:
            inherited["tolerance"] = None  # it belongs to the benefit that is left
        given = {**inherited, "labels": labels or default.labels, **given}
    elif labels is not None and "labels" not in given:
        given["labels"] = tuple(labels)
    kind = given.get("kind", "classification")
    if kind not in KINDS:
        raise unknown("task", str(kind), KINDS)
    if kind == "classification" and not given.get("labels") and set(given) <= {"kind", "labels"}:
        return None
    try:
        return TaskSpec(**given)
    except ValidationError as error:
        raise option_error("task", TaskSpec, error) from None
