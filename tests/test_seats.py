"""Who sits where: closed forms, nothing given twice, and everything fits or is refused in a sentence."""

import os
import subprocess
import sys
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from equipoise import EquipoiseError
from equipoise.pipelines.config import load_config
from equipoise.pipelines.seats import Node, Resources, take_seats


def config(workers=1, actors=1, placement="shared", lag=0, device="auto"):
    where = {"data": "d", "out": "o", "max_steps": 1, "workers": workers, "actors": actors, "device": device}
    return load_config({**where, "valuation": {"placement": placement, "lag": lag}})


def machine(cores, gpus=0):
    return Resources((Node("here", cores, gpus),), tuple(range(cores)), cuda=gpus > 0)


def cluster(*nodes, cores=4, cuda=True):
    return Resources(tuple(Node(f"n{i}", *node) for i, node in enumerate(nodes)), tuple(range(cores)), True, cuda)


# cores, workers, actors, lag -> logical CPUs, threads, CPUs for a worker's data tasks. The first eight: what runs had before
# there were seats; bit-equality of a run with itself hangs on the threads.
ONE_MACHINE = [
    (2, 1, 1, 0, 4, 2, 2.0),
    (2, 2, 2, 0, 6, 1, 1.0),
    (2, 2, 1, 0, 5, 1, 1.0),
    (2, 4, 4, 0, 10, 1, 1.0),
    (8, 1, 1, 0, 8, 8, 6.0),
    (8, 2, 3, 0, 8, 2, 1.0),
    (16, 4, 2, 0, 16, 4, 2.0),
    (1, 1, 1, 0, 4, 1, 2.0),
    (2, 1, 1, 1, 4, 1, 2.0),
    (8, 2, 2, 1, 8, 2, 2.0),
    (8, 1, 3, 1, 8, 2, 4.0),
    (1, 3, 3, 1, 8, 1, 1.0),
]


@pytest.mark.parametrize(("cores", "workers", "actors", "lag", "cpus", "threads", "data"), ONE_MACHINE)
@pytest.mark.parametrize("placement", ["shared", "cpu"])
def test_closed_forms_on_one_machine(cores, workers, actors, lag, cpus, threads, data, placement):
    seats = take_seats(config(workers, actors, placement, lag), machine(cores))
    assert (seats.device, seats.actor_device) == ("cpu", "cpu")
    assert (seats.cpus, seats.data_cpus) == (cpus, data)
    for seat in (seats.worker, seats.actor):
        assert (seat.cpus, seat.gpus, seat.threads, seat.cores) == (1, 0, threads, None)


@pytest.mark.parametrize("placement", ["shared", "separate"])
def test_threads_that_are_named_are_those_of_worker_and_actor(placement):
    made = load_config(config(2, 1, placement).model_dump(), {"threads": 3})
    seats = take_seats(made, machine(8))
    assert (seats.worker.threads, seats.actor.threads) == (3, 3)
    assert (seats.worker.cores is None) == (placement == "shared")


@pytest.mark.parametrize("total", [2, 3, 5, 8])
def test_a_ray_that_is_there_gives_the_threads_of_this_machine(total):
    # Its CPUs are counted as they are; they only schedule.
    seats = take_seats(config(1, 1), cluster((total + 1,), cores=8))
    assert (seats.cpus, seats.worker.threads, seats.data_cpus) == (total + 1, 8, total - 1)


@pytest.mark.parametrize(
    ("cores", "workers", "actors", "for_workers", "for_actors", "threads"),
    [
        (2, 1, 1, (0,), (1,), (1, 1)),
        (8, 1, 1, (0, 1, 2, 3), (4, 5, 6, 7), (4, 4)),
        (8, 3, 1, (0, 1, 2, 3, 4, 5), (6, 7), (2, 2)),
        (2, 1, 7, (0,), (1,), (1, 1)),
        (2, 9, 1, (0,), (1,), (1, 1)),
        (4, 2, 2, (0, 1), (2, 3), (1, 1)),
    ],
)
def test_separate_actors_have_cores_of_their_own(cores, workers, actors, for_workers, for_actors, threads):
    seats = take_seats(config(workers, actors, "separate"), machine(cores))
    assert (seats.worker.cores, seats.actor.cores) == (for_workers, for_actors)
    assert (seats.worker.threads, seats.actor.threads) == threads


