"""One short run of each task that is no single-label classification, made without Ray, and its rows as a person has them."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from light_runs import light_run

from equipoise import Run
from equipoise.datasets import sources
from equipoise.datasets.prepare import prepare

KINDS = {"multilabel": "digit-attributes", "regression": "diabetes", "segmentation": "volumes"}
OPTIONS = {"segmentation": {"volumes": 40, "size": 8}}
CONFIGS = {
    "multilabel": {"batch_size": 64, "max_steps": 60, "optimizer": {"lr": 0.005}},
    "regression": {"batch_size": 32, "max_steps": 40, "optimizer": {"lr": 0.005}},
    "segmentation": {"batch_size": 8, "max_steps": 16, "optimizer": {"lr": 0.01}},
}


def task_run(folder: Path, kind: str) -> tuple[Run, Path]:
    """(the run, a Parquet file of all its raw rows)"""
    name, options = KINDS[kind], OPTIONS.get(kind, {})
    prepare(name, folder / "data", **options)
    rows = [
        {k: v.tolist() if hasattr(v, "tolist") else v for k, v in row.items()}
        for row in sources.load(name, **options).rows
    ]
    pq.write_table(pa.Table.from_pylist(rows), folder / "rows.parquet")
    return light_run(folder / "run", folder / "data", **CONFIGS[kind]), folder / "rows.parquet"
