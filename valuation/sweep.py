"""One pass over a batch gives its score table: how good the prediction of every coalition of modalities is."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from equipoise.models.batch import Batch, check_batch
from equipoise.models.contract import MultimodalModel
from equipoise.models.errors import EquipoiseError
from equipoise.models.task import Task
from equipoise.valuation.coalitions import check_modalities

Observe = Callable[[int, Tensor, Tensor], None]


def sweep(
    model: MultimodalModel, batch: Batch, task: Task, shortcut: bool = False, observe: Observe | None = None
) -> Tensor:
    """The score table [B, 2**M - 1] of a batch: `task.benefit` of every coalition's prediction, on the model's device.

    bool for a task of 0/1 benefits, else float; False / NaN where a coalition has no present modality of the row.
    `observe(coalition, logits [B, K], rows bool[B])` sees each coalition's logits as they come (for metrics, so that valuing
    and evaluating are one pass); `rows` are those that have a modality of the coalition, logits of others mean nothing.
    See `coalition_logits` for what is computed and for `shortcut`.
    """
    columns = []
    for coalition, logits in coalition_logits(model, batch, shortcut):
        rows = _effective(batch["present"], coalition)[1]
        benefit = task.benefit(logits, batch["target"])
        columns.append(benefit.masked_fill(~rows, torch.nan) if task.graded else (benefit != 0) & rows)
        if observe is not None:
            observe(coalition, logits, rows)
    return torch.stack(columns, dim=1)


@torch.no_grad()
def coalition_logits(model: MultimodalModel, batch: Batch, shortcut: bool = False) -> Iterator[tuple[int, Tensor]]:
    """Yields (coalition id, logits [B, K]) for ids 1 .. 2**M - 1, in eval mode, without gradient.

    - Late fusion: each encoder runs once, then `fuse` a coalition: bit for bit what `model(inputs, present & members)` gives.
    - `shortcut=True`, for a model with a `linear_head`: logits are sums of `linear_terms`, M additions a coalition. Equal
      in real arithmetic only: a near tie may fall the other way.
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
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        logits = _late(model, batch, shortcut) if model.late_fusion else _early(model, batch)
        for coalition in range(1, 2 ** len(model.modalities)):
            yield coalition, logits(coalition)
    finally:
        for module, training in modes:
            module.training = training


def _early(model: MultimodalModel, batch: Batch) -> Callable[[int], Tensor]:
    return lambda coalition: model(batch["inputs"], _effective(batch["present"], coalition)[0]).logits


def _late(model: MultimodalModel, batch: Batch, shortcut: bool) -> Callable[[int], Tensor]:
    features = model.features(batch["inputs"], batch["present"])
    if not shortcut:
        return lambda coalition: model.fuse(features, _effective(batch["present"], coalition)[0])
    bias, terms, absent = model.linear_terms(features)

    def added(coalition: int) -> Tensor:
        there = _effective(batch["present"], coalition)[0]
        total = bias
        for m, name in enumerate(model.modalities):
            total = total + torch.where(there[:, m, None], terms[name], absent[name])
        return total

    return added


def _effective(present: Tensor, coalition: int) -> tuple[Tensor, Tensor]:
    """What the model is given for a coalition, bool [B, M], and the rows bool [B] that have any of it."""
    inside = torch.tensor([bool(coalition >> m & 1) for m in range(present.shape[1])], device=present.device)
    both = present & inside
    rows = both.any(dim=1)
    return torch.where(rows[:, None], both, present), rows