# gpus, workers, actors, placement -> GPUs a worker, GPUs an actor
GPUS = [
    (1, 1, 1, "shared", 0.6, 0.4),
    (2, 2, 4, "shared", 0.6, 0.1),
    (1, 1, 3, "shared", 0.6, 0.1333),
    (2, 1, 1, "shared", 1, 1),
    (2, 1, 2, "shared", 1, 0.5),
    (4, 2, 3, "shared", 1, 0.5),
    (4, 1, 1, "shared", 1, 1),
    (4, 1, 7, "shared", 1, 0.3333),
    (1, 1, 1, "cpu", 1, 0),
    (8, 1, 1, "cpu", 1, 0),
    (2, 1, 1, "separate", 1, 1),
    (6, 2, 4, "separate", 1, 1),
]


@pytest.mark.parametrize(("gpus", "workers", "actors", "placement", "worker", "actor"), GPUS)
def test_closed_forms_with_gpus(gpus, workers, actors, placement, worker, actor):
    for device in ("auto", "cuda"):
        seats = take_seats(config(workers, actors, placement, device=device), machine(16, gpus))
        assert (seats.device, seats.actor_device) == ("cuda", "cuda" if actor else "cpu")
        assert (seats.worker.gpus, seats.actor.gpus) == (worker, actor)
        assert seats.worker.bundle == {"CPU": 1, "GPU": worker}
    plain = take_seats(config(workers, actors, placement, device="cpu"), machine(16, gpus))
    assert plain.worker.bundle == plain.actor.bundle == {"CPU": 1}


def test_auto_takes_the_cpu_where_gpus_are_too_few_or_torch_cannot_use_them():
    assert take_seats(config(3), machine(16, 2)).device == "cpu"
    assert take_seats(config(2), cluster((16, 2), cuda=False)).device == "cpu"
    assert take_seats(config(2), cluster((16, 2))).device == "cuda"


def test_threads_on_several_machines_are_those_of_the_fullest():
    # Two workers and an actor each on nodes of 8 CPUs: they take turns, or compute at once.
    assert take_seats(config(4, 2), cluster((8, 2), (8, 2))).worker.threads == 4
    assert take_seats(config(4, 2, lag=1), cluster((8, 2), (8, 2))).worker.threads == 2


REFUSED = [
    (config(50, 2), cluster((6,)), r"cluster has 6 CPUs, but workers=50, actors=2 and one data task need 53: ask for"),
    (config(1, 1), cluster((2,)), r"cluster has 2 CPUs, but workers=1, actors=1 and one data task need 3"),
    (config(1, 1), cluster((0.5,), (0.5,), (2,)), r"cluster has 2 CPUs"),
    (
        config(2, device="cuda"),
        machine(8, 1),
        r"device=cuda needs a GPU a worker: there are 1, and workers=2\. Ask for",
    ),
    (config(1, device="cuda"), machine(8), r"device=cuda needs a GPU a worker: there are 0"),
    (
        config(2, 2, "separate"),
        machine(8, 3),
        r"separate needs a GPU for each of workers=2 and actors=2: there are 3\. ",
    ),
    (
        config(1, 1, "separate"),
        machine(1),
        r"needs a core for the workers and one for the actors: this machine gives 1\.",
    ),
    (config(1, 1, "separate"), cluster((4,), (4,)), r"this cluster has 2 nodes, and the run uses no GPU\. Use"),
    (
        config(2),
        cluster((0, 4), (8, 0)),
        r"cannot seat workers=2 \(1 CPU and 0\.6 GPU each.*are n0: 0 CPUs, 4 GPUs; n1: 8 CPUs",
    ),
    (config(2, 2, "separate"), cluster((2, 8), (8, 0)), r"and actors=2 \(1 CPU and 1 GPU\)"),
]


@pytest.mark.parametrize(("asked", "there", "sentence"), REFUSED)
def test_what_does_not_fit_is_refused_in_a_sentence(asked, there, sentence):
    with pytest.raises(EquipoiseError, match=sentence) as caught:
        take_seats(asked, there)
    assert str(caught.value).count("\n") == 0


NODES = st.lists(
    st.tuples(st.sampled_from([0, 0.5, 1, 2, 3, 4, 9]), st.sampled_from([0, 0, 1, 2, 3])), min_size=1, max_size=3
)


