"""easy-VQA: pictures of one coloured shape each and questions about them, in the package easy-vqa.

Generated, and known for its language bias: yes and no are three answers in four, and the question alone goes far by
what is usually answered, while the picture alone says nothing.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from equipoise.datasets.sources import Source
from equipoise.datasets.sources.installed import package_file
from equipoise.models import rowhash
from equipoise.models.errors import EquipoiseError
from equipoise.models.modality import Modality

QUESTIONS = 48_248
_VALIDATION = 0.15  # of the package's train pictures
_INSTALL = "`pip install 'equipoise[data]'` or `pip install easy-vqa==1.0`"
_TERMS = "easy-VQA (V. Zhou), as shipped with easy-vqa (MIT)."


def load(*, questions: int | None = 8000, seed: int = 0) -> Source:
    """`image`, a PNG of 64 x 64 pixels (RGB), and `question`, up to 9 words and a question mark; 13 answers.

    `questions` of the 48,248 are drawn by `seed` (None: all). Test is the package's own. Validation is the questions about
    15% of the package's train pictures, drawn by `seed`, so that no picture is in two splits.
    Raises `EquipoiseError` without easy-vqa, and for a number of questions that cannot be.
    """
    if questions is not None and (
        isinstance(questions, bool) or not isinstance(questions, int) or not 100 <= questions <= QUESTIONS
    ):
        raise EquipoiseError(f"questions must be 100..{QUESTIONS}, or null for all, found {questions!r}.")
    folder = package_file("easy-vqa", "easy-vqa", "easy_vqa/data", _INSTALL)
    asked = [(of, *row) for of in ("train", "test") for row in json.loads((folder / of / "questions.json").read_text())]
    order = np.argsort(rowhash.words(seed, "easy-vqa question", np.arange(len(asked))))
    drawn = np.sort(order[:questions]).tolist()
    aside = rowhash.uniform(seed, "easy-vqa validation", np.arange(1 + max(image for *_, image in asked))) < _VALIDATION

    def stream() -> Iterator[dict[str, Any]]:
        for i in drawn:
            of, question, answer, image = asked[i]
            yield {
                "source_id": f"{of}-question-{i:05d}",
                "group": f"{of}-image-{image:04d}",
                "split": "validation" if of == "train" and aside[image] else of,
                "target": answer,
                "image": Path(folder / of / "images" / f"{image}.png").read_bytes(),
                "question": question,
            }

    return Source(
        name="easy-vqa",
        modalities=(
            Modality(name="image", kind="image", shape=(3, 64, 64), transform="standardize"),
            Modality(name="question", kind="text", max_length=12),
        ),
        labels=tuple((folder / "answers.txt").read_text().split()),
        rows=stream(),
        grouped=True,
        terms=_TERMS,
    )
