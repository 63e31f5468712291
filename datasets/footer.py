"""What a Parquet footer says of extension types, judged as plain bytes.

Every door of pyarrow (`read_metadata` too) builds the file's Arrow types, and a registered extension type then runs its
own code on bytes of the file: seen with Ray's types in a process that imported ray.data. So a file is judged here without
Arrow. Nor is the footer parsed for it: a parser that differs from Arrow's in the smallest point (its Thrift ignores the
element type of a list, say) can be led past what Arrow then reads. The types can only come from a base64 text in the
footer whose decoded bytes hold the key `ARROW:extension:name`, so that text is searched for, at each of the three ways in
which base64 can cut it.
"""

import base64
import re
from typing import BinaryIO

_TAIL = 8  # the footer's length, int32, and the magic word
_KEY = b"ARROW:extension"
# Of the base64 text only the characters that the key alone decides.
_MARKS = tuple(
    base64.b64encode(b"\0" * shift + _KEY)[-(-shift * 4 // 3) : (shift + len(_KEY)) * 4 // 3] for shift in range(3)
)


class FooterError(ValueError):
    """Not a Parquet file, or one whose footer cannot be judged. The message is a clause, without the file."""


def extension_columns(file: BinaryIO) -> dict[str, str]:
    """The columns of an Arrow extension type, nested ones too: {top-level column: name of the type}.

    {} means that there are none; where there are some that cannot be told, {"?": "?"}. Raises `FooterError`.
    """
    footer = _footer(file)
    if not any(mark in footer for mark in _MARKS):
        return {}
    columns: dict[str, str] = {}
    # An Arrow schema message starts with four bytes of ones. This is for the sentence only: it need not find them all.
    for text in re.findall(rb"/////[A-Za-z0-9+/]*", footer):
        columns |= _marked_fields(base64.b64decode(text[: len(text) // 4 * 4]))
    return columns or {"?": "?"}


def _footer(file: BinaryIO) -> bytes:
    size = file.seek(0, 2)
    if size < 12:
        raise FooterError(f"is not a Parquet file, or it was cut short: it has {size} bytes")
    file.seek(size - _TAIL)
    tail = file.read(_TAIL)
    if tail[4:] == b"PARE":
        raise FooterError("has an encrypted footer, which is not supported")
    length = int.from_bytes(tail[:4], "little")
    if tail[4:] != b"PAR1" or length > size - _TAIL - 4:
        raise FooterError("is not a Parquet file, or it was cut short: it does not end in a Parquet footer")
    file.seek(size - _TAIL - length)
    return file.read(length)


def _marked_fields(message: bytes) -> dict[str, str]:
    """{column: extension type} out of an IPC schema message; {} where it is not laid out as expected."""

    def number(at: int, size: int = 4, signed: bool = False) -> int:
        if at < 0 or at + size > len(data):
            raise IndexError
        return int.from_bytes(data[at : at + size], "little", signed=signed)

    def slot(table: int, index: int) -> int:
        """Where the object of a table's slot lies, 0 if the slot is empty."""
        vtable = table - number(table, signed=True)
        offset = number(vtable + 4 + 2 * index, 2) if 4 + 2 * index < number(vtable, 2) else 0
        return table + offset + number(table + offset) if offset else 0

    def items(vector: int) -> list[int]:
        places = range(vector + 4, vector + 4 + 4 * number(vector), 4) if vector else range(0)
        return [at + number(at) for at in places]

    def text(at: int) -> str:
        return data[at + 4 : at + 4 + number(at)].decode() if at else ""

    def extension(field: int) -> str:
        if field in seen:  # a hostile message may refer to itself
            return ""
        seen.add(field)
        pairs = {text(slot(p, 0)): text(slot(p, 1)) for p in items(slot(field, 6))}
        nested = (extension(child) for child in items(slot(field, 5)))
        return pairs.get("ARROW:extension:name", "") or next(filter(None, nested), "")

    seen: set[int] = set()
    data = message[8:]  # after the continuation mark and the message's length
    try:
        schema = slot(number(0), 2)
        found = {text(slot(field, 0)): extension(field) for field in items(slot(schema, 1))}
    except (IndexError, RecursionError, UnicodeDecodeError):  # not laid out as expected
        return {}
    return {column: name for column, name in found.items() if name}
