"""How one value of a modality becomes bytes on disk, and how a column of them becomes tensors.

Disk holds what was measured: the transform and the vocabulary, fitted on train rows, are applied when it is decoded.
"""

from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from equipoise.datasets.bad_value import BadValueError
from equipoise.datasets.noise import RowNoise
from equipoise.models.errors import EquipoiseError
from equipoise.models.modality import Modality

Noises = Sequence[RowNoise | None] | None

_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_EIGHT_BIT = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")
_FILES = {"image": ("an image", "a PNG or JPEG"), "audio": ("audio", "an OGG, WAV or FLAC file")}
_ROW_AXES = {"array": 0, "sequence": 1}  # axes of a value before `shape`


def encode(modality: Modality, value: Any) -> bytes | str:
    """The stored form of one value that is present.

    array, sequence: raw float32, little-endian, C order; an array may also come flat (in C order) with the right number
    of entries, as Parquet's lists do. image: PNG or JPEG bytes, audio: OGG, WAV or FLAC bytes, text: the string, all
    unchanged.
    Raises `BadValueError`.
    """
    if modality.kind == "text":
        if not isinstance(value, str):
            raise BadValueError(f"is text, but the value is of type {type(value).__name__}: give a string")
        return value
    if modality.kind in _FILES:
        article, formats = _FILES[modality.kind]
        if not isinstance(value, bytes | bytearray | memoryview):
            raise BadValueError(
                f"is {article}, but the value is of type {type(value).__name__}: give the bytes of {formats}"
            )
        data = bytes(value)
        if modality.kind == "audio":
            _audio().check(data)
        _unpacked(modality, data)
        return data
    return _numbers(modality, value).tobytes()


def _numbers(modality: Modality, value: Any) -> NDArray[np.float32]:
    try:
        found = np.asarray(value)
    except ValueError as error:  # numpy's word for nested lists of different lengths
        raise BadValueError(f"has lists of different lengths inside: expected shape {_expected(modality)}") from error
    if found.dtype.kind not in "biuf":
        what = (
            f"a {type(value).__name__}"
            if found.ndim == 0
            else "something else than numbers, or lists of different lengths,"
        )
        raise BadValueError(
            f"holds {what} where numbers belong (dtype {found.dtype}): expected shape {_expected(modality)}"
        )
    if modality.kind == "array" and found.ndim == 1 and found.size == int(np.prod(modality.shape)):
        found = found.reshape(modality.shape)
    lead = _ROW_AXES[modality.kind]
    if found.ndim != lead + len(modality.shape) or found.shape[lead:] != modality.shape:
        raise BadValueError(f"has shape {found.shape}: expected {_expected(modality)}")
    if not found.size:
        raise BadValueError("is empty: leave it null where it is absent")
    with np.errstate(over="ignore"):
        out = found.astype("<f4")
    bad = ~np.isfinite(out)
    if bad.any():
        place = tuple(int(i) for i in np.argwhere(bad)[0])
        raise BadValueError(
            f"holds {found[place]} at {list(place)}, which is not a finite float32: mend it, or leave the whole value null "
            "where the modality is absent"
        )
    return out


def _expected(modality: Modality) -> str:
    return f"{modality.shape}" if modality.kind == "array" else "(" + ", ".join(map(str, ("T", *modality.shape))) + ")"


def _pixels(modality: Modality, data: bytes) -> NDArray[np.float32]:
    """Float32 of the modality's shape in [0, 1]."""
    channels, height, width = modality.shape
    if channels not in _MODES:
        raise BadValueError(f"is an image of {channels} channels: 1 (grey), 3 (RGB) and 4 (RGBA) are supported")
    try:
        with Image.open(BytesIO(data), formats=("PNG", "JPEG")) as image:
            # The header is judged before any pixel is unpacked, so a small file cannot fill the memory.
            if image.size != (width, height):
                raise BadValueError(
                    f"is {image.width} x {image.height} pixels: expected {width} x {height} (width x height)"
                )
            if image.mode not in _EIGHT_BIT:
                raise BadValueError(f"has pixels of mode {image.mode!r}: give 8 bits a channel")
            pixels = np.asarray(image.convert(_MODES[channels]))
    except BadValueError:
        raise
    except Exception as error:  # Pillow raises a different kind for each way in which a file can be damaged
        raise BadValueError(f"does not decode as a PNG or JPEG ({error})") from error
    return pixels.reshape(height, width, channels).transpose(2, 0, 1).astype(np.float32) / np.float32(255)


