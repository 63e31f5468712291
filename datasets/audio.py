"""Sound files, and what a model hears of them: log-mel spectrograms.

Channels are averaged, the sound is resampled to the modality's rate, and every 10 ms a Hann window of 25 ms gives the
power in mel bins from 0 Hz to half the rate (triangles of height 1, HTK's mel scale), as a natural logarithm.
"""

import warnings
from functools import lru_cache
from io import BytesIO
from math import ceil, gcd
from typing import Any

import numpy as np
import soundfile
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from scipy.fft import rfft
from scipy.signal import firwin, resample_poly
from scipy.signal.windows import hann
from transformers.audio_utils import mel_filter_bank

from equipoise.datasets.bad_value import BadValueError
from equipoise.datasets.noise import RowNoise
from equipoise.models.errors import EquipoiseError
from equipoise.models.modality import Modality

WINDOW, HOP = 0.025, 0.010  # seconds
FLOOR = 1e-10  # of the power: silence is log(1e-10), about -23
_CHANNELS, _RATES = 8, (1_000, 384_000)
_BLOCK = 1 << 16  # frames


def check(data: bytes) -> None:
    """Decode a file from end to end, a block at a time. Raises `BadValueError` for one that is damaged, cut off or empty."""
    _check_end(data)
    with _opened(data) as file:
        left = file.frames
        if not left:
            raise BadValueError("holds no sound: leave it null where it is absent")
        while left:
            left -= len(_read(file, min(left, _BLOCK)))


def log_mel(modality: Modality, data: bytes, noise: RowNoise | None = None) -> NDArray[np.float32]:
    """Float32 [T, n_mels] of a file, T at most `max_length`; frame t is about the time 10 ms * t. `noise` is on the sound.

    No more is decoded than those frames need, however long the file is. Raises `BadValueError` for a file that does not
    decode, and `EquipoiseError` for more mel bins than the rate has frequencies for.
    """
    rate, longest = int(modality.sample_rate or 0), int(modality.max_length or 0)
    window, mel = hann(round(WINDOW * rate), sym=False), _mel(rate, modality.shape[0])
    if not mel.any(axis=0).all():
        raise EquipoiseError(
            f"Modality {modality.name!r} asks for {modality.shape[0]} mel bins, and at a sample_rate of {rate} some would "
            "have no frequency in them: give a smaller shape, or a higher sample_rate."
        )
    with _opened(data) as file:
        needed = ceil((longest * HOP + WINDOW) * file.samplerate)
        sound = _read(file, min(file.frames, needed)).mean(axis=1)
        if file.samplerate != rate:
            common = gcd(file.samplerate, rate)
            up, down = rate // common, file.samplerate // common
            sound = resample_poly(sound, up, down, window=_low_pass(max(up, down)))
    if noise is not None:
        sound = noise.sound(sound)
    hop = round(HOP * rate)
    half = len(window) // 2
    # Frames of the sound between silence, the first one centred at its first sample.
    frames = sliding_window_view(np.pad(sound, (half, len(window))), len(window))[: len(sound) : hop][:longest]
    power = np.abs(rfft(frames * window, _points(rate))) ** 2
    return np.log(np.maximum(power @ mel, FLOOR)).astype(np.float32)


@lru_cache
def _mel(rate: int, bins: int) -> NDArray[np.float64]:
    """[frequencies, bins]"""
    with warnings.catch_warnings(action="ignore"):  # of an empty bin, which is an error here
        filters: NDArray[np.float64] = mel_filter_bank(
            1 + _points(rate) // 2, bins, 0.0, rate / 2, rate, norm=None, mel_scale="htk"
        )
    return filters


@lru_cache(maxsize=8)
def _low_pass(factor: int) -> NDArray[np.float64]:
    """The filter that `resample_poly` makes by itself, made once."""
    taps: NDArray[np.float64] = firwin(20 * factor + 1, 1 / factor, window=("kaiser", 5.0))
    return taps


def _points(rate: int) -> int:
    """Length of the Fourier transform: the window's, rounded up to a power of two."""
    return 1 << (round(WINDOW * rate) - 1).bit_length()


def _opened(data: bytes) -> Any:
    if data[:4] not in (b"OggS", b"fLaC") and (data[:4], data[8:12]) != (b"RIFF", b"WAVE"):
        raise BadValueError("is no OGG, WAV or FLAC file")
    try:
        file = soundfile.SoundFile(BytesIO(data))
    except soundfile.LibsndfileError as error:
        raise BadValueError(f"does not decode as OGG, WAV or FLAC ({error.error_string})") from error
    low, high = _RATES
    if file.channels > _CHANNELS or not low <= file.samplerate <= high:
        raise BadValueError(
            f"has {file.channels} channels at {file.samplerate} Hz: up to {_CHANNELS} channels at {low} to {high} Hz are "
            "supported"
        )
    return file


def _read(file: Any, frames: int) -> NDArray[np.float64]:
    """Float64 [frames, channels] from where the file stands. Raises `BadValueError` if they are not all there."""
    try:
        found: NDArray[np.float64] = file.read(frames, dtype="float64", always_2d=True)
    except soundfile.LibsndfileError as error:
        raise BadValueError(f"does not decode as OGG, WAV or FLAC ({error.error_string})") from error
    if len(found) < frames:
        raise BadValueError("is damaged: it holds less sound than its header says")
    if not np.isfinite(found).all():
        raise BadValueError("holds a sample that is not finite")
    return found


def _check_end(data: bytes) -> None:
    """Raise `BadValueError` for a file that ends too early in a way that libsndfile takes for a shorter sound."""
    size = len(data)
    if data[:4] == b"RIFF":
        said = int.from_bytes(data[4:8], "little")
        size = size if said == 0xFFFFFFFF else 8 + said  # a stream of unknown length
    elif (page := data.rfind(b"OggS")) >= 0 and len(data) > page + 26:
        pieces = data[page + 26]
        size = page + 27 + pieces + sum(data[page + 27 : page + 27 + pieces])
    if size > len(data):
        raise BadValueError(f"is cut off: {len(data)} of its {size} bytes are there")
