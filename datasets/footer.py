"""What a Parquet footer says of its Arrow types, read as plain bytes.

Every door of pyarrow (`read_metadata` too) builds the file's Arrow types, and a registered extension type then runs its
own code on bytes of the file: seen with Ray's types in a process that imported ray.data. So a file is judged here,
without Arrow: the footer is a Thrift struct in the compact protocol, its entry `ARROW:schema` is a base64 Arrow IPC
message, and that message is a flatbuffer.
"""

import base64
import binascii
import re
from typing import Any, BinaryIO

_TAIL = 8  # the footer's length, int32, and the magic word
_KEY_VALUES = 5  # FileMetaData.key_value_metadata: list of (1: key, 2: value)
_MARK = b"ARROW:extension"


class FooterError(ValueError):
    """Not a Parquet file, or one with a footer that cannot be judged. The message is a clause, without the file."""


def extension_columns(file: BinaryIO) -> dict[str, str]:
    """The columns of an Arrow extension type, nested ones too: {top-level column: name of the type}.

    A marked footer whose columns cannot be told gives {"?": "?"}. Raises `FooterError`.
    """
    columns: dict[str, str] = {}
    for message in _schema_messages(_footer(file)):
        if _MARK in message:
            columns |= _marked_fields(message) or {"?": "?"}
    return columns


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


def _schema_messages(footer: bytes) -> list[bytes]:
    """The decoded values of every key `ARROW:schema` (Arrow reads one of them, so all are judged)."""
    try:
        fields = _Compact(footer).struct()
    except (IndexError, RecursionError) as error:
        raise FooterError("has a damaged Parquet footer") from error
    pairs = [dict(p) for i, v in fields if i == _KEY_VALUES and isinstance(v, list) for p in v if isinstance(p, list)]
    try:
        return [base64.b64decode(p.get(2) or b"", validate=True) for p in pairs if p.get(1) == b"ARROW:schema"]
    except (binascii.Error, TypeError) as error:
        raise FooterError("has a damaged Arrow schema in its footer") from error


class _Compact:
    """Just enough of Thrift's compact protocol to walk a footer. A struct becomes a list of (field id, value)."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def byte(self) -> int:
        self.at += 1
        return self.data[self.at - 1]

    def varint(self) -> int:
        value = shift = 0
        while True:
            byte = self.byte()
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
            shift += 7

    def struct(self) -> list[tuple[int, Any]]:
        fields: list[tuple[int, Any]] = []
        field = 0
        while header := self.byte():
            if header >> 4:
                field += header >> 4
            else:
                zigzag = self.varint()
                field = (zigzag >> 1) ^ -(zigzag & 1)
            # A boolean field carries its value in the header; a boolean in a list takes a byte.
            fields.append((field, None if header & 15 in (1, 2) else self.value(header & 15)))
        return fields

    def value(self, kind: int) -> Any:
        if self.at > len(self.data):
            raise IndexError
        if kind in (1, 2, 3):
            self.at += 1
        elif kind in (4, 5, 6):
            return self.varint()
        elif kind == 7:
            self.at += 8
        elif kind == 8:
            length = self.varint()
            self.at += length
            if self.at > len(self.data):
                raise IndexError
            return self.data[self.at - length : self.at]
        elif kind in (9, 10):
            header = self.byte()
            length = self.varint() if header >> 4 == 15 else header >> 4
            return [self.value(header & 15) for _ in range(length)]
        elif kind == 12:
            return self.struct()
        else:
            raise FooterError(f"has a Parquet footer with an unknown part (Thrift type {kind})")
        return None


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
        pairs = {text(slot(p, 0)): text(slot(p, 1)) for p in items(slot(field, 6))}
        nested = (extension(child) for child in items(slot(field, 5)))
        return pairs.get("ARROW:extension:name", "") or next(filter(None, nested), "")

    data = re.sub(rb"^\xff{4}", b"", message)[4:]  # the continuation mark, then the message's length
    try:
        schema = slot(number(0), 2)
        found = {text(slot(field, 0)): extension(field) for field in items(slot(schema, 1))}
    except (IndexError, RecursionError, UnicodeDecodeError):
        return {}
    return {column: name for column, name in found.items() if name}
