"""What a column of a data set is, how it is decoded, and what stands for its absence."""

from math import prod
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from equipoise.models.errors import EquipoiseError, option_error

Kind = Literal["array", "sequence", "image", "text", "audio"]
SAMPLE_RATE = 16_000  # Hz


class Modality(BaseModel):
    """One modality of a data set.

    - `array`: a numeric array of the fixed `shape`, decoded to float32 of that shape.
    - `sequence`: `[T, *shape]` with T differing from row to row; decoded to float32 `[max_length, *shape]`, padded with
      zeros or cut, beside its int64 length.
    - `image`: encoded PNG or JPEG bytes; decoded to float32 of `shape` = (channels, height, width), scaled to [0, 1].
    - `text`: a string; decoded through a vocabulary fitted on train rows to int64 `[max_length]`, 0 = padding, beside
      its length.
    - `audio`: an encoded sound, OGG (Vorbis or Opus), WAV or FLAC bytes; decoded to a log-mel spectrogram, float32
      `[max_length, n_mels]` with `shape` = (n_mels,), beside its length: a frame every 10 ms of the sound, which is
      resampled to `sample_rate`. Like a sequence in all else.

    `transform="standardize"` subtracts the mean and divides by the deviation of each entry of the last axis (of each
    channel of an image), fitted on train rows only. The absent value is zeros (after the transform), an empty sequence
    or an empty text.

    `column` is the source's column (default: the name); `columns` are several of one number each, which together make an
    array of shape (their number,) unless `shape` says otherwise.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    column: str = ""
    columns: tuple[str, ...] = ()
    kind: Kind = "array"
    shape: tuple[int, ...] = ()
    transform: Literal["none", "standardize"] = "none"
    max_length: int | None = None
    vocabulary: int = 8192
    sample_rate: int | None = None

    if not TYPE_CHECKING:  # type checkers take the signature from the fields

        def __init__(self, **fields: Any) -> None:
            try:
                super().__init__(**fields)
            except ValidationError as error:
                name = f" {fields['name']!r}" if fields.get("name") else ""
                raise option_error(f"Modality{name}", type(self), error) from None

    @model_validator(mode="after")
    def _complete(self) -> "Modality":
        if not self.name.isidentifier():
            raise EquipoiseError(f"Modality name {self.name!r} must be a plain identifier, such as 'audio'.")
        if self.columns:
            self._check_group()
        if not self.column:
            object.__setattr__(self, "column", self.name)
        if self.has_length and not self.max_length:
            what = "audio" if self.kind == "audio" else f"a {self.kind}"
            raise EquipoiseError(f"Modality {self.name!r} is {what}: give its max_length.")
        if self.kind == "image" and len(self.shape) != 3:
            raise EquipoiseError(
                f"Modality {self.name!r} is an image: give its shape as (channels, height, width), not {self.shape}."
            )
        if self.kind == "audio":
            if len(self.shape) != 1 or self.shape[0] < 1:
                raise EquipoiseError(
                    f"Modality {self.name!r} is audio: give its shape as (mel bins,), such as (40,), not {self.shape}."
                )
            object.__setattr__(self, "sample_rate", SAMPLE_RATE if self.sample_rate is None else self.sample_rate)
            if not 1_000 <= int(self.sample_rate or 0) <= 96_000:
                raise EquipoiseError(
                    f"Modality {self.name!r} has sample_rate={self.sample_rate}: give 1000 to 96000, in Hz."
                )
        elif self.sample_rate is not None:
            raise EquipoiseError(f"Modality {self.name!r} is no audio: sample_rate has no meaning for it.")
        if self.kind == "array" and not self.shape:
            raise EquipoiseError(f"Modality {self.name!r} is an array: give its shape.")
        if self.kind == "text" and self.transform != "none":
            raise EquipoiseError(f"Modality {self.name!r} is text: transform {self.transform!r} has no meaning for it.")
        return self

    def _check_group(self) -> None:
        if self.kind != "array" or self.column not in ("", self.name):
            what = (
                "give no column beside them"
                if self.kind == "array"
                else f"a modality of kind {self.kind} has one column"
            )
            raise EquipoiseError(
                f"Modality {self.name!r}: columns=[...] make one array out of columns of numbers; {what}."
            )
        twice = next((c for i, c in enumerate(self.columns) if c in self.columns[:i]), None)
        if twice is not None:
            raise EquipoiseError(f"Modality {self.name!r} names the column {twice!r} twice: leave one out.")
        if not self.shape:
            object.__setattr__(self, "shape", (len(self.columns),))
        if prod(self.shape) != len(self.columns):
            raise EquipoiseError(
                f"Modality {self.name!r} has {len(self.columns)} columns, which do not fill the shape {self.shape}: leave the "
                "shape out, or mend it."
            )

    @property
    def sources(self) -> tuple[str, ...]:
        """The columns of a source that the modality is read from."""
        return self.columns or (self.column,)

    @property
    def has_length(self) -> bool:
        """Whether decoding adds `<name>_length` beside the tensor."""
        return self.kind in ("sequence", "text", "audio")

    @property
    def decoded_shape(self) -> tuple[int, ...]:
        """Shape of one decoded row."""
        if self.kind == "text":
            return (int(self.max_length or 0),)
        return (int(self.max_length or 0), *self.shape) if self.has_length else self.shape

    @property
    def decoded_dtype(self) -> np.dtype:
        return np.dtype(np.int64 if self.kind == "text" else np.float32)

    def absent_value(self) -> NDArray[Any]:
        """What a decoded row holds where this modality is absent: zeros of the decoded shape (its length is 0)."""
        return np.zeros(self.decoded_shape, self.decoded_dtype)
