"""N workers on a global batch = one worker on the same batch, for every task; rows lack modalities throughout."""

import numpy as np
import pytest
from task_cases import TASKS
from test_balancers_world_size import relative

from equipoise import balancers
from equipoise.models.fusion import FUSIONS

SOUND = [name for name in TASKS if name != "segmentation, pooled"]
CLAIMS = [
    (name, task) for name in balancers.names() for task in SOUND if task.partition(",")[0] in balancers.get(name).tasks
]


def run(gloo, world, name, task, cut="uneven", micro=1):
    balancer = balancers.get(name)
    how = {"unimodal": balancer.accepts[0]}
    if balancer.fusions:
        how |= {"fusion": balancer.fusions[0], "absence": FUSIONS[balancer.fusions[0]].absences[0]}
    return gloo.run("task_cases", "train", world, name, task, how, cut, micro)


@pytest.mark.parametrize(("name", "task"), CLAIMS)
def test_workers_equal_one_worker_in_every_task(gloo, name, task):
    [alone] = run(gloo, 1, name, task)
    for cut in ("uneven", "empty"):
        for world in (2, 4):
            replicas = run(gloo, world, name, task, cut)
            for other in replicas[1:]:
                for parameter in alone:
                    np.testing.assert_array_equal(replicas[0][parameter], other[parameter])
            assert relative(replicas[0], alone) < 1e-10


@pytest.mark.parametrize("task", SOUND)
def test_micro_batches_equal_one_batch_in_every_task(gloo, task):
    [whole] = run(gloo, 1, "summed", task)
    assert relative(run(gloo, 2, "summed", task, micro=3)[0], whole) < 1e-10


def test_dice_pooled_over_the_batch_fails_this_test(gloo):
    # On one worker both are sound training; pooled, the loss of a row depends on which rows lie beside it.
    [alone] = run(gloo, 1, "joint", "segmentation, pooled")
    replicas = run(gloo, 4, "joint", "segmentation, pooled", "empty")
    assert relative(replicas[0], alone) > 1e-3