def _audio() -> Any:
    from equipoise.datasets import audio  # a second of import that data without sound does without

    return audio


def _unpacked(modality: Modality, data: bytes, noise: RowNoise | None = None) -> NDArray[np.float32]:
    """What is in an encoded file. Raises `BadValueError`."""
    if modality.kind == "image":
        pixels = _pixels(modality, data)
        return pixels if noise is None else noise.pixels(pixels)
    found: NDArray[np.float32] = _audio().log_mel(modality, data, noise)
    return found


class Decoder:
    """Turns stored values of one modality into tensors.

    `fitted`: the manifest's entry for the modality, {} for one without; without it nothing is standardized.
    """

    def __init__(self, modality: Modality, fitted: Mapping[str, Any]) -> None:
        self.modality = modality
        self.mean = self.deviation = self.spread = None
        self.tokenizer = None
        if "mean" in fitted:
            # Channels come first in an image, last elsewhere.
            shape = (-1, 1, 1) if modality.kind == "image" else (-1,)
            self.mean = np.asarray(fitted["mean"], np.float32).reshape(shape)
            self.deviation = np.asarray(fitted["deviation"], np.float32).reshape(shape)
        if "spread" in fitted:
            ones = (1,) * (len(modality.shape) - 1) if modality.kind == "array" and len(modality.shape) >= 3 else ()
            self.spread = np.asarray(fitted["spread"]).reshape((-1, *ones) if modality.shape else ())
        if "tokenizer" in fitted:
            from tokenizers import Tokenizer

            self.tokenizer = Tokenizer.from_str(fitted["tokenizer"])

    def __call__(self, values: pa.Array, noises: Noises = None) -> tuple[NDArray[Any], NDArray[np.int64] | None]:
        """Decode n stored values, none of them null: ([n, *decoded_shape], lengths int64[n] or None).

        `noises`: that of each value, None for none. Raises `EquipoiseError` for stored bytes that are not what the manifest says.
        """
        m = self.modality
        rows = self.rows(values, noises)
        if not m.has_length:
            return np.stack(rows) if rows else np.zeros((0, *m.decoded_shape), m.decoded_dtype), None
        out = np.zeros((len(rows), *m.decoded_shape), m.decoded_dtype)
        lengths = np.zeros(len(rows), np.int64)
        for i, row in enumerate(rows):
            lengths[i] = len(row)
            out[i, : len(row)] = row
        return out, lengths

    def rows(self, values: pa.Array, noises: Noises = None) -> list[NDArray[Any]]:
        """Each value decoded and cut to `max_length`, but not padded."""
        m = self.modality
        stored = list(zip(values.to_pylist(), noises or [None] * len(values), strict=True))
        if m.kind == "text":
            if self.tokenizer is None:
                raise EquipoiseError(
                    f"Text modality {m.name!r} has no fitted tokenizer in the manifest: prepare it again."
                )
            # One by one: encode_batch starts a thread a core in every process that reads.
            texts = (text if noise is None else noise.words(text) for text, noise in stored)
            return [np.asarray(self.tokenizer.encode(text).ids[: m.max_length], np.int64) for text in texts]
        return [self._standardize(self._raw(data, noise)) for data, noise in stored]

    def _raw(self, data: bytes, noise: RowNoise | None) -> NDArray[np.float32]:
        m = self.modality
        if m.kind in _FILES:
            try:
                return _unpacked(m, data, noise)
            except BadValueError as error:
                raise EquipoiseError(
                    f"A stored {m.kind} of modality {m.name!r} {error}: the shard is damaged."
                ) from error
        size = 4 * int(np.prod(m.shape))
        if len(data) % size or (m.kind == "array" and len(data) != size):
            raise EquipoiseError(
                f"A stored value of modality {m.name!r} has {len(data)} bytes, {size} a row of shape {m.shape} belong: the "
                "shard is damaged, prepare the data set again."
            )
        numbers = np.frombuffer(data, "<f4").astype(np.float32, copy=False)
        x = numbers.reshape(m.shape) if m.kind == "array" else numbers.reshape(-1, *m.shape)[: m.max_length]
        return x if noise is None else noise.numbers(x, self.spread if self.deviation is None else self.deviation)

    def _standardize(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        return x if self.mean is None or self.deviation is None else (x - self.mean) / self.deviation