@settings(max_examples=400, deadline=None)
@given(
    NODES,
    st.integers(1, 5),
    st.integers(1, 5),
    st.sampled_from(["shared", "separate", "cpu"]),
    st.sampled_from([0, 1]),
    st.sampled_from(["auto", "cpu", "cuda"]),
    st.booleans(),
)
def test_nothing_is_given_twice_and_everything_fits_or_is_refused(
    nodes, workers, actors, placement, lag, device, joined
):
    asked = config(workers, actors, placement, lag, device)
    there = cluster(*nodes) if joined else machine(max(1, int(nodes[0][0])), nodes[0][1])
    try:
        seats = take_seats(asked, there)
    except EquipoiseError:
        assert not feasible(asked, there)
        return
    assert feasible(asked, there)
    assert sum(p.workers for p in seats.places) == workers
    assert sum(p.actors for p in seats.places) == actors
    free = 0
    for p in seats.places:
        left = p.node.cpus - p.workers * seats.worker.cpus - p.actors * seats.actor.cpus
        assert left >= 0
        free += int(left)
        gpus = p.workers * seats.worker.gpus + p.actors * seats.actor.gpus
        assert gpus <= p.node.gpus + 1e-9
        # The GPUs one by one: a worker has one that no other worker has, wherever the actors are put on it.
        if seats.shared_gpus:
            assert seats.worker.gpus > 0.5
            assert seats.worker.gpus + actors * seats.actor.gpus <= 1 + 1e-9
            assert p.node.gpus or not p.actors
        elif seats.actor.gpus:
            each = int(1 / seats.actor.gpus + 1e-9)
            assert p.workers + -(-p.actors // each) <= p.node.gpus
    assert free >= 1  # a data task
    assert seats.data_cpus >= 1
    if seats.worker.cores is not None:
        assert set(seats.worker.cores).isdisjoint(seats.actor.cores)
        assert set(seats.worker.cores) | set(seats.actor.cores) == set(there.cores)
        assert seats.worker.threads * workers <= max(len(seats.worker.cores), workers)
        assert seats.actor.threads * actors <= max(len(seats.actor.cores), actors)
    elif len(seats.places) == 1:
        running = [workers + actors] if lag else [workers, actors]
        assert all(seats.worker.threads * n <= max(len(there.cores), n) for n in running)
    if placement == "cpu" or device == "cpu":
        assert seats.actor.gpus == 0


def feasible(asked, there):
    """By trying every way to put the workers and the actors on the nodes, a GPU at a time."""
    workers, actors, placement = asked.workers, asked.actors, asked.valuation.placement
    nodes = [(int(n.cpus), int(n.gpus)) for n in there.nodes]
    if not there.cluster:
        nodes = [(workers + actors + 2, nodes[0][1])]
    gpus = sum(g for _, g in nodes)
    cuda = asked.device == "cuda" or (asked.device == "auto" and there.cuda and gpus >= workers)
    if placement == "separate" and not cuda and (len(nodes) > 1 or len(there.cores) < 2):
        return False

    def fits(xs, ys):
        for (c, g), x, y in zip(nodes, xs, ys):
            if x + y > c or (cuda and x > g):
                return False
            if cuda and placement == "separate" and x + y > g:
                return False
            if cuda and placement == "shared" and y and not g:
                return False
        return sum(c for c, _ in nodes) - workers - actors >= 1

    ways = [w for w in product(range(workers + 1), repeat=len(nodes)) if sum(w) == workers]
    others = [a for a in product(range(actors + 1), repeat=len(nodes)) if sum(a) == actors]
    return any(fits(xs, ys) for xs in ways for ys in others)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system does not bind processes to cores")
def test_sitting_down_binds_every_thread_of_the_process():
    core = max(os.sched_getaffinity(0))
    code = f"""
import os, threading, torch
from equipoise.pipelines.seats import sit
stop = threading.Event()
threading.Thread(target=stop.wait).start()
sit(3, [{core}])
threading.Thread(target=stop.wait).start()
print(torch.get_num_threads(), {{tuple(os.sched_getaffinity(int(t))) for t in os.listdir("/proc/self/task")}})
stop.set()
from equipoise import EquipoiseError
try:
    sit(1, [4095])
except EquipoiseError as error:
    print(error)
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.splitlines()
    assert out[0] == f"3 {{({core},)}}"
    assert out[1].startswith("A process of the run may not use the cores 4095 (Invalid argument)")
