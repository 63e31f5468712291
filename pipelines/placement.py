"""Putting the seats of a run into effect on Ray, or saying what is missing where they are taken."""

from __future__ import annotations

import os
from typing import Any

from rich.console import Console

from equipoise.models.errors import EquipoiseError
from equipoise.pipelines.seats import Seats

#: How long a run waits for its seats before it gives up, in seconds.
START_TIMEOUT = "EQUIPOISE_START_TIMEOUT_S"
_SAYS_SO_AFTER = 5.0


def await_seats(seats: Seats, console: Console) -> None:
    """Return as soon as every worker, every actor and one data task could sit down at once.

    Ray Train would wait for ever, without a word, for workers that find no place; so they are tried first, as one
    placement group that is given back at once.

    Raises:
        EquipoiseError: there was no room within `EQUIPOISE_START_TIMEOUT_S` (60) seconds; what is missing is named.
    """
    from ray.util.placement_group import placement_group, remove_placement_group

    seconds = start_timeout()
    actors = sum(place.actors for place in seats.places)
    bundles = [seats.worker.bundle] * _workers(seats) + [seats.actor.bundle] * actors + [{"CPU": 1.0}]
    group = placement_group(bundles, strategy="PACK")
    try:
        first = min(_SAYS_SO_AFTER, seconds)
        if group.wait(first):
            return
        console.print(f"waiting up to {seconds:g} s for room on the Ray cluster: {_asked(seats)}; {_free()} free")
        if group.wait(seconds - first):
            return
    finally:
        remove_placement_group(group)
    raise EquipoiseError(
        f"The Ray cluster had no room for the run within {seconds:g} s: it asks for {_asked(seats)}, and {_free()} are free. "
        f"End what holds the rest, ask for fewer workers or actors, or wait longer ({START_TIMEOUT}=600)."
    )


def start_timeout() -> float:
    """Seconds to wait for seats. Raises `EquipoiseError` where the variable holds no number."""
    try:
        return max(0.0, float(os.environ.get(START_TIMEOUT, "60")))
    except ValueError:
        raise EquipoiseError(f"{START_TIMEOUT} is a number of seconds, found {os.environ[START_TIMEOUT]!r}.") from None


def no_seats(error: BaseException, seats: Seats) -> EquipoiseError | None:
    """The sentence for workers that were lost and found no place to start again; None for another error."""
    failure = getattr(error, "controller_failure", None)
    if type(failure).__name__ != "WorkerGroupStartupTimeoutError":
        return None
    return EquipoiseError(
        f"Workers were lost, and the Ray cluster has no room to start them again: they ask for {_asked(seats)}, and {_free()} "
        "are free. The same command goes on from the last checkpoint once there is room."
    )


def _asked(seats: Seats) -> str:
    workers, actors = _workers(seats), sum(place.actors for place in seats.places)
    gpus = workers * seats.worker.gpus + actors * seats.actor.gpus
    return (
        f"{workers * seats.worker.cpus + actors * seats.actor.cpus + 1} CPUs{f' and {gpus:g} GPUs' if gpus else ''} "
        f"(workers={workers}, actors={actors}, one data task)"
    )


def _free() -> str:
    import ray

    free, there = ray.available_resources(), ray.cluster_resources()
    return " and ".join(f"{free.get(r, 0):g} of {there[r]:g} {r}s" for r in ("CPU", "GPU") if there.get(r))


def _workers(seats: Seats) -> int:
    return sum(place.workers for place in seats.places)


def start_valuers(seats: Seats) -> list[Any]:
    """The valuation actors, each in its seat. One that dies is started again, and its chunk is tried up to five more times."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from equipoise.pipelines.valuer import Valuer

    seat = seats.actor
    options: dict[str, Any] = {"num_cpus": seat.cpus, "num_gpus": seat.gpus, "scheduling_strategy": _anywhere()}
    if seats.shared_gpus:
        # A share of some GPU brings an actor to the right node; it then takes one of all that the node has, in turn.
        options["runtime_env"] = {"env_vars": {"RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES": "1"}}
    valuers = []
    for place in seats.places:
        for number in range(place.actors):
            if seat.gpus and len(seats.places) > 1:
                # Elsewhere its share could break into the last whole GPU that a worker needs.
                options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(place.node.id, soft=True)
            actor = ray.remote(max_restarts=-1, max_task_retries=5, **options)(Valuer)
            device = f"cuda:{number}" if seats.actor_device == "cuda" else "cpu"
            valuers.append(actor.remote(seat.threads, device, seat.cores))
    return valuers


def start_conductor(seats: Seats) -> Any:
    """The actor that hands chunks to the valuers while training goes on: without a CPU of its own, on the valuers' cores."""
    import ray

    from equipoise.pipelines.between import Conductor

    actor = ray.remote(max_restarts=-1, max_task_retries=-1, num_cpus=0, scheduling_strategy=_anywhere())(Conductor)
    return actor.remote(1, seats.actor.cores)


def _anywhere() -> Any:
    """Outside the placement group of this process: that of a trial of Tune has room for the trial's own process alone."""
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    return PlacementGroupSchedulingStrategy(placement_group=None)  # type: ignore[arg-type]  # it says None in words
