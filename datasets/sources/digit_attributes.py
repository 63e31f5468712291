"""What the digits of `digits` are, four labels an image: even, prime, large (5 to 9), with a loop. Multi-label.

The same 1,797 images, cut in two as there, and the same split.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from equipoise.datasets.sources import Source, digits
from equipoise.datasets.task_spec import TaskSpec

#: The digits that a label is true of. A 4 is written open or closed: it counts as having no loop.
ATTRIBUTES = {
    "even": (0, 2, 4, 6, 8),
    "prime": (2, 3, 5, 7),
    "large": (5, 6, 7, 8, 9),
    "loop": (0, 6, 8, 9),
}


def load(*, seed: int = 0, benefit: str = "labels") -> Source:
    """`left` float32 (8, 5) and `right` (8, 3) as in `digits`; `benefit`: the share of labels that are right, or "exact"."""
    source = digits.load(seed=seed)

    def stream() -> Iterator[dict[str, Any]]:
        for row in source.rows:
            yield {**row, "target": [int(row["target"] in those) for those in ATTRIBUTES.values()]}

    task = TaskSpec(kind="multilabel", labels=tuple(ATTRIBUTES), benefit=benefit)
    return replace(source, name="digit-attributes", rows=stream(), labels=None, task=task)
