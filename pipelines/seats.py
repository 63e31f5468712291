"""Who sits where: the CPUs, GPUs, threads and cores of training workers, valuation actors and data tasks.

A pure function of a configuration and of what there is, so that a run that cannot start is refused before anything starts,
and `equipoise doctor` can show the seats without Ray.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from equipoise.models.errors import EquipoiseError

if TYPE_CHECKING:
    from equipoise.pipelines.config import Config

#: What a worker asks of a GPU that it shares with actors. More than half, so that no GPU ever gets two workers.
WORKER_SHARE = 0.6


@dataclass(frozen=True)
class Node:
    """A machine of a cluster, as Ray counts it: its id, and memory and object store in bytes (0: not known)."""

    id: str
    cpus: float
    gpus: float = 0
    memory: float = 0
    object_store: float = 0
    host: str = ""

    @property
    def name(self) -> str:
        return self.host or self.id


@dataclass(frozen=True)
class Resources:
    """What there is.

    `cluster`: a Ray that is already there, whose CPUs are counted as they are. Otherwise there is one node, and Ray starts
    on it with as many logical CPUs as the run needs. `cores`: of this machine, those that this process may run on. `cuda`:
    whether `device=auto` may choose cuda.
    """

    nodes: tuple[Node, ...]
    cores: tuple[int, ...]
    cluster: bool = False
    cuda: bool = False

    @property
    def gpus(self) -> int:
        return sum(int(node.gpus) for node in self.nodes)


@dataclass(frozen=True)
class Seat:
    """What one process gets: CPUs and GPUs as Ray counts them, torch threads, and the cores it is bound to (None: any)."""

    cpus: int
    gpus: float
    threads: int
    cores: tuple[int, ...] | None = None

    @property
    def bundle(self) -> dict[str, float]:
        """What Ray is asked for."""
        return {"CPU": self.cpus, **({"GPU": self.gpus} if self.gpus else {})}


@dataclass(frozen=True)
class Place:
    """How many sit on a node. The workers of a node, its actors and its data tasks never ask for more than it has."""

    node: Node
    workers: int = 0
    actors: int = 0


@dataclass(frozen=True)
class Seats:
    """The seats of a run: what each worker and each actor gets, and where they fit.

    `device`, `actor_device`: "cpu" or "cuda". `cpus`: all that Ray counts, of which each worker's data pipeline may use
    `data_cpus`. Driver and controller use none.
    """

    device: str
    actor_device: str
    worker: Seat
    actor: Seat
    places: tuple[Place, ...]
    cpus: int
    data_cpus: float

    @property
    def shared_gpus(self) -> bool:
        """Whether actors sit on the GPUs of the workers."""
        return 0 < self.worker.gpus < 1


def take_seats(config: Config, resources: Resources) -> Seats:
    """The seats of a run.

    `valuation.placement`: "shared" actors take turns with the workers on the same cores, and sit on the GPUs that workers
    leave or, where they leave none, share theirs; "separate" ones get cores of their own on one machine, or whole GPUs of
    their own; "cpu" ones never get a GPU. Threads a process are what `threads` says, or the cores over the processes that
    compute at the same time: with lag 0 workers or actors, with lag 1 both.

    Raises:
        EquipoiseError: what is asked for does not fit.
    """
    workers, actors, placement = config.workers, config.actors, config.valuation.placement
    nodes = resources.nodes
    if not resources.cluster:
        nodes = (replace(nodes[0], cpus=max(len(resources.cores), workers + actors + 2)),)
    cpus = sum(int(node.cpus) for node in nodes)
    if cpus < workers + actors + 1:
        raise EquipoiseError(
            f"The Ray cluster has {cpus} CPUs, but workers={workers}, actors={actors} and one data task need "
            f"{workers + actors + 1}: ask for fewer, or start Ray with more (`ray start --num-cpus`)."
        )
    device = _device(config, resources)
    for worker_gpus, actor_gpus in _gpus(config, device, resources.gpus):
        if (places := _fit(nodes, workers, worker_gpus, actors, actor_gpus)) is not None:
            break
    else:
        raise _no_room(nodes, workers, worker_gpus, actors, actor_gpus)
    worker_cores = actor_cores = None
    if placement == "separate" and device == "cpu":
        worker_cores, actor_cores = _split(config, resources)
        threads = len(worker_cores) // workers, len(actor_cores) // actors
    else:
        threads = (_threads(places, resources, config.valuation.lag == 1),) * 2
    if config.threads is not None:
        threads = (config.threads,) * 2
    return Seats(
        device=device,
        actor_device="cuda" if actor_gpus else "cpu",
        worker=Seat(1, worker_gpus, max(1, threads[0]), worker_cores),
        actor=Seat(1, actor_gpus, max(1, threads[1]), actor_cores),
        places=places,
        cpus=cpus,
        data_cpus=max(1.0, (cpus - workers - actors) // workers),
    )


def sit(threads: int | None, cores: Sequence[int] | None = None) -> None:
    """Give this process its torch threads and, on Linux, bind all of it to its cores; elsewhere cores are not bound.

    Raises:
        EquipoiseError: the system does not let this process run on those cores.
    """
    import torch

    # A new thread inherits from the one that starts it; those that run already (Ray's) are told one by one.
    for thread in os.listdir("/proc/self/task") if cores and hasattr(os, "sched_setaffinity") else ():
        try:
            os.sched_setaffinity(int(thread), cores or ())
        except ProcessLookupError:
            continue  # it ended meanwhile
        except OSError as error:
            raise EquipoiseError(
                f"A process of the run may not use the cores {', '.join(map(str, cores or ()))} ({error.strerror}): Ray was "
                "started with other cores than this machine gives; use valuation.placement=shared."
            ) from error
    if threads:
        torch.set_num_threads(threads)


def _device(config: Config, resources: Resources) -> str:
    gpus, workers = resources.gpus, config.workers
    if config.device == "auto":
        return "cuda" if gpus >= workers and resources.cuda else "cpu"
    if config.device == "cuda" and gpus < workers:
        raise EquipoiseError(
            f"device=cuda needs a GPU a worker: there are {gpus}, and workers={workers}. Ask for fewer workers, or use "
            "device=cpu."
        )
    return config.device


def _gpus(config: Config, device: str, gpus: int) -> list[tuple[float, float]]:
    """(GPUs a worker, GPUs an actor) to try, the best first."""
    workers, actors, placement = config.workers, config.actors, config.valuation.placement
    if device == "cpu":
        return [(0.0, 0.0)]
    if placement == "cpu":
        return [(1.0, 0.0)]
    if placement == "separate":
        if gpus < workers + actors:
            raise EquipoiseError(
                f"valuation.placement=separate needs a GPU for each of workers={workers} and actors={actors}: there are {gpus}. "
                "Ask for fewer, or use valuation.placement=shared or cpu."
            )
        return [(1.0, 1.0)]
    # All actors together leave a worker its share, on whichever GPU Ray puts them.
    share = (WORKER_SHARE, _floor((1 - WORKER_SHARE) / actors))
    free = gpus - workers
    return [(1.0, _floor(1 / -(-actors // free))), share] if free else [share]


def _floor(share: float) -> float:
    """Down to what Ray tells apart."""
    return int(share * 10_000 + 1e-6) / 10_000


def _fit(
    nodes: Sequence[Node], workers: int, worker_gpus: float, actors: int, actor_gpus: float
) -> tuple[Place, ...] | None:
    """Places for all, with a CPU left for a data task; None where a worker or an actor fits no node."""
    places = []
    # The largest nodes first: Ray packs workers as well.
    for node in sorted(nodes, key=lambda n: -_worker_room(n, worker_gpus)):
        here = min(workers, _worker_room(node, worker_gpus))
        workers -= here
        places.append(Place(node, here))
    if workers:
        return None
    for _ in range(actors):
        rooms = [i for i, p in enumerate(places) if p.actors < _actor_room(p, worker_gpus, actor_gpus)]
        if not rooms:
            return None
        # Evenly over the GPUs, or over the CPUs.
        at = min(rooms, key=lambda i: places[i].actors / (places[i].node.gpus if actor_gpus else places[i].node.cpus))
        places[at] = replace(places[at], actors=places[at].actors + 1)
    return tuple(places)


def _worker_room(node: Node, gpus: float) -> int:
    return min(int(node.cpus), int(node.gpus)) if gpus else int(node.cpus)


def _actor_room(place: Place, worker_gpus: float, gpus: float) -> int:
    """How many actors of 1 CPU and `gpus` a node seats beside its workers."""
    cpus, whole = int(place.node.cpus) - place.workers, int(place.node.gpus)
    if not gpus:
        return cpus
    if worker_gpus < 1:
        return cpus if whole else 0
    return min(cpus, (whole - place.workers) * int(1 / gpus + 1e-2))


def _no_room(nodes: Sequence[Node], workers: int, worker_gpus: float, actors: int, actor_gpus: float) -> EquipoiseError:
    has = "; ".join(f"{node.name}: {node.cpus:g} CPUs, {node.gpus:g} GPUs" for node in nodes)
    return EquipoiseError(
        f"The nodes of the cluster cannot seat workers={workers} (1 CPU and {worker_gpus:g} GPU each, on one node) and "
        f"actors={actors} (1 CPU and {actor_gpus:g} GPU): there are {has}. Ask for fewer, or start Ray with more CPUs where "
        "the GPUs are, or use device=cpu."
    )


def _threads(places: Sequence[Place], resources: Resources, together: bool) -> int:
    """Cores over the processes that compute at once, on the node where they are the fewest."""

    def each(place: Place) -> int:
        at_once = place.workers + place.actors if together else max(place.workers, place.actors)
        cores = len(resources.cores) if len(places) == 1 else int(place.node.cpus)
        return cores // at_once if at_once else cores

    return max(1, min(each(place) for place in places if place.workers or place.actors))


def _split(config: Config, resources: Resources) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The first cores for the workers, the last for the actors, by their numbers, at least one each."""
    cores, workers, actors = resources.cores, config.workers, config.actors
    if len(resources.nodes) > 1:
        raise EquipoiseError(
            "valuation.placement=separate gives the actors cores of their own on one machine, or GPUs of their own: this "
            f"cluster has {len(resources.nodes)} nodes, and the run uses no GPU. Use valuation.placement=shared."
        )
    if len(cores) < 2:
        raise EquipoiseError(
            f"valuation.placement=separate needs a core for the workers and one for the actors: this machine gives {len(cores)}. "
            "Use valuation.placement=shared."
        )
    for_actors = min(max(1, round(len(cores) * actors / (workers + actors))), len(cores) - 1)
    return tuple(cores[:-for_actors]), tuple(cores[-for_actors:])
