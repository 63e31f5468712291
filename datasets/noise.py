"""Noise on one value of a modality, as it was measured: before it is standardized, cut into words or made a spectrogram."""

import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

# By severity 0 .. 5; docs/impairment.md has them as a table.
PIXEL_DEVIATION = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5)  # of pixels in [0, 1]
WORD_PROBABILITY = (0.0, 0.1, 0.2, 0.4, 0.6, 0.8)  # of a word being lost
SIGNAL_TO_NOISE = (np.inf, 20.0, 10.0, 5.0, 0.0, -5.0)  # of a sound, dB
RELATIVE_DEVIATION = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0)  # of numbers, in deviations of the numbers
LOST = "_"  # what stands in the place of a lost word


class RowNoise:
    """The noise of one row: `severity` 1 to 5, drawn from `seed` anew for each value."""

    def __init__(self, severity: int, seed: int) -> None:
        self.severity, self.seed = severity, seed

    def pixels(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        """An image [C, H, W] in [0, 1] with white noise on every pixel of every channel, cut to [0, 1]."""
        noisy = image + PIXEL_DEVIATION[self.severity] * self._normal(image.shape)
        return noisy.clip(0, 1).astype(np.float32)

    def words(self, text: str) -> str:
        """Each word (what stands between blanks) replaced by `_` with a probability (QMF, Zhang et al., ICML 2023)."""
        rng = self._rng()
        lost = WORD_PROBABILITY[self.severity]
        return re.sub(r"\S+", lambda word: LOST if rng.random() < lost else word[0], text)

    def sound(self, samples: NDArray[np.float64]) -> NDArray[np.float64]:
        """A waveform [T] with white noise at a signal-to-noise ratio of its whole length; silence stays silent."""
        power = float(np.mean(samples**2)) if len(samples) else 0.0
        deviation = np.sqrt(power * 10 ** (-SIGNAL_TO_NOISE[self.severity] / 10))
        return samples + deviation * self._normal(samples.shape)

    def numbers(self, x: NDArray[np.float32], deviation: Any = None) -> NDArray[np.float32]:
        """An array, a volume or the real steps of a sequence with white noise, relative to `deviation`, that of the train
        rows, broadcast to x. None (a set prepared before it was fitted): the row's own, that of each channel of a volume.
        """
        if deviation is None:
            axes = tuple(range(1, x.ndim)) if x.ndim >= 3 else None
            deviation = x.std(axis=axes, dtype=np.float64, keepdims=axes is not None)
        noise = RELATIVE_DEVIATION[self.severity] * np.asarray(deviation, np.float64) * self._normal(x.shape)
        return (x + noise).astype(np.float32)

    def _rng(self) -> np.random.Generator:
        return np.random.Generator(np.random.Philox(self.seed))

    def _normal(self, shape: tuple[int, ...]) -> NDArray[np.float64]:
        return self._rng().standard_normal(shape)
