"""Putting the seats of a run into effect on Ray."""

from __future__ import annotations

from typing import Any

from equipoise.pipelines.seats import Seats


def start_valuers(seats: Seats) -> list[Any]:
    """The valuation actors, each in its seat. One that dies is started again, and its chunk is tried up to five more times."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from equipoise.pipelines.valuer import Valuer

    seat = seats.actor
    options: dict[str, Any] = {"num_cpus": seat.cpus, "num_gpus": seat.gpus}
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


def start_conductor(seats: Seats, valuers: list[Any]) -> Any:
    """The actor that hands chunks to the valuers while training goes on: without a CPU of its own, on the valuers' cores."""
    import ray

    from equipoise.pipelines.between import Conductor

    actor = ray.remote(max_restarts=-1, max_task_retries=-1, num_cpus=0)(Conductor)
    return actor.remote(valuers, 1, seats.actor.cores)
