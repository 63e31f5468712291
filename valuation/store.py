"""The values of a sweep on disk: a folder of Parquet files, one a chunk, readable by pandas and DuckDB without us.

    sample_id int64, source_id string,
    coalitions   0/1 benefits: uint8 up to M = 3, else fixed-size binary; bit c - 1 (little-endian) = coalition c is right.
                 Graded: list<float32>, entry c - 1. Read only together with `present`.
    present      bits of the present modalities, uint8 (uint16 above M = 8)
    contribution_<modality> float64 (NaN: absent), copies_<modality> uint8 (the bins rule; 0 for graded benefits)

What the values are values *of* (`StoreInfo`) stands in each file's schema metadata, as JSON under the key `equipoise`.
"""

import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from torch import Tensor

from equipoise.models.errors import EquipoiseError, unknown
from equipoise.valuation.atomic import replacing
from equipoise.valuation.coalitions import as_array, bits, check_modalities, from_bits, num_modalities_of, presence
from equipoise.valuation.copies import copies
from equipoise.valuation.shapley import shapley
from equipoise.valuation.values import Values, pack, unpack

log = logging.getLogger(__name__)

SCHEMA_VERSION = 1
Opener = Callable[[Path], pq.ParquetFile]
_KEY = b"equipoise"


@dataclass(frozen=True)
class StoreInfo:
    """What a store holds the values of. Two files belong to one sweep where all of this is equal.

    `benefit` names the task's benefit ("classification"), `absence` how an absent modality entered the model.
    """

    modalities: tuple[str, ...]
    benefit: str
    graded: bool
    absence: str
    model_hash: str
    manifest_hash: str
    split: str
    epoch: str
    schema_version: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        check_modalities(len(self.modalities))


_OTHER = {
    "modalities": "a store of other modalities",
    "benefit": "a store of another benefit",
    "graded": "a store of another kind of benefit",
    "absence": "a store of another way of leaving modalities out",
    "model_hash": "a store of another model",
    "manifest_hash": "a store of other data",
    "split": "a store of another split",
    "epoch": "a store of another epoch",
    "schema_version": "a store of another version of Equipoise",
}


def chunk_path(folder: str | os.PathLike[str], index: int) -> Path:
    return Path(folder) / f"chunk-{index:05d}.parquet"


