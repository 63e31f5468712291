"""The one door for files: nothing that a file holds is run, and nothing unexpected gets further than its schema."""

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from equipoise.datasets.footer import FooterError, extension_columns
from equipoise.models.errors import EquipoiseError


def open_parquet(path: str | os.PathLike[str], expected: pa.Schema | None = None) -> pq.ParquetFile:
    """Open a Parquet file, ours or foreign, after its footer was judged without Arrow (see `footer`).

    `expected`: the columns that the file must hold, these and no others, each of this type; in any order.
    Raises `EquipoiseError` for a missing, truncated or foreign kind of file, for a column of an Arrow extension type
    (some run code when they are read), and where the schema is not the expected one.
    """
    path = Path(path)
    if not path.is_file():
        raise EquipoiseError(f"No Parquet file at {path}.")
    try:
        with path.open("rb") as raw:
            marked = extension_columns(raw)
        if not marked:
            file = pq.ParquetFile(path)
            marked = {f.name: str(f.type) for f in file.schema_arrow if _holds_extension(f.type)}
    except FooterError as error:
        raise EquipoiseError(f"{path} {error}: make it or fetch it again.") from error
    except (pa.ArrowException, OSError, ValueError) as error:  # ValueError: a name that is not UTF-8
        raise EquipoiseError(
            f"{path} cannot be read as Parquet ({_first_line(error)}): make it or fetch it again."
        ) from error
    if marked:
        what = ", ".join(f"{column!r} ({name})" for column, name in marked.items())
        raise EquipoiseError(
            f"{path} holds Arrow extension types, which can run code when they are read: column {what}. Rewrite the file "
            "with plain columns (numbers, strings, bytes, lists)."
        )
    if expected is not None:
        _compare(path, file.schema_arrow, expected)
    return file


def _compare(path: Path, found: pa.Schema, expected: pa.Schema) -> None:
    for field in expected:
        places = found.get_all_field_indices(field.name)
        if len(places) != 1:
            what = "lacks" if not places else f"holds {len(places)} times"
            raise EquipoiseError(
                f"{path} {what} the column {field.name!r} of type {field.type}: it holds {', '.join(found.names)}."
            )
        if found.field(places[0]).type != field.type:
            raise EquipoiseError(
                f"{path}: column {field.name!r} must be {field.type}, found {found.field(places[0]).type}."
            )
    extra = [name for name in found.names if name not in expected.names]
    if extra:
        raise EquipoiseError(
            f"{path} holds a column that does not belong there, {extra[0]!r} of type {found.field(extra[0]).type}: "
            f"expected {', '.join(expected.names)} and no others."
        )


def _holds_extension(kind: pa.DataType) -> bool:
    if isinstance(kind, pa.BaseExtensionType):
        return True
    if pa.types.is_dictionary(kind):
        return _holds_extension(kind.value_type)
    return any(_holds_extension(kind.field(i).type) for i in range(kind.num_fields))


def load_object_array(path: str | os.PathLike[str]) -> object:
    """The object in a `.npy` file that numpy pickled: a dict (of a 0-d object array) or an object array.

    Only arrays, dtypes, numpy scalars and Python's own containers, numbers and strings are rebuilt, and none of numpy's
    unpickling code sees the file. Raises `EquipoiseError` for anything else, naming what the file asked for.
    """
    # Imported here: the workers, which read Parquet only, have no use for it.
    from equipoise.datasets.unpickling import read_object_array

    path = Path(path)
    if not path.is_file():
        raise EquipoiseError(f"No file at {path}.")
    try:
        return read_object_array(path)
    except EquipoiseError:
        raise
    except Exception as error:  # a hostile pickle can raise anything
        raise EquipoiseError(f"{path} cannot be read as a numpy object array ({_first_line(error)}).") from error


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
