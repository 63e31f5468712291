"""The manifest of a prepared data set: what lies in the folder, how it is decoded, and a hash that pins both."""

import json
import os
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from equipoise.datasets.targets import target_field
from equipoise.datasets.task_spec import TaskSpec
from equipoise.models.errors import EquipoiseError, unknown
from equipoise.models.modality import Modality

if TYPE_CHECKING:
    from equipoise.models.task import Task

FORMAT_VERSION: Literal[1] = 1
FILE = "manifest.json"
SPLITS = ("train", "validation", "test")
MAX_MODALITIES = 16  # the bits of the `present` column

# Columns of a batch, of a shard, or of a bucket.
_RESERVED = frozenset(
    {
        "sample_id",
        "source_id",
        "group",
        "present",
        "target",
        "copy",
        "hash",
        "split",
        "label",
        "rows",
        "fused",
        "shared",
        "head",
    }
)
_Count = Annotated[int, Field(ge=1)]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Shard(_Record):
    """A Parquet file of `rows` rows; `sha256` of its bytes."""

    file: str = Field(pattern=r"^[a-z]+-\d{5,}\.parquet$")
    rows: _Count
    sha256: str


class Split(_Record):
    """The rows of train, validation or test, and the files that hold them, in the order of their sample ids."""

    rows: _Count
    shards: tuple[Shard, ...]


class Skipped(_Record):
    """A row that `prepare(..., on_bad="skip")` left out, and why."""

    source_id: str
    split: str
    reason: str


