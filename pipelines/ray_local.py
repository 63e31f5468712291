"""Starting Ray on this machine, or joining the cluster that RAY_ADDRESS names."""

from __future__ import annotations

import logging
import os
import warnings
from typing import Any

from equipoise.models.errors import EquipoiseError


def logical_cpus(workers: int, actors: int) -> int:
    """How many CPUs Ray is told of on one machine: they only schedule, and Ray Data starves where Train holds them all."""
    return max(os.cpu_count() or 1, workers + actors + 2)


def threads_each(workers: int, actors: int) -> int:
    """Torch threads a process: cores over the processes that compute at the same time (lag 0: training or valuing)."""
    return max(1, (os.cpu_count() or 1) // max(workers, actors))


def data_cpus_each(workers: int, actors: int) -> float:
    """The CPUs that a worker's data pipeline may use: its share of what workers and actors leave."""
    import ray

    return max(1.0, (ray.cluster_resources().get("CPU", 0) - workers - actors) // workers)


def start_ray(workers: int, actors: int, verbose: bool = False) -> None:
    """Start or join Ray, quietly unless `verbose`, with usage statistics off.

    Raises:
        EquipoiseError: a cluster with fewer CPUs than workers, actors and one data task need.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    import ray

    if not verbose:
        for name in ("ray", "ray.data", "ray.train", "ray.tune", "ray.serve"):
            logging.getLogger(name).setLevel(logging.ERROR)
        warnings.filterwarnings("ignore", module="ray")
    if not ray.is_initialized():
        quiet: Any = {
            "log_to_driver": verbose,
            "logging_level": logging.INFO if verbose else logging.ERROR,
            "configure_logging": True,
        }
        if os.environ.get("RAY_ADDRESS"):
            ray.init(**quiet)
        else:
            # The controller looks at its workers once in this time, and a report waits for it: at the default of 2 s an
            # epoch of a small data set would be all waiting.
            os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
            ray.init(num_cpus=logical_cpus(workers, actors), include_dashboard=False, **quiet)
    cpus = int(ray.cluster_resources().get("CPU", 0))
    if cpus < workers + actors + 1:
        raise EquipoiseError(
            f"The Ray cluster has {cpus} CPUs, but workers={workers}, actors={actors} and one data task need "
            f"{workers + actors + 1}: ask for fewer, or start Ray with more (`ray start --num-cpus`)."
        )
