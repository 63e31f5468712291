"""A model under impairment: each modality missing, each noisy, and the curves over how much."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from rich.table import Table
from torch import Tensor

from equipoise.datasets.impairment import Impairment, missing_rows
from equipoise.datasets.reading import Reader
from equipoise.models import Batch, MultimodalModel, Task, to_batch
from equipoise.models.errors import EquipoiseError
from equipoise.pipelines.tables import table

if TYPE_CHECKING:
    import pandas as pd

RATIOS = (0.2, 0.4, 0.6, 0.8, 1.0)
SEVERITIES = (1, 2, 3, 4, 5)

#: One condition: ("full", "", 0), ("missing", modality, ratio) or ("noisy", modality, severity).
Condition = tuple[str, str, float]


@torch.no_grad()
def impaired(
    model: MultimodalModel,
    task: Task,
    reader: Reader,
    split: str,
    share: float = 1.0,
    seed: int = 0,
    batch_size: int = 256,
    ratios: Sequence[float] = RATIOS,
    severities: Sequence[int] = SEVERITIES,
) -> pd.DataFrame:
    """Metrics of a model under every condition: columns condition, modality, level, metric, value, rows, kept.

    Args:
        model: in eval mode, on its device.
        task: of the data set.
        reader: of the data set.
        split: to evaluate on.
        share: of the rows that get noise.
        seed: of which rows lack what, and of the noise.
        batch_size: rows a pass.
        ratios: shares of the rows that lack a modality.
        severities: of the noise, 1 to 5.

    A row that has nothing but the missing modality keeps it; `kept` counts them. What is missing costs a head call a
    modality, noise one pass of the noisy modality's encoder; early fusion, a whole pass each.
    """
    import pandas as pd

    names, rows = reader.manifest.names, reader.manifest.split(split).rows
    device = next(model.parameters()).device
    noisy = {(m, s): Impairment(noise={m: int(s)}, share=share, seed=seed) for m in names for s in severities}
    lacking = {
        (m, r): torch.from_numpy(missing_rows(r, m, split, rows, seed)).to(device) for m in names for r in ratios
    }
    conditions: list[Condition] = [("full", "", 0.0)]
    conditions += [("missing", m, float(r)) for m, r in lacking] + [("noisy", m, float(s)) for m, s in noisy]
    metrics = {c: task.metrics(thorough=True) for c in conditions}
    loss, kept = dict.fromkeys(conditions, 0.0), dict.fromkeys(conditions, 0)

    for at in range(0, rows, batch_size):
        ids = np.arange(at, min(at + batch_size, rows))
        batch = _batch(reader.read(split, ids), names, device)
        target, present = batch["target"], batch["present"]

        def add(condition: Condition, logits: Tensor, target: Tensor = target) -> None:
            metrics[condition].update(logits.float().cpu(), target.cpu())
            loss[condition] += float(task.losses(logits.float(), target).double().sum())

        passes = _Passes(model, batch)
        full = passes.logits(present)
        add(("full", "", 0.0), full)
        for i, m in enumerate(names):
            left = present.clone()
            left[:, i] = False
            nothing = ~left.any(dim=1)
            without = passes.logits(torch.where(nothing[:, None], present, left))
            for r in ratios:
                lacks = lacking[m, r][at : at + len(ids)]
                shape = (-1, *(1,) * (full.ndim - 1))
                add(("missing", m, float(r)), torch.where(lacks.reshape(shape), without, full))
                kept["missing", m, float(r)] += int((lacks & nothing & present[:, i]).sum())
            only = np.arange(len(names)) == i
            for s in severities:
                changed = _batch(reader.read(split, ids, only, noisy[m, s]), names, device)
                add(("noisy", m, float(s)), passes.changed(m, changed["inputs"]))

    out = []
    for c in conditions:
        found = {task.headline: 0.0, **{k: float(v) for k, v in metrics[c].compute().items()}, "loss": loss[c] / rows}
        out += [(*c, name, value, rows, kept[c]) for name, value in found.items()]
    return pd.DataFrame(out, columns=["condition", "modality", "level", "metric", "value", "rows", "kept"])


class _Passes:
    """Logits of one batch with other modalities present, or with another input of one: late fusion encodes once."""

    def __init__(self, model: MultimodalModel, batch: Batch) -> None:
        self.model, self.batch = model, batch
        self.features = dict(model.features(batch["inputs"], batch["present"])) if model.late_fusion else {}

    def logits(self, present: Tensor) -> Tensor:
        if self.model.late_fusion:
            return self.model.fuse(self.features, present)
        return self.model(self.batch["inputs"], present).logits

    def changed(self, modality: str, inputs: Mapping[str, Tensor]) -> Tensor:
        """With the input (and its length) of one modality taken from `inputs`."""
        there = {k: x for k, x in inputs.items() if k in (modality, f"{modality}_length")}
        mixed = {**self.batch["inputs"], **there}
        present = self.batch["present"]
        if not self.model.late_fusion:
            return self.model(mixed, present).logits
        only = torch.zeros_like(present)
        at = self.model.modalities.index(modality)
        only[:, at] = present[:, at]
        features = {**self.features, modality: self.model.features(mixed, only)[modality]}
        return self.model.fuse(features, present)


def _batch(columns: Mapping[str, Any], names: Sequence[str], device: torch.device) -> Batch:
    return to_batch({**columns, "copy": np.zeros(len(columns["sample_id"]), np.int16)}, names, device)


def avg_and_gap(scores: Sequence[float]) -> tuple[float, float]:
    """Mean of the scores under one kind of impairment, one a modality, and the largest difference between two of them
    (Kwon et al., NAACL 2025, Table 1: for two modalities |score(image impaired) - score(text impaired)|).
    """
    if not scores:
        raise EquipoiseError("Avg and Gap need the score of at least one impaired modality, found none.")
    return float(np.mean(scores)), float(np.max(scores) - np.min(scores))


def impaired_table(found: pd.DataFrame, severity: int = 3) -> Table:
    """Full, every modality missing in all rows, every modality noisy, and Avg and Gap of both, for every metric."""
    names = list(dict.fromkeys(found["metric"]))
    cells = {(c, m, level, k): v for c, m, level, k, v in found.iloc[:, :5].itertuples(index=False)}
    modalities = [m for m in dict.fromkeys(found["modality"]) if m]
    body: list[list[Any]] = [["full", *(cells["full", "", 0.0, k] for k in names)]]
    for condition, level in (("missing", 1.0), ("noisy", float(severity))):
        each = {m: [cells[condition, m, level, k] for k in names] for m in modalities}
        body += [[f"{condition} {m}", *scores] for m, scores in each.items()]
        pairs = [avg_and_gap(scores) for scores in zip(*each.values(), strict=True)]
        body += [[f"{condition} Avg", *(p[0] for p in pairs)], [f"{condition} Gap", *(p[1] for p in pairs)]]
    rows, kept = int(found["rows"].iloc[0]), found[found["level"] == 1.0].groupby("modality")["kept"].max()
    left = ", ".join(f"{n} rows have only {m} and keep it" for m, n in kept.items() if n)
    title = f"{rows} rows; missing: in every row; noise: severity {severity} of 5" + (f"; {left}" if left else "")
    return table(title, ["condition", *names], body)


def curve_table(found: pd.DataFrame, headline: str, condition: str) -> Table:
    """The headline over the share of rows that lack a modality, or over the severity of its noise."""
    some = found[(found["metric"] == headline) & (found["condition"].isin([condition, "full"]))]
    full = float(some[some["condition"] == "full"]["value"].iloc[0])
    wide = some[some["condition"] == condition].pivot(index="modality", columns="level", values="value")
    wide = wide.loc[[m for m in dict.fromkeys(some["modality"]) if m]]
    what = "missing in a share of the rows" if condition == "missing" else "noisy, by severity"
    rows = [[m, full, *map(float, line)] for m, line in zip(wide.index, wide.to_numpy(), strict=True)]
    return table(f"{headline}, {what}", ["modality", "0", *(f"{level:g}" for level in wide.columns)], rows)
