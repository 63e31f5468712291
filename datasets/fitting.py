"""What is fitted on train rows, and only on them: mean and deviation, or a vocabulary."""

from collections import Counter

import numpy as np
import pyarrow as pa

from equipoise.datasets.columns import Decoder
from equipoise.datasets.targets import decode_targets
from equipoise.datasets.task_spec import TaskSpec
from equipoise.models.modality import Modality

PADDING, UNKNOWN = "[PAD]", "[UNK]"


class Standardization:
    """Mean and deviation of each entry of the last axis, or of each channel of an image, over all train rows.

    An entry that never varies gets deviation 1. Sequences count the steps that `max_length` keeps.
    """

    def __init__(self, modality: Modality) -> None:
        from sklearn.preprocessing import StandardScaler  # a second of import that readers do without

        self.decoder = Decoder(modality, {})
        self.scaler = StandardScaler()

    def update(self, values: pa.Array) -> None:
        """Take in stored values, none of them null."""
        if len(values):
            self.scaler.partial_fit(np.concatenate([self._entries(row) for row in self.decoder.rows(values)]))

    def _entries(self, row: np.ndarray) -> np.ndarray:
        modality = self.decoder.modality
        if modality.kind == "image":
            row = np.moveaxis(row, 0, -1)
        return row.reshape(-1, row.shape[-1] if modality.shape else 1).astype(np.float64)

    def state(self) -> dict[str, list[float] | str]:
        return {"mean": self.scaler.mean_.tolist(), "deviation": self.scaler.scale_.tolist()}


class Fill:
    """The mean of each entry over all train rows (of each channel, for images and volumes): what `absence="mean"` puts in
    the place of a modality that is not standardized.
    """

    def __init__(self, modality: Modality) -> None:
        self.decoder = Decoder(modality, {})
        shape = modality.decoded_shape
        self.total = np.zeros(shape[:1] if len(shape) >= 3 else shape)
        self.rows = 0

    def update(self, values: pa.Array) -> None:
        """Take in stored values, none of them null."""
        for row in self.decoder.rows(values):
            # In float64: rows are float32, and their sum outgrows its digits.
            self.total += row.mean(axis=tuple(range(1, row.ndim)), dtype=np.float64) if row.ndim >= 3 else row
            self.rows += 1

    def state(self) -> dict[str, list[float] | str]:
        return {"fill": np.ravel(self.total / max(self.rows, 1)).tolist()}


class Spread:
    """The deviation of each entry of the last axis (of each channel, for volumes) over all train rows of an array or a
    sequence that is not standardized: what its noise is measured by.
    """

    def __init__(self, modality: Modality) -> None:
        from sklearn.preprocessing import StandardScaler

        self.decoder = Decoder(modality, {})
        self.scaler = StandardScaler()

    def update(self, values: pa.Array) -> None:
        """Take in stored values, none of them null."""
        for row in self.decoder.rows(values):
            entries = np.moveaxis(row, 0, -1) if row.ndim >= 3 and self.decoder.modality.kind == "array" else row
            width = entries.shape[-1] if self.decoder.modality.shape else 1
            self.scaler.partial_fit(entries.reshape(-1, width).astype(np.float64))

    def state(self) -> dict[str, list[float] | str]:
        # None where no train row has the modality.
        return {"spread": self.scaler.scale_.tolist()} if hasattr(self.scaler, "scale_") else {}


class Both:
    """Two things that are fitted on the same values."""

    def __init__(self, *fits: Fill | Spread) -> None:
        self.fits = fits

    def update(self, values: pa.Array) -> None:
        for fit in self.fits:
            fit.update(values)

    def state(self) -> dict[str, list[float] | str]:
        return {key: found for fit in self.fits for key, found in fit.state().items()}


class TargetScale:
    """Mean and deviation of each number of a regression's target, over all train rows."""

    def __init__(self, task: TaskSpec) -> None:
        from sklearn.preprocessing import StandardScaler

        self.task = task
        self.scaler = StandardScaler()

    def update(self, values: pa.Array) -> None:
        """Take in stored targets."""
        if len(values):
            self.scaler.partial_fit(decode_targets(self.task, values).astype(np.float64))

    def state(self) -> dict[str, list[float] | str]:
        return {"mean": self.scaler.mean_.tolist(), "deviation": self.scaler.scale_.tolist()}


class Vocabulary:
    """The most frequent words of the train rows, in lower case; id 0 is padding, id 1 any other word."""

    def __init__(self, modality: Modality) -> None:
        from tokenizers import normalizers, pre_tokenizers

        self.size = modality.vocabulary
        self.lower = normalizers.Lowercase()
        self.cut = pre_tokenizers.Whitespace()
        self.counts: Counter[str] = Counter()

    def update(self, values: pa.Array) -> None:
        for text in values.to_pylist():
            self.counts.update(word for word, _ in self.cut.pre_tokenize_str(self.lower.normalize_str(text)))

    def state(self) -> dict[str, list[float] | str]:
        from tokenizers import Tokenizer, models

        # Ties by the word itself, so that the vocabulary does not depend on the order of the rows.
        ranked = sorted(self.counts, key=lambda word: (-self.counts[word], word))[: max(self.size - 2, 0)]
        tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate([PADDING, UNKNOWN, *ranked])}, UNKNOWN))
        tokenizer.normalizer = self.lower
        tokenizer.pre_tokenizer = self.cut
        return {"tokenizer": tokenizer.to_str()}


def fit_of(modality: Modality) -> Standardization | Vocabulary | Both | None:
    """What a modality needs fitted, if anything."""
    if modality.kind == "text":
        return Vocabulary(modality)
    if modality.transform == "standardize":
        return Standardization(modality)
    fits: list[Fill | Spread] = [] if modality.has_length else [Fill(modality)]
    if modality.kind in ("array", "sequence"):
        fits.append(Spread(modality))
    return Both(*fits) if fits else None
