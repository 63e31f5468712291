"""data.yaml: what a person's own data is, as a file that `prepare` takes. `equipoise init` writes a first one."""

import os
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from equipoise.datasets.foreign import open_table
from equipoise.datasets.manifest import Manifest
from equipoise.datasets.prepare import prepare
from equipoise.models.errors import EquipoiseError, unknown
from equipoise.models.modality import Modality

SUFFIXES = (".yaml", ".yml")


class DataConfig(BaseModel):
    """The keys of a data.yaml. Columns are named as they are in the source."""

    model_config = ConfigDict(extra="forbid")

    source: str = Field(description="csv or Parquet file, or a folder; relative to the data.yaml")
    sample_key: str | None = Field("source_id", description="column of each row's own id; null: the rows are numbered")
    target: str = Field("target", description="column of what is predicted")
    split: str | None = Field(
        "split", description="column with train, validation, test; null, or not there: by fractions"
    )
    group: str | None = Field(None, description="column; rows of one group stay in one split")
    modalities: dict[str, dict[str, Any]] = Field(description="{name: column or columns, kind, shape, ...}")
    task: str | dict[str, Any] | None = Field(
        None, description="classification, multilabel, regression, segmentation, or its choices; null: classification"
    )
    task_labels: list[str] | None = Field(
        None, description="names of classes, labels, numbers or regions, in order; null: the classes found, sorted"
    )
    fractions: tuple[float, float, float] = Field((0.7, 0.15, 0.15), description="of train, validation, test")
    on_bad: Literal["stop", "skip"] = Field("stop", description="rows that cannot be used: stop and list, or leave out")
    seed: int = Field(0, ge=0, description="of the order, and of the split by fractions")
    chunk_rows: int = Field(256, ge=1, description="rows that are read and valued at once")
    shard_rows: int = Field(4096, ge=1, description="rows a file")


def is_data_yaml(source: str | os.PathLike[str]) -> bool:
    return Path(source).suffix.lower() in SUFFIXES


def prepare_yaml(
    path: str | os.PathLike[str], out: str | os.PathLike[str], overwrite: bool = False, **overrides: Any
) -> Manifest:
    """`prepare` what a data.yaml says, some of its keys overridden.

    Raises `EquipoiseError`: an unknown key (the nearest is named), a bad value, and all that `prepare` raises.
    """
    config, source = read_data_yaml(path, overrides)
    modalities = [_modality(name, dict(given), source) for name, given in config.modalities.items()]
    options = config.model_dump(exclude={"source", "modalities"})
    return prepare(source, out, modalities=modalities, overwrite=overwrite, **options)


def read_data_yaml(path: str | os.PathLike[str], overrides: Mapping[str, Any] | None = None) -> tuple[DataConfig, Path]:
    """What a data.yaml says, and where its source lies. Raises `EquipoiseError`."""
    path = Path(path)
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise EquipoiseError(f"No file at {path}: `equipoise init YOUR.csv` writes a data.yaml.") from None
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise EquipoiseError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    except OSError as error:
        raise EquipoiseError(f"Cannot read {path} ({error.strerror}).") from None
    if not isinstance(raw, dict):
        raise EquipoiseError(f"{path} must hold `key: value` lines, such as `source: my.csv`.")
    for key in (raw := {**raw, **(overrides or {})}):
        if key not in DataConfig.model_fields:
            raise EquipoiseError(str(unknown("key", str(key), DataConfig.model_fields)).replace(":", f" in {path}:", 1))
    try:
        config = DataConfig.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        if first["type"] == "missing":
            raise EquipoiseError(f"{path} gives no {key!r}: add `{key}: ...`.") from None
        raise EquipoiseError(f"Key {key!r} in {path}: {first['msg']}, found {first['input']!r}.") from None
    return config, path.parent / config.source


def _modality(name: str, given: dict[str, Any], source: Path) -> Modality:
    if "name" in given:
        raise EquipoiseError(f"Modality {name!r}: its name stands before the colon, leave {'name'!r} out.")
    if isinstance(columns := given.get("columns"), Sequence) and not isinstance(columns, str):
        given["columns"] = _expanded(name, [str(column) for column in columns], source)
    if "column" in given:
        given["column"] = str(given["column"])  # a header may hold numbers
    return Modality(name=name, **given)


def _expanded(name: str, columns: Sequence[str], source: Path) -> list[str]:
    """The columns, patterns such as `px_*` replaced by the source's columns that match, in its order."""
    if not any(set("*?[") & set(column) for column in columns):
        return list(columns)
    there = open_table(source).columns
    out: list[str] = []
    for column in columns:
        found = [column] if column in there else [c for c in there if fnmatchcase(c, column)]
        if not found:
            raise EquipoiseError(
                f"Modality {name!r}: no column of {source} matches {column!r}: it has {', '.join(there[:20])}."
            )
        out += found
    return out
