"""Faults that Ray's worker processes bring upon themselves while a flag file says so. Installed in every worker process.

Nothing here replaces a part: the real reader, step and valuer are slowed down, so that another thread has time to kill.
"""

import os
import random
import time
from pathlib import Path


def flagged(name: str) -> bool:
    return (Path(os.environ["EQUIPOISE_TEST_FAULTS"]) / name).exists()


def install() -> None:
    from equipoise.datasets.reading import Reader

    read = Reader.read

    def delayed(self, *args, **kwargs):
        if flagged("delay_reads"):
            time.sleep(random.random())
        return read(self, *args, **kwargs)

    Reader.read = delayed

    from equipoise.balancers.step import BalancedStep

    step = BalancedStep.__call__

    def slow_step(self, batch):
        if flagged("slow_steps"):
            time.sleep(0.05)
        return step(self, batch)

    BalancedStep.__call__ = slow_step

    from equipoise.pipelines.valuer import Valuer

    value = Valuer.value

    def slow_value(self, sweep, chunk):
        if flagged("slow_sweeps") and sweep.split == "train":
            time.sleep(0.5)
        return value(self, sweep, chunk)

    Valuer.value = slow_value

    begin = Valuer.__init__

    def absent(self, *args, **kwargs):
        # An actor that is not coming back: its machine is gone, or its GPU is held by someone else. (Rank 0's own valuer,
        # which has no arguments, is no actor.)
        while args and flagged("no_valuers"):
            time.sleep(0.1)
        begin(self, *args, **kwargs)

    Valuer.__init__ = absent
