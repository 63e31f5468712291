"""Rows of numbers that grow with a run: metrics.parquet (a row an epoch) and steps.parquet (a row a step)."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from equipoise.datasets.opening import open_parquet
from equipoise.pipelines.files import atomic


class History:
    """A table of rows, kept in a Parquet file that is always whole.

    Args:
        path: the file.
        keep: on opening, rows of an interrupted attempt for which this is False are cut.
    """

    def __init__(self, path: Path, keep: Callable[[Mapping[str, Any]], bool] = lambda row: True) -> None:
        self.path = path
        self.rows: list[dict[str, Any]] = []
        if path.exists():
            self.rows = [row for row in open_parquet(path).read().to_pylist() if keep(row)]

    def append(self, row: Mapping[str, Any]) -> None:
        """Add a row; columns may differ from those of earlier rows (absent ones are null)."""
        self.rows.append(dict(row))

    def write(self) -> None:
        """Write the file anew."""
        columns = dict.fromkeys(key for row in self.rows for key in row)
        table = pa.table({key: [row.get(key) for row in self.rows] for key in columns})
        with atomic(self.path) as part:
            pq.write_table(table, part)