class Manifest(_Record):
    """A prepared data set.

    A split's rows have the sample ids 0 .. rows - 1 in the order of its shards. Every shard but the last holds exactly
    `shard_rows` rows, in row groups ("chunks", the unit of work) of `chunk_rows`. `fitted` is what was fitted on train
    rows: {modality: {"mean": [...], "deviation": [...]} or {"tokenizer": JSON}}, and for a regression the mean and deviation
    of the "target". `hash` is the sha256 of the canonical
    JSON of everything else, so it pins the shards' bytes as well.
    `sample_key` is the source's column of ids; None: it has none, and its rows are numbered.
    """

    format_version: Literal[1] = 1
    name: str
    task: TaskSpec
    modalities: tuple[Modality, ...]
    fitted: dict[str, dict[str, list[float] | str]]
    splits: dict[str, Split]
    chunk_rows: _Count
    shard_rows: _Count
    seed: int
    sample_key: str | None = "source_id"
    terms: str = ""
    skipped: tuple[Skipped, ...] = ()
    hash: str = ""

    @model_validator(mode="after")
    def _consistent(self) -> "Manifest":
        check_modalities(self.modalities)
        if set(self.splits) != set(SPLITS):
            raise EquipoiseError(f"A data set has the splits {', '.join(SPLITS)}, found {', '.join(self.splits)}.")
        check_layout(self.chunk_rows, self.shard_rows)
        for name, split in self.splits.items():
            rows = [shard.rows for shard in split.shards]
            if sum(rows) != split.rows or any(r != self.shard_rows for r in rows[:-1]) or rows[-1] > self.shard_rows:
                raise EquipoiseError(
                    f"Split {name!r} should hold {split.rows} rows in shards of {self.shard_rows}, but its shards hold {rows}."
                )
        if not self.hash:
            object.__setattr__(self, "hash", _hash(self.model_dump(mode="json", exclude={"hash"})))
        return self

    @classmethod
    def load(cls, root: str | os.PathLike[str]) -> "Manifest":
        """Read and verify `root`/manifest.json. Raises `EquipoiseError` if it is missing, edited or not one of ours."""
        path = Path(root) / FILE
        try:
            if not path.is_file():
                raise EquipoiseError(
                    f"{Path(root)} is not a prepared data set: it has no {FILE}. Run `equipoise prepare`."
                )
            text = path.read_bytes()
        except OSError as error:
            raise EquipoiseError(f"Cannot read {path} ({error.strerror}): ask for the right to.") from error
        try:
            record: dict[str, Any] = json.loads(text)
            version = record["format_version"]
            found = record.pop("hash")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise EquipoiseError(
                f"{path} is not a manifest of ours, or it is damaged: prepare the data set again."
            ) from error
        if version != FORMAT_VERSION:
            raise EquipoiseError(
                f"{path} has format version {version}, this release reads version {FORMAT_VERSION}: prepare it again."
            )
        # Hashed as it was read, not as it is parsed: a field that a later release adds must not change old hashes.
        if _hash(record) != found:
            raise EquipoiseError(
                f"{path} was edited after it was written: its hash does not match. Prepare the data set again; "
                "values and checkpoints made with it name the hash."
            )
        try:
            return cls(**record, hash=found)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "the whole"
            raise EquipoiseError(f"{path} is not a valid manifest, at {where}: {first['msg']}.") from error

    def save(self, root: str | os.PathLike[str]) -> None:
        """Write `root`/manifest.json, whole or not at all."""
        path = Path(root) / FILE
        partial = path.with_suffix(".partial")
        partial.write_text(self.model_dump_json(indent=1), encoding="utf-8")
        os.replace(partial, path)

    def verify(self, root: str | os.PathLike[str]) -> None:
        """Compare every shard's bytes with its sha256. Raises `EquipoiseError` for the first that differs."""
        for split in self.splits.values():
            for shard in split.shards:
                path = Path(root) / shard.file
                if not path.is_file() or file_sha256(path) != shard.sha256:
                    raise EquipoiseError(f"{path} is missing or was changed since it was prepared: prepare it again.")

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Names of the modalities; modality m is bit m of `present`."""
        return tuple(m.name for m in self.modalities)

    def build_task(self) -> "Task":
        return self.task.build(self.fitted.get("target"))

    def split(self, name: str) -> Split:
        """Raises `EquipoiseError` for a name that is none of the splits."""
        if name not in self.splits:
            raise unknown("split", name, self.splits)
        return self.splits[name]

    def num_chunks(self, split: str) -> int:
        return -(-self.split(split).rows // self.chunk_rows)

    def chunk_ids(self, split: str, chunk: int) -> range:
        """The sample ids of a chunk. Raises `EquipoiseError` if the split has no such chunk."""
        if not 0 <= chunk < self.num_chunks(split):
            raise EquipoiseError(f"Split {split!r} has chunks 0..{self.num_chunks(split) - 1}, not {chunk}.")
        first = chunk * self.chunk_rows
        return range(first, min(first + self.chunk_rows, self.splits[split].rows))

    def schema(self) -> pa.Schema:  # type: ignore[override]  # pydantic's old name for its own JSON schema
        """The columns on disk, see `disk_schema`."""
        return disk_schema(self.modalities, self.task)


def disk_schema(modalities: tuple[Modality, ...], task: TaskSpec) -> pa.Schema:
    """The columns of a shard. A modality is null where it is absent: else raw bytes (little-endian float32 in C order for
    arrays and sequences, the encoded file for images and audio) or a string. Bit m of `present` is modality m.
    """
    return pa.schema(
        [
            pa.field("sample_id", pa.int64(), nullable=False),
            pa.field("source_id", pa.string(), nullable=False),
            pa.field("group", pa.string()),
            pa.field("present", pa.uint16(), nullable=False),
            target_field(task),
            *value_fields(modalities),
        ]
    )


def value_fields(modalities: tuple[Modality, ...]) -> list[pa.Field]:
    """One nullable column a modality. Large types: a row group of big images passes the 2 GiB of the small ones."""
    return [pa.field(m.name, pa.large_string() if m.kind == "text" else pa.large_binary()) for m in modalities]


def check_modalities(modalities: tuple[Modality, ...]) -> None:
    """Raise `EquipoiseError` for no modality, too many, two of one name, or a name that a batch uses for itself."""
    if not 1 <= len(modalities) <= MAX_MODALITIES:
        raise EquipoiseError(f"A data set has 1 to {MAX_MODALITIES} modalities, found {len(modalities)}.")
    taken = set(_RESERVED)
    for m in modalities:
        if m.name in taken:
            raise EquipoiseError(f"Modality name {m.name!r} is taken: use another name for column {m.column!r}.")
        taken.add(m.name)
    for m in modalities:
        if m.has_length and f"{m.name}_length" in taken:
            raise EquipoiseError(f"Modality name '{m.name}_length' is taken by the length of {m.name!r}: use another.")


def check_layout(chunk_rows: int, shard_rows: int) -> None:
    """Raise `EquipoiseError` unless a shard is a whole number of chunks."""
    if not isinstance(chunk_rows, int) or not isinstance(shard_rows, int):
        raise EquipoiseError(f"chunk_rows and shard_rows are whole numbers, found {chunk_rows!r} and {shard_rows!r}.")
    if chunk_rows < 1 or shard_rows < 1 or shard_rows % chunk_rows:
        raise EquipoiseError(
            f"shard_rows must be a positive multiple of chunk_rows, found shard_rows={shard_rows}, chunk_rows={chunk_rows}."
        )


def file_sha256(path: Path) -> str:
    digest = sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _hash(record: dict[str, Any]) -> str:
    canonical = json.dumps(record, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return sha256(canonical.encode()).hexdigest()
