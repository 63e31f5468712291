"""Reading the named data sets in tests: raw rows, and whole prepared splits."""

from importlib.metadata import PackageNotFoundError, distribution

import numpy as np
import pytest

from equipoise.datasets import sources
from equipoise.datasets.reading import Reader


def needs(package):
    """The folder of an installed package, without importing it."""
    try:
        return distribution(package).locate_file("")
    except PackageNotFoundError:
        pytest.skip(f"{package} is not installed: docs/data.md says how")


def rows_of(name, **options):
    source = sources.load(name, **options)
    return source, list(source.rows)


def of_split(rows, key):
    """{split: the set of `key` of its rows}."""
    found: dict[str, set] = {}
    for row in rows:
        found.setdefault(row["split"], set()).add(row[key])
    return found


def disjoint(found):
    return sum(map(len, found.values())) == len(set().union(*found.values()))


def whole(root, split):
    reader = Reader(root)
    chunks = range(reader.manifest.num_chunks(split))
    ids = [i for c in chunks for i in reader.source_ids(split, c)]
    return ids, reader.read(split, np.arange(reader.manifest.splits[split].rows)), reader.manifest
