"""What is searched for: two objectives on validation, and the one number that chooses between trials."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from equipoise.models import Task


def objectives(matrix: Mapping[int, Mapping[str, float]], task: Task, names: Sequence[str]) -> dict[str, float]:
    """{"full", "missing", "score"} of {coalition id: metrics}, all as `Task.score`: higher is better.

    - `full`: with all modalities;
    - `missing`: the mean over the modalities of the score with this one missing (BalGrad's Avg);
    - `score`: the mean of the two.
    """
    full = 2 ** len(names) - 1
    whole = task.score(matrix[full])
    if len(names) == 1:
        return {"full": whole, "missing": whole, "score": whole}
    missing = sum(task.score(matrix[full ^ 1 << i]) for i in range(len(names))) / len(names)
    return {"full": whole, "missing": missing, "score": (whole + missing) / 2}
