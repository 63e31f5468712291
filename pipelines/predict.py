"""Predictions for rows of a person's own table, a few hundred in memory at a time."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console

from equipoise.datasets.bad_rows import BadRowError, BadRows, check_choice
from equipoise.datasets.cells import Cells
from equipoise.datasets.decoding import Stored
from equipoise.datasets.foreign import ParquetTable, open_table
from equipoise.models.errors import EquipoiseError
from equipoise.pipelines import predictions
from equipoise.pipelines.files import atomic
from equipoise.pipelines.trained import TrainedModel, load_trained

_ROWS, _BYTES = 256, 1 << 25  # of a batch: rows, and bytes as they come


def predict(
    model: str | Path, rows: str | Path, out: str | Path, console: Console | None = None, on_bad: str = "stop"
) -> int:
    """Predict every row of a table, and write a row each to `out`; returns how many.

    Args:
        model: a run folder, or a folder that `export` wrote.
        rows: a csv or Parquet file, or a folder, with the columns that the model was trained on; no target is needed, an
            empty cell or a column that is not there is a modality that is absent.
        out: a .csv or .parquet file (masks: .parquet): source_id, what `predictions.fields` says, present (names joined by +).
        on_bad: "stop" lists the rows that cannot be used and writes nothing; "skip" leaves them out and lists them.

    Raises:
        EquipoiseError: what a person can mend, in a sentence.
    """
    console = console or Console()
    skip, out = check_choice(on_bad), Path(out)
    if out.suffix.lower() not in _WRITERS:
        raise EquipoiseError(f"{out} must end in {' or '.join(_WRITERS)}: it says what is written.")
    if out.exists() and Path(rows).exists() and out.samefile(rows):
        raise EquipoiseError(f"{out} is the table of the rows themselves: name another file with --out.")
    trained = load_trained(model)
    if trained.config.task.kind == "segmentation" and out.suffix.lower() == ".csv":
        raise EquipoiseError(f"{out} cannot hold masks: name a .parquet file with --out.")
    bad = BadRows(skip)
    written = 0
    table, cells = _opened(trained, Path(rows), console)
    try:
        with atomic(out) as part, _WRITERS[out.suffix.lower()](part, _schema(trained)) as write:
            for ids, stored in _batches(trained, table, cells, bad):
                if not bad.refused:
                    write(_predicted(trained, ids, stored))
                    written += len(ids)
            bad.check()
            if not bad.rows:
                raise EquipoiseError(f"{rows} holds no rows.")
    except OSError as error:
        raise EquipoiseError(f"Cannot write {out} ({error.strerror}): name another file with --out.") from error
    for one in bad.skipped[:20]:
        console.print(f"left out: {one.source_id}: {one.reason}", style="yellow", markup=False, highlight=False)
    if bad.count:
        console.print(f"{bad.count} of {bad.rows} rows left out.", style="yellow")
    console.print(f"{out}: {written} rows predicted", soft_wrap=True, highlight=False)
    return written


def _opened(trained: TrainedModel, path: Path, console: Console) -> tuple[Iterator[dict[str, Any]], Cells]:
    """The rows of a table with the columns that there are; says which modalities are absent everywhere."""
    table = open_table(path)
    there = set(table.columns)
    absent = [m for m in trained.modalities if not there & set(m.sources)]
    if len(absent) == len(trained.modalities):
        raise EquipoiseError(
            f"{path} has none of the columns {', '.join(c for m in absent for c in m.sources)} that the model was trained on: "
            f"it has {', '.join(table.columns)}."
        )
    for m in trained.modalities:
        lacking = [column for column in m.sources if column not in there]
        if lacking and m not in absent:
            raise EquipoiseError(
                f"{path} has no column {lacking[0]!r}, one of the {len(m.sources)} that make the modality {m.name!r}: add it, "
                "or leave all of them out where it is absent."
            )
    for m in absent:
        told = f"no column {m.sources[0]!r} in {path.name}: modality {m.name!r} counts as absent"
        console.print(told, style="yellow", highlight=False, markup=False)
    key = trained.config.sample_key
    if key and key not in there:
        console.print(
            f"no column {key!r} in {path.name}: rows are numbered", style="yellow", highlight=False, markup=False
        )
    if isinstance(table, ParquetTable):
        table.check_kinds(trained.modalities)
    wanted = dict.fromkeys([*([key] if key else []), *(c for m in trained.modalities for c in m.sources)])
    return table.rows([column for column in wanted if column in there]), table.cells


def _batches(
    trained: TrainedModel, rows: Iterator[dict[str, Any]], cells: Cells, bad: BadRows
) -> Iterator[tuple[list[str], list[Stored]]]:
    """Ids and checked values of the rows that can be used."""
    ids: list[str] = []
    stored: list[Stored] = []
    size = 0
    for number, row in enumerate(rows):
        bad.rows += 1
        try:
            source_id, values = trained.stored(row, number, cells)
        except BadRowError as error:
            bad.add(error)
            continue
        ids.append(source_id)
        stored.append(values)
        size += sum(len(value) for value in values if value is not None)
        if len(stored) == _ROWS or size >= _BYTES:
            yield ids, stored
            ids, stored, size = [], [], 0
    if stored:
        yield ids, stored


def _schema(trained: TrainedModel) -> pa.Schema:
    spec = trained.config.task
    return pa.schema(
        [pa.field("source_id", pa.string()), *predictions.fields(spec), pa.field("present", pa.string())],
        metadata=predictions.metadata(spec),
    )


def _predicted(trained: TrainedModel, ids: list[str], stored: list[Stored]) -> pa.Table:
    batch = trained.batch(stored)
    names = trained.model.modalities
    columns = [
        pa.array(ids, pa.string()),
        *predictions.columns(trained.config.task, trained.task, trained.logits(batch)),
        pa.array(
            ["+".join(n for n, here in zip(names, row, strict=True) if here) for row in batch["present"].tolist()]
        ),
    ]
    return pa.table(columns, schema=_schema(trained))


Write = Callable[[pa.Table], None]


@contextmanager
def _csv(path: Path, schema: pa.Schema) -> Iterator[Write]:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(schema.names)
        # So many digits give a float32, or a float64, back exactly.
        exact = {pa.float32(): ".9", pa.float64(): ".17"}
        written = {field.name: exact.get(field.type, "") for field in schema}

        def write(table: pa.Table) -> None:
            for row in table.to_pylist():
                writer.writerow([f"{row[name]:{digits}g}" if digits else row[name] for name, digits in written.items()])

        yield write


@contextmanager
def _parquet(path: Path, schema: pa.Schema) -> Iterator[Write]:
    with pq.ParquetWriter(path, schema) as writer:
        yield writer.write_table


_WRITERS = {".csv": _csv, ".parquet": _parquet}
