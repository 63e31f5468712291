"""What can be known of a run before it starts: refusals, one sentence each, and concerns that rest on estimates.

`fit` asks this first, and `equipoise doctor` shows the same sentences.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from equipoise import balancers, valuation
from equipoise.balancers.adaptive import cancelled
from equipoise.datasets.manifest import Manifest
from equipoise.models.errors import EquipoiseError
from equipoise.pipelines.assembly import assemble
from equipoise.pipelines.config import Config, differing_keys, load_config
from equipoise.pipelines.machine import SHM, disk, ray_folder, readable
from equipoise.pipelines.optimizers import build_optimizer
from equipoise.pipelines.ray_local import joins, look
from equipoise.pipelines.seats import Resources, Seats, take_seats
from equipoise.pipelines.trackers import check_tracker
from equipoise.valuation.entries import check_batch_size

#: What a process that has imported torch and Ray is taken to hold before its first batch: an estimate.
PROCESS_BYTES = 400 << 20
#: Ray stops spilling to a disk that is this full, and the run with it.
FULL = 0.95
_CHUNKS_A_WINDOW = 8


@dataclass(frozen=True)
class Concern:
    """What may go wrong, and what to do about it. A run starts all the same."""

    what: str
    do: str


def preflight(config: Config) -> Manifest:
    """All that is known before Ray starts; the seats on a Ray that is there already are known when it is joined.

    Raises:
        EquipoiseError: the first thing that keeps the run from starting.
    """
    check_tracker(config.tracker)
    manifest = Manifest.load(Path(config.data))
    check_methods(config, manifest)
    if check_folder(config) != "finished" and not joins():
        take_seats(config, look())
    return manifest


def check_methods(config: Config, manifest: Manifest) -> None:
    """Raise an `EquipoiseError` where the configuration and the data set do not go together."""
    rows = manifest.splits["train"].rows
    check_batch_size(config.batch_size, rows, config.workers)
    resampler = valuation.get(config.resampler.name, **config.resampler.options)
    bound = getattr(resampler.options, "max_entries", None)
    if bound is not None and bound < rows:
        raise EquipoiseError(
            f"resampler.options.max_entries={bound} is less than the {rows} rows of train, and originals are never left "
            f"out: raise it to {rows} or more."
        )
    balancer = balancers.get(config.balancer.name, **config.balancer.options)
    balancer.check(assemble(config, manifest), manifest.build_task())


def check_folder(config: Config) -> str:
    """What the run folder is: "new", or the "unfinished" or "finished" run of this very configuration.

    Raises:
        EquipoiseError: a file, a folder of something else, or a run of another configuration.
    """
    path = Path(config.out)
    try:
        return _folder_state(path, config)
    except OSError as error:
        raise EquipoiseError(f"Cannot read the run folder {path} ({error.strerror}): choose another out=...") from error


def _folder_state(path: Path, config: Config) -> str:
    if path.exists() and not path.is_dir():
        raise EquipoiseError(f"{path} is a file: a run needs a folder, choose another out=...")
    if (path / "config.yaml").exists():
        former = load_config(path / "config.yaml")
        differing = [line for line in differing_keys(former, config) if not line.startswith("out:")]
        if differing:
            raise EquipoiseError(
                f"{path} holds a run of another configuration ({'; '.join(differing)}): choose another out=..., or delete "
                "the folder."
            )
        return "finished" if (path / "finished.json").is_file() else "unfinished"
    if path.exists() and any(not file.name.startswith(".") for file in path.iterdir()):
        raise EquipoiseError(f"{path} is not empty and holds no run: choose another out=..., or empty it.")
    return "new"


def concerns(config: Config, manifest: Manifest, resources: Resources, seats: Seats) -> list[Concern]:
    """What is estimated to be too small or ill used. Sizes are estimates: a run is never refused for them."""
    found = [*optimizer_concerns(config)]
    row = sum(m.decoded_dtype.itemsize * int(np.prod(m.decoded_shape)) for m in manifest.modalities)
    rows = min(_CHUNKS_A_WINDOW * manifest.chunk_rows, manifest.splits["train"].rows)
    windows = 2 * row * rows * config.workers
    store = sum(node.object_store for node in resources.nodes)
    if windows > store > 0:
        found.append(
            Concern(
                f"Two decoded windows of data for each of workers={config.workers} are {readable(windows)}, and Ray's object "
                f"store has {readable(store)}: it would spill to disk.",
                "Prepare the data with a smaller chunk_rows, use fewer workers, or give Ray more memory.",
            )
        )
    tasks = int(config.workers * seats.data_cpus)
    processes = config.workers + config.actors + tasks
    needed, memory = processes * PROCESS_BYTES + windows, sum(node.memory for node in resources.nodes)
    if needed > memory > 0:
        found.append(
            Concern(
                f"{config.workers} workers, {config.actors} actors, up to {tasks} data tasks and their windows take about "
                f"{readable(needed)} of memory, and {readable(memory)} are free.",
                "Ask for fewer workers or actors, or end what else runs here.",
            )
        )
    if config.valuation.placement == "separate" and config.valuation.lag == 0:
        found.append(
            Concern(
                "With valuation.placement=separate and valuation.lag=0 the actors' seats are idle while the workers train, and "
                "the workers' while the actors value.",
                "Use valuation.lag=1, or valuation.placement=shared.",
            )
        )
    return [*found, *disk_concerns(Path(config.out)), *([] if resources.cluster else shm_concerns())]


def optimizer_concerns(config: Config) -> list[Concern]:
    """Said here too, once: what a worker of Ray warns of is not shown."""
    balancer = balancers.get(config.balancer.name, **config.balancer.options)
    told = cancelled(balancer, build_optimizer([torch.nn.Parameter(torch.zeros(1))], config.optimizer))
    return [] if told is None else [Concern(f"{told[0]}.", f"{told[1][0].upper()}{told[1][1:]}.")]


def disk_concerns(out: Path) -> list[Concern]:
    found = []
    for what, path in (("run folder", out), ("spilled data of Ray", ray_folder())):
        if (there := disk(path)).used >= FULL:
            found.append(
                Concern(
                    f"The disk of the {what} ({path}) is {100 * there.used:.0f} % full, {readable(there.free)} are free: "
                    "checkpoints may fail, and Ray stops where a disk is 95 % full.",
                    "Free some of it, or use another disk (out=..., RAY_TMPDIR=...).",
                )
            )
    return found


def shm_concerns() -> list[Concern]:
    if not SHM.is_dir() or (there := disk(SHM)).free >= 1 << 30:
        return []
    return [
        Concern(
            f"{SHM} has {readable(there.free)}: Ray keeps its object store on disk instead, which is slow.",
            "Start the container with a larger one, such as `docker run --shm-size=4g`.",
        )
    ]
