"""The balancer contract: one small class a method, with hooks in the order of one training step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from equipoise.models.contract import MultimodalModel, Unimodal
from equipoise.models.errors import EquipoiseError, option_error, unknown
from equipoise.models.task import Task

if TYPE_CHECKING:
    from equipoise.balancers.context import StepContext
    from equipoise.balancers.gradients import Gradients
    from equipoise.models.batch import Batch

#: What a method changes: nothing (a control to compare with), the rows, the losses, or the gradients they give.
Family = Literal["control", "data", "objective", "gradient"]

REGISTRY: dict[str, type[Balancer]] = {}

#: Methods of the field that are asked for and not here, and what they would need.
PLANNED = {
    "greedy": "it balances by squeeze-and-excitation blocks inside the encoders, which no encoder here has",
    "umt": "it distils from unimodal models trained before, which a run does not hold",
}


class Balancer:
    """A balancing method: what it changes in a training step. The default of every hook changes nothing.

    A subclass with a `name` registers itself. Its `Options` are the single source of its defaults.

    - `family`: what it changes: "control", "data", "objective" or "gradient". `losses`: its objectives, in words.
    - `separate`: False sums the objectives and lets DDP reduce the gradient; True keeps one gradient an objective apart
      until `combine`.
    - `accepts`: the kinds of unimodal logits it works with, the preferred one first.
    - `fusions`: the fusions of a late-fusion model that it is defined for; None: any, and early fusion too.
    - `tasks`: the task names it claims. `max_modalities`: the most it is defined for; None where any number will do.
    - `needs_values`: asks for a sweep of the training set each epoch, handed to `on_epoch`.
    - `weights_from_statistics`: `objectives` reads `ctx.statistics`, so under gradient accumulation a first pass without
      gradient has to collect them.

    Under any number of workers: what `objectives` returns are local sums over global counts (`ctx.mean` does that), what
    `statistics` returns are local sums that arrive in `ctx.statistics` summed over workers, and nothing else may differ
    between workers. N workers on a global batch then equal one worker on the same batch.
    """

    class Options(BaseModel):
        """The options of a method and their defaults: unknown ones are errors. Here: none."""

        model_config = ConfigDict(frozen=True, extra="forbid")

    name: ClassVar[str] = ""
    family: ClassVar[Family] = "objective"
    losses: ClassVar[str] = "fused"
    separate: ClassVar[bool] = False
    accepts: ClassVar[tuple[Unimodal, ...]] = ("split", "heads", "coalition")
    fusions: ClassVar[tuple[str, ...] | None] = None
    tasks: ClassVar[tuple[str, ...]] = ("classification",)
    max_modalities: ClassVar[int | None] = None
    needs_values: ClassVar[bool] = False
    weights_from_statistics: ClassVar[bool] = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if cls.__dict__.get("name"):
            REGISTRY[cls.name] = cls

    def __init__(self, **options: Any) -> None:
        try:
            self.options: Any = self.Options(**options)
        except ValidationError as error:
            raise option_error(f"balancer {self.name!r}", self.Options, error) from None

    def backward_passes(self, modalities: int) -> int:
        """How often a step goes backward through the model, with so many modalities all present."""
        return 1

    def before_forward(self, batch: Batch, ctx: StepContext) -> Batch:
        """The batch to train on, such as one with some modalities masked. `ctx` has no outputs yet."""
        return batch

    def rows(self, batch: Batch, ctx: StepContext) -> dict[str, Tensor]:
        """Named row masks bool[B] whose global counts the objectives need, beyond all rows and the rows of a modality."""
        return {}

    def statistics(self, ctx: StepContext) -> dict[str, Tensor]:
        """Local sums, without gradient, of what the method needs to know about the global batch."""
        return {}

    def objectives(self, ctx: StepContext) -> dict[str, Tensor]:
        """The named losses, each a local sum over a global count (`ctx.mean`), the same names on every worker."""
        raise NotImplementedError

    def combine(self, gradients: Gradients, ctx: StepContext) -> Tensor:
        """The gradient [P] to step along, from one gradient an objective [k, P]. Only where `separate`."""
        return gradients.flat.sum(dim=0)

    def modulate(self, gradients: Mapping[str, list[Tensor]], ctx: StepContext) -> None:
        """Change in place the gradients {owner: [tensors]} that the optimiser is about to read."""

    @property
    def changes_update(self) -> bool:
        """Whether `after_step` is to be called: the step then keeps a copy of the parameters."""
        return type(self).after_step is not Balancer.after_step

    def after_step(self, update: Mapping[str, list[Tensor]], ctx: StepContext) -> None:
        """Change in place the update {owner: [tensors]} that the optimiser made; it is then applied instead."""

    def on_epoch(
        self, validation: Mapping[int, Mapping[str, float]], contributions: Mapping[str, float] | None
    ) -> None:
        """After validation, on every worker alike: metrics by coalition id, and the mean contribution of each modality
        on the training set where a sweep of it was made. A cell may be NaN where no row has a modality.
        """

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs: running means, prototypes, ..."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        if state:
            raise NotImplementedError(
                f"{type(self).__name__} has a state_dict but no load_state_dict: a resumed run would lose {', '.join(state)}."
            )

    def check(self, model: MultimodalModel, task: Task) -> None:
        """Raise an `EquipoiseError` where this method is not defined for the model or the task."""
        if task.name not in self.tasks:
            raise EquipoiseError(
                f"Balancer {self.name!r} is defined for {', '.join(self.tasks)}, not for the task {task.name!r}: choose "
                "another balancer (`equipoise list balancers` shows which tasks each accepts)."
            )
        if model.unimodal not in self.accepts:
            raise EquipoiseError(
                f"Balancer {self.name!r} needs unimodal logits of kind {' or '.join(map(repr, self.accepts))}, but the "
                f"model has unimodal={model.unimodal!r}: build it with unimodal={self.accepts[0]!r}."
            )
        if self.fusions is not None and model.fusion_name not in self.fusions:
            raise EquipoiseError(
                f"Balancer {self.name!r} is defined for the fusion {' or '.join(map(repr, self.fusions))}, not for that of the "
                f"model: build it with fusion={self.fusions[0]!r} (model.fusion in a configuration)."
            )
        if self.max_modalities is not None and len(model.modalities) > self.max_modalities:
            raise EquipoiseError(
                f"Balancer {self.name!r} is defined for at most {self.max_modalities} modalities, the model has "
                f"{len(model.modalities)} ({', '.join(model.modalities)}): choose another balancer."
            )


def names() -> list[str]:
    """The registered balancers, in alphabetical order."""
    return sorted(REGISTRY)


def get(name: str, **options: Any) -> Balancer:
    """A balancer by name, with its options.

    Raises:
        EquipoiseError: an unknown name or option (the nearest one is named), or a value out of bounds.
    """
    if name in PLANNED:
        raise EquipoiseError(f"Balancer {name!r} is not there yet: {PLANNED[name]}. Known: {', '.join(names())}.")
    if name not in REGISTRY:
        raise unknown("balancer", name, REGISTRY)
    return REGISTRY[name](**options)
