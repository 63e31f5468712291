"""How many trials of each kind fit, and with how many threads; and whether everything is back at the end."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

from equipoise.models.errors import EquipoiseError
from equipoise.pipelines.config import Config
from equipoise.pipelines.seats import Resources, take_seats
from equipoise.pipelines.tuning.config import TuneConfig

#: How long the end of a search waits for what its trials held, in seconds.
BACK_WITHIN = 30.0


@dataclass(frozen=True)
class Room:
    """Trials at once and torch threads of their processes, by kind ("light", "train"); `looks`: trainings at once of the look
    at test, as large as light trials; and the CPUs that our own Ray counts.
    """

    at_once: dict[str, int]
    threads: dict[str, int]
    looks: int
    cpus: int


def room_for(config: TuneConfig, resources: Resources) -> Room:
    """The room for a search.

    Raises:
        EquipoiseError: a trial fits nowhere, or fewer at once than `concurrent` says.
    """
    base, trials = config.base, config.trials
    fits, threads = {}, {}
    light = _light(config, resources) if trials.light or config.confirm.seeds else 0
    if trials.light:
        fits["light"] = light
        threads["light"] = base.threads or max(1, int(config.cpus))
    if trials.train:
        seats = take_seats(base, resources)  # refused here where one run has no room
        fits["train"] = _train(base, resources, seats.device)
        threads["train"] = base.threads or max(1, seats.worker.threads // fits["train"])
    wanted, most = config.concurrent, max(fits.values())
    if wanted is not None and wanted > most:
        kind = max(fits, key=lambda name: fits[name])
        asked = f"cpus={config.cpus:g}" + (f" and gpus={config.gpus:g}" if config.gpus else "")
        each = asked if kind == "light" else f"workers={base.workers} and actors={base.actors}"
        raise EquipoiseError(
            f"concurrent={wanted} {kind} trials of {each} do not fit: there are {_there(resources)}, room for {most} at once. "
            "Ask for fewer, or leave concurrent out."
        )
    at_once = {kind: min(wanted or n, n) for kind, n in fits.items()}
    looks = min(wanted or light, light)
    ours = [len(resources.cores), math.ceil(looks * config.cpus)]
    ours.append(at_once.get("train", 0) * (base.workers + base.actors + 2))
    return Room(at_once, threads, looks, max(ours))


def _light(config: TuneConfig, resources: Resources) -> int:
    def on(cpus: float, gpus: float) -> int:
        by_cpus = int(cpus / config.cpus + 1e-6)
        return min(by_cpus, int(gpus / config.gpus + 1e-6)) if config.gpus else by_cpus

    if resources.cluster:
        fits = sum(on(node.cpus, node.gpus) for node in resources.nodes)
    else:
        fits = on(len(resources.cores), resources.gpus)
    if not fits:
        who = "A light trial" if config.trials.light else "A run of the look at test (confirm.seeds)"
        raise EquipoiseError(
            f"{who} asks for cpus={config.cpus:g} and gpus={config.gpus:g}, more than there is in one place: there are "
            f"{_there(resources)}. Ask for less."
        )
    return fits


def _train(base: Config, resources: Resources, device: str) -> int:
    """Whole runs at once: on this machine as many as have a core for every process that computes, elsewhere as Ray counts."""
    if resources.cluster:
        fits = int(sum(node.cpus for node in resources.nodes) // (base.workers + base.actors + 2))
    else:
        together = base.workers + base.actors if base.valuation.lag else max(base.workers, base.actors)
        fits = len(resources.cores) // together
    if device == "cuda":
        fits = min(fits, resources.gpus // base.workers)
    return max(1, fits)


def _there(resources: Resources) -> str:
    cpus = sum(node.cpus for node in resources.nodes) if resources.cluster else len(resources.cores)
    what = "CPUs in the Ray cluster" if resources.cluster else "cores here"
    return f"{cpus:g} {what}" + (f" and {resources.gpus} GPUs" if resources.gpus else "")


def free() -> dict[str, float]:
    """CPUs and GPUs of Ray that nobody holds."""
    import ray

    there = ray.available_resources()
    return {name: there.get(name, 0.0) for name in ("CPU", "GPU") if ray.cluster_resources().get(name)}


def all_back(before: dict[str, float], within: float = BACK_WITHIN) -> str:
    """Wait until as much is free as before, and say how long that took, or what is missing: Ray counts a few seconds late."""
    began = time.monotonic()
    while True:
        now, waited = free(), time.monotonic() - began
        counts = ", ".join(f"{now.get(name, 0):g} of {count:g} {name}s" for name, count in before.items())
        if all(now.get(name, 0) >= count - 1e-6 for name, count in before.items()):
            return f"resources back after {waited:.0f} s: {counts}"
        if waited > within:
            return f"after {waited:.0f} s some are still held: {counts} free. `ray list placement-groups` says by whom."
        time.sleep(0.5)
