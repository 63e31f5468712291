"""Which rows have which modality, and running an encoder on those rows only."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from inspect import Parameter, signature

import torch
from torch import Tensor, nn

from equipoise.models.errors import EquipoiseError, unknown

Run = Callable[[Tensor, Tensor | None], tuple[Tensor, ...]]


def check_names(modalities: Iterable[str]) -> tuple[str, ...]:
    """The names as a tuple. Raises an `EquipoiseError` for one that cannot name a modality of a model."""
    names = tuple(modalities)
    if not names:
        raise EquipoiseError("A multimodal model needs at least one modality: give a module for each, by name.")
    taken = {*dir(nn.ModuleDict()), *dir(nn.ParameterDict())}
    for name in names:
        if names.count(name) > 1:
            raise EquipoiseError(f"Modality name {name!r} is there twice: names must differ.")
        if not name.isidentifier() or name in taken:
            raise EquipoiseError(
                f"Modality name {name!r} is not a plain identifier, or torch's modules use it themselves: rename the "
                "modality, for example to 'audio'."
            )
        if name in ("shared", "head", "rows", "fused"):
            raise EquipoiseError(
                f"Modality name {name!r} is the name of a parameter group, a count or an objective: rename the modality."
            )
        if f"{name}_length" in names:
            raise EquipoiseError(
                f"Modality name {name + '_length'!r} is where the lengths of {name!r} stand: rename it."
            )
    return names


def check_known(argument: str, names: Iterable[str], modalities: Sequence[str]) -> None:
    """Raise an `EquipoiseError` for a name under `argument` that is no modality of the model."""
    for name in names:
        if name not in modalities:
            raise unknown(f"modality in {argument}", name, modalities)


def check_inputs(inputs: Mapping[str, Tensor], present: Tensor, modalities: Sequence[str]) -> None:
    """Raise an `EquipoiseError` for a missing modality, or a `present` of another shape than [B, M]."""
    for m in modalities:
        if m not in inputs:
            raise EquipoiseError(
                f"inputs lack modality {m!r}: they hold {', '.join(inputs) or 'nothing'}. Where no row has it, give its "
                "absent value and mark it in `present`."
            )
    if present.dtype != torch.bool or present.ndim != 2 or present.shape[1] != len(modalities):
        raise EquipoiseError(
            f"present must be bool [B, {len(modalities)}], one column each for {', '.join(modalities)}; found "
            f"{present.dtype} {tuple(present.shape)}."
        )


def takes_length(module: nn.Module) -> bool:
    """Whether a module's `forward` has room for a second argument, `length`."""
    parameters = signature(module.forward).parameters.values()
    positional = [p for p in parameters if p.kind in (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)]
    return len(positional) > 1 or any(p.kind is Parameter.VAR_POSITIONAL for p in parameters)


def call(module: nn.Module, modality: str, x: Tensor, length: Tensor | None) -> Tensor | tuple[Tensor, Tensor]:
    """`module(x)`, or `module(x, length)` where the modality has lengths."""
    if length is not None and not takes_length(module):
        raise EquipoiseError(
            f"The {type(module).__name__} of modality {modality!r} would read padding as data: give its forward a second "
            "argument, `length=None`."
        )
    found: Tensor | tuple[Tensor, Tensor] = module(x) if length is None else module(x, length)
    return found


def on_rows(run: Run, x: Tensor, length: Tensor | None, has: Tensor, count: int) -> tuple[Tensor, ...] | None:
    """Run a module on the `count` rows where `has` bool[B] is True.

    Returns its results with B rows, zeros (or False) where a row was left out; None, without running it, where no row
    has the modality. Where all rows have it nothing is copied.
    """
    if count == 0:
        return None
    if count == len(has):
        return run(x, length)
    index = has.nonzero().squeeze(1)
    results = run(x.index_select(0, index), None if length is None else length.index_select(0, index))
    return tuple(r.new_zeros(len(has), *r.shape[1:]).index_copy(0, index, r) for r in results)


class AbsentValues(nn.Module):
    """What stands for an absent modality, as the input of its encoder: the given values, else zeros with length 0.

    A given value of a sequence is empty where it is all zeros and counts in full elsewhere, unless `<modality>_length`
    is given beside it. Given values are buffers, so they travel with the model's weights.
    """

    def __init__(self, modalities: Sequence[str], values: Mapping[str, Tensor] | None) -> None:
        super().__init__()
        values = dict(values or {})
        check_known("absent_values", (n for n in values if n.removesuffix("_length") not in modalities), modalities)
        for name, value in values.items():
            if name in modalities:
                value = torch.as_tensor(value).detach().clone()
                full = len(value) if value.ndim and bool(value.any()) else 0
                self.register_buffer(name, value)
                self.register_buffer(f"{name}_length", torch.as_tensor(values.get(f"{name}_length", full)))
            elif name.removesuffix("_length") not in values:
                raise EquipoiseError(
                    f"absent_values has {name!r} but no {name.removesuffix('_length')!r}: give both, or neither."
                )

    def forward(self, modality: str, x: Tensor, length: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """One row (x [1, ...], length [1]) like those of a batch."""
        buffers = dict(self.named_buffers())
        if modality not in buffers:
            return x.new_zeros(1, *x.shape[1:]), None if length is None else length.new_zeros(1)
        value = buffers[modality]
        if value.shape != x.shape[1:]:
            raise EquipoiseError(
                f"absent_values[{modality!r}] has shape {tuple(value.shape)}, but a row of the batch has "
                f"{tuple(x.shape[1:])}: give an absent value of the row's shape."
            )
        row = value.to(x)[None]
        return row, None if length is None else buffers[f"{modality}_length"].to(length).reshape(1)
