"""Valuation: what each modality contributed to each prediction, and what to learn again because of it. No Ray.

A sweep tries every coalition of modalities on a batch; its score table says which of them are right. Everything else is
derived from such tables. Column c - 1 is coalition c, whose bits are its members: here 0, 1, then 01.

>>> import numpy as np
>>> from equipoise.valuation import copies, shapley
>>> score = np.array([[True, False, True],       # modality 0 alone is right, 1 alone is wrong, both together are right
...                   [False, False, False]])    # nothing is right
>>> phi = shapley(score)                         # contributions [N, M]; a row adds up to M where all together are right
>>> phi
array([[1.5, 0.5],
       [0. , 0. ]])
>>> copies(phi)                                  # unimodal copies [N, M]: the lower the contribution, the more
array([[0, 1],
       [2, 2]], dtype=uint8)

With a model and a batch of the contract (`equipoise.models`), `sweep(model, batch, task)` makes the table, `write_chunk` and
`read_values` keep values in Parquet, a resampler (`get("sample")`) makes them the `Plan` of an epoch, and `EntryList` is that
epoch entry by entry:

>>> from equipoise.valuation import EntryList, Values, get
>>> values = Values(np.arange(2), score, np.ones((2, 2), bool))
>>> plan = get("sample", warmup=1).plan(1, [values], num_rows=2, num_modalities=2, seed=0)
>>> epoch = EntryList(plan, num_rows=2, num_modalities=2, chunk_rows=64, seed=0, epoch=1, batch_size=4)
>>> plan.num_entries, epoch.padding, epoch.steps
(7, 1, 2)
"""

from equipoise.valuation.coalitions import MAX_MODALITIES, bits, coalition_name, from_bits, members
from equipoise.valuation.copies import copies, linear_copies
from equipoise.valuation.entries import ENTRY, EntryList, check_batch_size
from equipoise.valuation.modality import ModalityLevel, ModalityOptions
from equipoise.valuation.more_steps import MoreSteps
from equipoise.valuation.none import NoResampling
from equipoise.valuation.plan import Plan
from equipoise.valuation.random_copies import RandomCopies
from equipoise.valuation.resampler import Resampler, ResamplerOptions, Schedule, get, names, resampler_class
from equipoise.valuation.sample import SampleLevel, SampleOptions
from equipoise.valuation.shapley import shapley
from equipoise.valuation.store import (
    StoreInfo,
    chunk_path,
    iter_chunks,
    missing_chunks,
    read_values,
    store_schema,
    values_of,
    write_chunk,
)
from equipoise.valuation.sweep import coalition_logits, sweep
from equipoise.valuation.values import Values

__all__ = [
    "ENTRY",
    "MAX_MODALITIES",
    "EntryList",
    "ModalityLevel",
    "ModalityOptions",
    "MoreSteps",
    "NoResampling",
    "Plan",
    "RandomCopies",
    "Resampler",
    "ResamplerOptions",
    "SampleLevel",
    "SampleOptions",
    "Schedule",
    "StoreInfo",
    "Values",
    "bits",
    "check_batch_size",
    "chunk_path",
    "coalition_logits",
    "coalition_name",
    "copies",
    "from_bits",
    "get",
    "iter_chunks",
    "linear_copies",
    "members",
    "missing_chunks",
    "names",
    "read_values",
    "resampler_class",
    "shapley",
    "store_schema",
    "sweep",
    "values_of",
    "write_chunk",
]