def store_schema(info: StoreInfo) -> pa.Schema:
    """The exact schema of a chunk file, metadata included."""
    width = 2 ** len(info.modalities) - 1
    packed = pa.uint8() if width <= 7 else pa.binary((width + 7) // 8)
    columns = [
        ("sample_id", pa.int64()),
        ("source_id", pa.string()),
        ("coalitions", pa.list_(pa.float32()) if info.graded else packed),
        ("present", pa.uint8() if len(info.modalities) <= 8 else pa.uint16()),
        *[(f"contribution_{name}", pa.float64()) for name in info.modalities],
        *[(f"copies_{name}", pa.uint8()) for name in info.modalities],
    ]
    return pa.schema(columns, metadata={_KEY: json.dumps(asdict(info)).encode()})


def write_chunk(
    folder: str | os.PathLike[str],
    index: int,
    info: StoreInfo,
    sample_id: NDArray[np.int64] | Tensor,
    source_id: Sequence[str],
    score: NDArray[Any] | Tensor,
    present: NDArray[np.bool_] | Tensor,
) -> Path:
    """Write chunk `index` of a sweep, whole or not at all; returns its path.

    `sample_id` [n], `source_id` [n], `score` [n, 2**M - 1] as `sweep` gives it, `present` bool [n, M].
    """
    ids, scores = as_array(sample_id), as_array(score)
    shape = (len(ids), len(info.modalities))
    there = presence(present, shape)
    if num_modalities_of(scores) != shape[1] or len(scores) != shape[0] or len(source_id) != shape[0]:
        raise EquipoiseError(
            f"Chunk {index}: {shape[0]} sample ids and {shape[1]} modalities do not fit a score table of shape "
            f"{list(scores.shape)} and {len(source_id)} source ids."
        )
    if (scores.dtype != np.bool_) != info.graded:
        raise EquipoiseError(
            f"Chunk {index}: a store of {'graded' if info.graded else '0/1'} benefits cannot hold scores of type {scores.dtype}."
        )
    if info.graded:
        scores = scores.astype(np.float32)  # before the contributions, so that a reader gets the same from the scores
    contributions = shapley(scores, there)
    counts = np.zeros(shape, np.uint8) if info.graded else copies(contributions, there)
    schema = store_schema(info)
    columns = [
        pa.array(ids, pa.int64()),
        pa.array(list(source_id), pa.string()),
        pack(scores, schema.field("coalitions").type),
        pa.array(bits(there), schema.field("present").type),
        *[pa.array(contributions[:, m]) for m in range(shape[1])],
        *[pa.array(counts[:, m]) for m in range(shape[1])],
    ]
    path = chunk_path(folder, index)
    with replacing(path) as temporary:
        pq.write_table(pa.table(columns, schema=schema), temporary)
    return path


def missing_chunks(
    folder: str | os.PathLike[str], indices: Iterable[int], info: StoreInfo, opener: Opener = pq.ParquetFile
) -> list[int]:
    """Which of the chunks still have to be valued: a first run, a retry and a resume all start here.

    A file of another sweep is left over from an interrupted attempt with other weights, and a file that cannot be opened
    from a broken disk: both are removed (logged) and counted as missing.
    """
    missing = []
    for index in indices:
        path = chunk_path(folder, index)
        if path.exists():
            try:
                with _opened(path, opener) as file:
                    difference = _difference(_info(file, path), asdict(info))
                reason = None if difference is None else f"it has {_found(difference)}"
            except EquipoiseError as error:
                reason = str(error)
            if reason is None:
                continue
            log.warning("Removed %s, left over from another attempt: %s", path, reason)
            path.unlink(missing_ok=True)
        missing.append(index)
    return missing


def read_values(
    folder: str | os.PathLike[str],
    expect: StoreInfo | Mapping[str, Any] | None = None,
    opener: Opener = pq.ParquetFile,
) -> pa.Table:
    """All values of a store as one table, sorted by sample_id.

    Every field named in `expect` is checked; a difference, files of different sweeps in one folder, or a sample valued twice
    is an `EquipoiseError` that says which.
    """
    table = pa.concat_tables(list(_tables(folder, expect, opener))).sort_by("sample_id")
    ids = table["sample_id"].to_numpy()
    twice = ids[1:][ids[1:] == ids[:-1]]
    if len(twice):
        raise EquipoiseError(
            f"The store {folder} holds sample_id {twice[0]} more than once ({len(twice)} rows too many): it mixes chunks of "
            "different sizes. Delete the folder and value the split again."
        )
    return table


def iter_chunks(
    folder: str | os.PathLike[str],
    expect: StoreInfo | Mapping[str, Any] | None = None,
    opener: Opener = pq.ParquetFile,
) -> Iterator[Values]:
    """The values of a store chunk by chunk, in the order of the chunks, with the checks of `read_values` on their info."""
    return (values_of(table) for table in _tables(folder, expect, opener))


def values_of(table: pa.Table) -> Values:
    """Unpack a table read from a store (all of it, or any rows)."""
    info = _parse(table.schema.metadata, "The table")
    num_modalities = len(info.modalities)
    return Values(
        table["sample_id"].to_numpy(),
        unpack(table["coalitions"].combine_chunks(), 2**num_modalities - 1, info.graded),
        from_bits(table["present"].to_numpy(), num_modalities),
    )


def _tables(
    folder: str | os.PathLike[str], expect: StoreInfo | Mapping[str, Any] | None, opener: Opener
) -> Iterator[pa.Table]:
    """Every chunk file as a table, its info checked against `expect` and against the first file's."""
    wanted = _wanted(expect)
    paths = sorted(Path(folder).glob("chunk-*.parquet"), key=lambda path: (len(path.name), path.name))
    if not paths:
        raise EquipoiseError(f"There are no values in {folder}: it holds no chunk-*.parquet. Run the valuation first.")
    first: StoreInfo | None = None
    for path in paths:
        with _opened(path, opener) as file:
            info = _info(file, path)
            difference = _difference(info, wanted)
            if difference is not None:
                name, _, expected = difference
                raise EquipoiseError(
                    f"{path} is {_OTHER[name]}: {_found(difference)}, expected {expected!r}. Value the split again, or give "
                    "the folder that belongs to this run."
                )
            first = first or info
            mixed = _difference(info, asdict(first))
            if mixed is not None:
                raise EquipoiseError(
                    f"The store {folder} mixes files of different sweeps: {path.name} has {_found(mixed)}, {paths[0].name} has "
                    f"{mixed[2]!r}. Delete the folder and value the split again."
                )
            yield file.read()


def _opened(path: Path, opener: Opener) -> pq.ParquetFile:
    try:
        return opener(path)
    except (pa.ArrowException, OSError) as error:
        raise EquipoiseError(
            f"{path} cannot be read as Parquet ({error}): delete it and value the split again."
        ) from None


def _wanted(expect: StoreInfo | Mapping[str, Any] | None) -> dict[str, Any]:
    wanted = asdict(expect) if isinstance(expect, StoreInfo) else dict(expect or {})
    for name in wanted:
        if name not in _OTHER:
            raise unknown("store field", name, _OTHER)
    return wanted


def _difference(info: StoreInfo, wanted: Mapping[str, Any]) -> tuple[str, Any, Any] | None:
    """The first field that is not as wanted: (name, found, expected)."""
    for name, expected in wanted.items():
        found = getattr(info, name)
        if (tuple(expected) if name == "modalities" else expected) != found:
            return name, found, expected
    return None


def _found(difference: tuple[str, Any, Any]) -> str:
    return f"{difference[0]} {difference[1]!r}"


def _info(file: pq.ParquetFile, path: Path) -> StoreInfo:
    """A file's info, its columns compared with what the info promises before any of them is read."""
    schema = file.schema_arrow
    info = _parse(schema.metadata, str(path))
    expected = store_schema(info)
    if not schema.equals(expected, check_metadata=False):
        raise EquipoiseError(f"{path} is not as a store writes it: its columns are\n{schema.remove_metadata()}")
    return info


def _parse(metadata: Mapping[bytes, bytes] | None, where: str) -> StoreInfo:
    try:
        entries: dict[str, Any] = json.loads((metadata or {})[_KEY])
        version = entries["schema_version"]
    except (KeyError, TypeError, ValueError):
        raise EquipoiseError(
            f"{where} is not a store of values: its schema carries no readable 'equipoise' entry."
        ) from None
    if version != SCHEMA_VERSION or set(entries) != {f.name for f in fields(StoreInfo)}:
        raise EquipoiseError(
            f"{where} is {_OTHER['schema_version']}: schema version {version}, this one reads {SCHEMA_VERSION}. Value the "
            "split again."
        )
    return StoreInfo(**{**entries, "modalities": tuple(entries["modalities"])})
