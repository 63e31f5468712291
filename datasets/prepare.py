"""`prepare`: from any source to a data set of ours, in two passes that never hold more than a part of it.

Pass 1 checks and encodes each row and puts it into a bucket by the hash of (seed, its id). Pass 2 takes the buckets in
order, sorts each and writes the shards. So rows end in a random order that the seed fixes, whatever order they came in,
and two rows of one id meet in the same bucket.
"""

import inspect
import os
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any, Literal

from equipoise.datasets import sources
from equipoise.datasets.bad_rows import check_choice
from equipoise.datasets.buckets import Buckets
from equipoise.datasets.cells import require
from equipoise.datasets.foreign import ParquetTable, open_table
from equipoise.datasets.manifest import Manifest, check_layout, check_modalities
from equipoise.datasets.sources import Source
from equipoise.datasets.staging import Keys, Staging
from equipoise.datasets.task_spec import task_spec
from equipoise.datasets.writing import folder_in_place, write_shards
from equipoise.models.errors import EquipoiseError, unknown
from equipoise.models.modality import Modality


def prepare(
    source: Any,
    out: str | os.PathLike[str],
    *,
    seed: int = 0,
    modalities: Sequence[Modality] | None = None,
    task: Any = None,
    task_labels: Sequence[str] | None = None,
    target: str = "target",
    sample_key: str | None = "source_id",
    split: str | None = "split",
    group: str | None = None,
    fractions: tuple[float, float, float] = (0.7, 0.15, 0.15),
    chunk_rows: int = 256,
    shard_rows: int = 4096,
    on_bad: Literal["stop", "skip"] = "stop",
    overwrite: bool = False,
    **options: Any,
) -> Manifest:
    """Write `source` as a data set of ours into the folder `out`, and return its manifest.

    `source`: the name of a registered data set (with its `options`); a csv or Parquet file, or a folder with one csv or
    with Parquet files; or a `ray.data.Dataset`. All but the first need `modalities`, and have a column `target` (class
    names, or indices), a column `sample_key` (the row's own id; None: the rows are numbered) and perhaps `split` (train,
    validation, test) and `group` (rows that must not straddle splits). In files, an image or audio column holds bytes, or
    names files, relative to the table. Without a split column, or with `split=None`, the hash of (seed, group or id)
    splits the rows by `fractions` into train, validation and test. `task`: "classification" (the default), "multilabel",
    "regression" or "segmentation", or its choices as a mapping (`TaskSpec`; docs/tasks.md). `task_labels`: the names of its
    outputs, such as the class names in the order of their indices; default: those of the train rows, sorted.
    `on_bad="stop"` refuses a source with rows that cannot be used, listing them; `"skip"` leaves them out, and lists them in
    the manifest.

    Everything that is wrong raises an `EquipoiseError`, and then `out` is as it was.
    """
    check_layout(chunk_rows, shard_rows)
    if not isinstance(seed, int) or seed < 0:
        raise EquipoiseError(f"seed must be an integer of 0 or more, found {seed!r}.")
    skip = check_choice(on_bad)
    numbers = isinstance(fractions, Sequence) and all(isinstance(share, int | float) for share in fractions)
    if not numbers or len(fractions) != 3 or min(fractions) <= 0 or abs(sum(fractions) - 1) > 1e-6:
        raise EquipoiseError(
            f"fractions must be three positive shares of train, validation and test that sum to 1, found {fractions}."
        )
    keys = Keys(sample_key, target, split, group)
    found = _source(source, keys, tuple(modalities or ()), seed, options)
    check_modalities(found.modalities)
    spec = task_spec(task, task_labels if task_labels is not None else found.labels, found.task)

    if spec is not None:
        spec.check_modalities(found.modalities)
    with folder_in_place(Path(out), overwrite) as folder:
        rows, keys = _first_look(found, keys)
        staging = Staging(found.modalities, found.cells, spec, keys, seed, fractions, skip)
        with tempfile.TemporaryDirectory(prefix="buckets-", dir=folder) as scratch:
            buckets = Buckets(Path(scratch), found.modalities, spec)
            for table in staging.tables(rows):
                buckets.add(table)
            spec = staging.census.spec(found.name)
            splits, fitted = write_shards(buckets.sorted(), folder, found.modalities, spec, chunk_rows, shard_rows)
        manifest = Manifest(
            name=found.name,
            task=spec,
            modalities=found.modalities,
            fitted=fitted,
            splits=splits,
            chunk_rows=chunk_rows,
            shard_rows=shard_rows,
            seed=seed,
            sample_key=keys.sample,
            terms=found.terms,
            skipped=tuple(sorted(staging.bad.skipped, key=lambda s: s.source_id)),
        )
        manifest.save(folder)
    return manifest


def _source(source: Any, keys: Keys, modalities: tuple[Modality, ...], seed: int, options: dict[str, Any]) -> Source:
    # A name comes first: a folder that happens to be called digits is given as ./digits.
    if isinstance(source, str) and source in sources.names():
        if sources.takes(source, "seed"):
            options = {"seed": seed, **options}
        found = sources.load(source, **options)
        return replace(found, modalities=modalities or found.modalities)
    is_ray = hasattr(source, "iter_rows")
    if not is_ray:
        if not isinstance(source, str | os.PathLike):
            raise EquipoiseError(
                "A source is the name of a data set, a path to a csv or to Parquet files, or a Ray Data set, not "
                f"{type(source).__name__}."
            )
        name = isinstance(source, str) and Path(source).name == source and not Path(source).suffix
        if name and not Path(source).exists():
            raise unknown("data set", str(source), sources.names())
        table = open_table(Path(source))
    if options:
        raise unknown("option of prepare", next(iter(options)), inspect.signature(prepare).parameters)
    if not modalities:
        raise EquipoiseError(
            "Your own data needs modalities=[Modality(name, shape=...), ...]: say what each column is, or let "
            f"`equipoise init{'' if is_ray else f' {source}'}` write a data.yaml that does."
        )
    if is_ray:
        return Source("ray", modalities, iter(source.iter_rows()))
    needed = [c for c in (keys.sample, keys.target, keys.group) if c] + [c for m in modalities for c in m.sources]
    rows = table.rows(list(dict.fromkeys(needed)), [keys.split] if keys.split else [])
    if isinstance(table, ParquetTable):
        table.check_kinds(modalities)
    return Source(Path(source).stem, modalities, rows, cells=table.cells)


def _first_look(source: Source, keys: Keys) -> tuple[Iterable[dict[str, Any]], Keys]:
    """The rows, and the keys as the first row has them: whether there is a split, or a source's own groups."""
    first = next(source.rows, None)
    if first is None:
        raise EquipoiseError(f"{source.name!r} holds no rows.")
    require([c for c in (keys.sample, keys.target, keys.group) if c], first, f"{source.name!r}")
    require([column for m in source.modalities for column in m.sources], first, f"{source.name!r}")
    if keys.split not in (None, "split"):  # asked for by name, so it must be there
        require([str(keys.split)], first, f"{source.name!r}")
    split = keys.split if keys.split in first else None
    group = keys.group or ("group" if source.grouped else None)
    return chain([first], source.rows), replace(keys, split=split, group=group)
