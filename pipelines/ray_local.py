"""Starting Ray on this machine, or joining the cluster that RAY_ADDRESS names."""

from __future__ import annotations

import logging
import os
import socket
import sys
import warnings
from typing import Any

from equipoise.models.errors import EquipoiseError
from equipoise.pipelines.machine import cores, free_memory, store_bytes
from equipoise.pipelines.seats import Node, Resources


def look(verbose: bool = False) -> Resources:
    """What there is: on this machine, or in the Ray that is there already, which is joined.

    Raises:
        EquipoiseError: no Ray answers at RAY_ADDRESS.
    """
    import torch

    usable = torch.cuda.is_available()
    if not joins():
        gpus = torch.cuda.device_count() if usable else 0
        here = Node("this machine", len(cores()), gpus, free_memory(), store_bytes())
        return Resources((here,), cores(), cuda=usable)
    _init(verbose)
    import ray

    def node(said: dict[str, Any]) -> Node:
        has = said["Resources"]
        store, memory = has.get("object_store_memory", 0), has.get("memory", 0)
        return Node(said["NodeID"], has.get("CPU", 0), has.get("GPU", 0), memory, store, said["NodeManagerHostname"])

    nodes = tuple(node(said) for said in ray.nodes() if said["Alive"])
    # The head of a cluster may have no GPU; on this machine, Ray may see one that this build of torch cannot use.
    return Resources(nodes, cores(), cluster=True, cuda=usable or bool(os.environ.get("RAY_ADDRESS")))


def joins() -> bool:
    """Whether there is a Ray already: RAY_ADDRESS names one, or this process is in one."""
    return bool(os.environ.get("RAY_ADDRESS")) or ("ray" in sys.modules and sys.modules["ray"].is_initialized())


def start_ray(resources: Resources, cpus: int, verbose: bool = False, dashboard: bool = False) -> None:
    """Start Ray with so many logical CPUs, quietly unless `verbose`, with usage statistics off; unless it is there already.

    `dashboard`: with Ray's own, which runs of Ray Train inside of Tune need: where a trial is stopped, Ray asks it whether
    the run is over before it takes back what the run held.
    """
    if not resources.cluster:
        # The controller looks at its workers once in this time, and a report waits for it: at the default of 2 s an
        # epoch of a small data set would be all waiting.
        os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
        options: dict[str, Any] = {"num_cpus": cpus, "num_gpus": resources.gpus, "include_dashboard": dashboard}
        if not dashboard:
            _init(verbose, **options)
            return
        # Where two Rays run on a machine, those who ask do not find theirs unless its address is in their environment.
        port = _free_port()
        os.environ["RAY_GCS_SERVER_PORT"] = str(port)
        try:
            _init(verbose, runtime_env={"env_vars": {"RAY_ADDRESS": f"127.0.0.1:{port}"}}, **options)
        finally:
            del os.environ["RAY_GCS_SERVER_PORT"]


def start_tasks(processes: int, resources: Resources) -> bool:
    """Start Ray for so many single-threaded tasks at a time, unless it is there already; whether it was started here."""
    if joins():
        _init(False)
        return False
    # A task's libraries take their threads from the environment, and Ray's own choice is not the number of its CPUs.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    _init(False, num_cpus=processes, num_gpus=resources.gpus, include_dashboard=False)
    return True


def _free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("", 0))
        port: int = listening.getsockname()[1]
    return port


def _init(verbose: bool, **options: Any) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    import ray

    if not verbose:
        for name in ("ray", "ray.data", "ray.train", "ray.tune", "ray.serve"):
            logging.getLogger(name).setLevel(logging.ERROR)
        warnings.filterwarnings("ignore", module="ray")
    if ray.is_initialized():
        return
    address = os.environ.get("RAY_ADDRESS", "")
    try:
        host, colon, port = address.rpartition(":")
        if colon and port.isdigit() and "/" not in host:
            # Ray itself tries for minutes.
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
        level = logging.INFO if verbose else logging.ERROR
        ray.init(log_to_driver=verbose, logging_level=level, configure_logging=True, **options)
    except Exception as error:
        if not address:
            raise
        said = str(error).strip().splitlines()[0][:200].rstrip(".") if str(error) else type(error).__name__
        if isinstance(error, OSError):  # ConnectionError is one
            raise EquipoiseError(
                f"No Ray answers at RAY_ADDRESS={address} ({said}): start it there (`ray start --head`), correct the address, "
                "or unset RAY_ADDRESS to use this machine."
            ) from error
        # Another version of Ray or Python, a missing token.
        raise EquipoiseError(
            f"Cannot join the Ray at RAY_ADDRESS={address}: {said}. It wants the same versions of Ray and Python as here, and "
            "its token in RAY_AUTH_TOKEN where it has one."
        ) from error
