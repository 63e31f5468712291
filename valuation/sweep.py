"""One pass over a batch gives its score table: how good the prediction of every coalition of modalities is."""

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from equipoise.models.batch import Batch, check_batch
from equipoise.models.contract import MultimodalModel
from equipoise.models.errors import EquipoiseError
from equipoise.models.task import Task
from equipoise.valuation.coalitions import check_modalities, members

Observe = Callable[[int, Tensor, Tensor], None]

_BLOCK = 2**22  # logits that coalitions share at once: 16 MiB of float32


def sweep(
    model: MultimodalModel, batch: Batch, task: Task, shortcut: bool = False, observe: Observe | None = None
) -> Tensor:
    """The score table [B, 2**M - 1] of a batch: `task.benefit` of every coalition's prediction, on the model's device.

    bool for a task of 0/1 benefits, else float; False / NaN where a coalition has no present modality of the row.
    `observe(coalition, logits [B, K], rows bool[B])` sees each coalition's logits as they come (for metrics, so that valuing
    and evaluating are one pass); `rows` are those that have a modality of the coalition, logits of others mean nothing.
    See `coalition_logits` for what is computed and for `shortcut`.
    """
    pattern = _pattern(batch["present"])
    columns = []
    for coalition, logits in coalition_logits(model, batch, shortcut):
        columns.append(task.benefit(logits, batch["target"]))
        if observe is not None:
            observe(coalition, logits, (pattern & coalition) != 0)
    benefit = torch.stack(columns, dim=1)
    there = (pattern[:, None] & torch.arange(1, benefit.shape[1] + 1, device=pattern.device)) != 0
    return benefit.masked_fill(~there, torch.nan) if task.graded else (benefit != 0) & there


@torch.no_grad()
def coalition_logits(model: MultimodalModel, batch: Batch, shortcut: bool = False) -> Iterator[tuple[int, Tensor]]:
    """Yields (coalition id, logits [B, K]) for ids 1 .. 2**M - 1, in eval mode, without gradient.

    - Late fusion: each encoder runs once, then `fuse` a coalition: bit for bit what `model(inputs, present & members)` gives.
    - `shortcut=True`, for a model with a `linear_head`: logits are sums of `linear_terms`, about two additions a coalition.
      Equal in real arithmetic only: a near tie may fall the other way.
    - Early fusion: one full pass a coalition.

    Logits of a row without a present modality of the coalition mean nothing (the row runs with all it has, since a model
    need not know what to do with nothing). Every module's training mode is put back when the iteration ends.
    """
    check_modalities(len(model.modalities))
    check_batch(batch, model.modalities)
    if shortcut and not model.linear_head:
        raise EquipoiseError(
            f"shortcut=True adds the terms of a linear head, and {type(model).__name__} has none: use shortcut=False."
        )
    training = [module for module in model.modules() if module.training]
    if training:
        model.eval()
    try:
        if not model.late_fusion:
            yield from _early(model, batch)
        else:
            features = model.features(batch["inputs"], batch["present"])
            yield from (_added if shortcut else _fused)(model, features, batch["present"])
    finally:
        for module in training:
            module.training = True


def _early(model: MultimodalModel, batch: Batch) -> Iterator[tuple[int, Tensor]]:
    for coalition, present in _effective(batch["present"]):
        yield coalition, model(batch["inputs"], present).logits


def _fused(model: MultimodalModel, features: Mapping[str, Tensor], present: Tensor) -> Iterator[tuple[int, Tensor]]:
    for coalition, there in _effective(present):
        yield coalition, model.fuse(features, there)


def _added(model: MultimodalModel, features: Mapping[str, Tensor], present: Tensor) -> Iterator[tuple[int, Tensor]]:
    """bias + term of modality 0 + term of modality 1 + ..., in this order, so that coalitions share their first sums: one
    addition a modality makes [2^m, B, K] into [2^(m + 1), B, K], as far as memory goes.
    """
    bias, terms, absent = model.linear_terms(features)
    inside = [torch.where(present[:, m, None], terms[name], absent[name]) for m, name in enumerate(model.modalities)]
    outside = [absent[name] for name in model.modalities]
    pattern, complete = _pattern(present), sum(inside, bias)
    block, first = bias.expand(1, *inside[0].shape), 0
    while first < len(inside) and 2 * block.numel() <= _BLOCK:
        block = torch.cat([block + outside[first], block + inside[first]])
        first += 1
    for others in range(2 ** (len(inside) - first)):
        whole = block
        for m in range(first, len(inside)):
            whole = whole + (inside[m] if others >> (m - first) & 1 else outside[m])
        ids = (others << first) + torch.arange(len(whole), device=present.device)
        there = (pattern & ids[:, None]) != 0
        for coalition, logits in zip(ids.tolist(), torch.where(there[:, :, None], whole, complete)):
            if coalition:
                yield coalition, logits


def _effective(present: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Each coalition, and what the model is given for it, bool [B, M]: a row that has nothing of it gets all that it has."""
    coalitions = enumerate(torch.from_numpy(members(present.shape[1])).to(present.device), start=1)
    if bool(present.all()):
        # The usual case: nothing to work out. Beside light encoders every small operation counts.
        yield from ((coalition, inside.expand_as(present)) for coalition, inside in coalitions)
        return
    pattern = _pattern(present)
    for coalition, inside in coalitions:
        yield coalition, torch.where(((pattern & coalition) != 0)[:, None], present & inside, present)


def _pattern(present: Tensor) -> Tensor:
    """What a row has, as the id of a coalition: int64 [B]."""
    return (present.long() << torch.arange(present.shape[1], device=present.device)).sum(dim=1)
