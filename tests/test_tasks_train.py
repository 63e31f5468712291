"""Every registered balancer on every task that it claims, on the four data sets that are always there."""

from functools import cache

import numpy as np
import pytest
import torch

from equipoise import balancers
from equipoise.datasets.manifest import Manifest
from equipoise.datasets.prepare import prepare
from equipoise.datasets.reading import Reader
from equipoise.datasets.task_spec import KINDS
from equipoise.models.errors import EquipoiseError
from equipoise.pipelines.assembly import assemble
from equipoise.pipelines.config import load_config
from equipoise.pipelines.light import train_light

SETS = {
    "classification": ("digits", {}),
    "multilabel": ("digit-attributes", {}),
    "regression": ("diabetes", {}),
    "segmentation": ("volumes", {"volumes": 60, "size": 8}),
}
BUDGET = {
    "classification": {"max_steps": 130, "batch_size": 100},
    "multilabel": {"max_steps": 130, "batch_size": 100},
    "regression": {"max_steps": 100, "batch_size": 32},
    "segmentation": {"max_steps": 30, "batch_size": 4},
}
#: How far below joint's the full accuracy may lie on digits, mean of the seeds; a card may ask for more, and says why.
MARGIN = 0.03
#: Five seeds in `make check`, two of them in `make test`: a mean of fewer varies more, and the margin is the same.
SEEDS = [pytest.param(2, id="2 seeds"), pytest.param(5, id="5 seeds", marks=pytest.mark.slow)]


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    root = tmp_path_factory.mktemp("sets")
    for task, (name, options) in SETS.items():
        prepare(name, root / task, **options)
    return root


def config(sets, task, balancer, seed=0):
    model = {"encoder": {"hidden": 4, "depth": 1, "out_features": 4}} if task == "segmentation" else {}
    return load_config(
        {
            "data": str(sets / task), "out": "unused", "balancer": balancer, "seed": seed, "model": model,
            "optimizer": {"lr": 0.02 if task == "segmentation" else 0.01}, **BUDGET[task],
        }
    )  # fmt: skip


def full(run, metric, split="validation"):
    return run.matrix[split][max(run.matrix[split])][metric]


@pytest.fixture(scope="module")
def digits_accuracy(sets):
    """Test accuracy of a balancer at a seed, trained once."""
    return cache(lambda name, seed: full(train_light(config(sets, "classification", name, seed)), "accuracy", "test"))


@pytest.mark.parametrize("seeds", SEEDS)
@pytest.mark.parametrize("name", balancers.names())
def test_full_accuracy_on_digits_is_within_the_margin_of_joint(digits_accuracy, name, seeds):
    joint, found = ([digits_accuracy(method, s) for s in range(seeds)] for method in ("joint", name))
    assert min(joint) > 0.9
    assert np.mean(found) >= np.mean(joint) - MARGIN


#: How far above the best constant prediction the headline must come, of the way to a perfect one.
ROOM = {"multilabel": 0.5, "regression": 0.1, "segmentation": 0.2}
PAIRS = [(name, task) for name in balancers.names() for task in ROOM if task in balancers.get(name).tasks]


def best_constant(sets, task):
    """The headline on validation of saying everything, nothing, or the train mean, whatever the sample."""
    reader = Reader(sets / task)
    built = reader.manifest.build_task()
    target = torch.from_numpy(reader.read("validation", np.arange(reader.manifest.splits["validation"].rows))["target"])
    found = []
    for logit in (-10.0, 0.0, 10.0):
        metrics = built.metrics()
        metrics.update(torch.full(target.shape, logit), target)
        found.append(built.score(metrics.compute()))
    return built, float(max(found))


@pytest.mark.parametrize(("name", "task"), PAIRS)
def test_every_balancer_learns_every_task_it_claims(sets, name, task):
    run = train_light(config(sets, task, name))
    built, constant = best_constant(sets, task)
    perfect = 0.0 if built.lower_is_better else 1.0
    assert built.score(run.matrix["validation"][max(run.matrix["validation"])]) > constant + ROOM[task] * (
        perfect - constant
    )
    # Values of every sample, whatever the task: what they add up to is what all modalities are worth.
    values = run.values["test"]
    parts = values.present.sum(axis=1)
    np.testing.assert_allclose(np.nansum(values.contributions, axis=1), parts * values.benefit, atol=1e-6)


@pytest.mark.parametrize("name", balancers.names())
def test_what_a_balancer_does_not_claim_it_refuses_by_name(sets, name):
    balancer = balancers.get(name)
    assert set(balancer.tasks) <= set(KINDS)
    for task in set(KINDS) - set(balancer.tasks):
        made = config(sets, task, name)
        manifest = Manifest.load(sets / task)
        with pytest.raises(EquipoiseError, match=f"Balancer '{name}' is defined for .*, not for the task '{task}'"):
            balancer.check(assemble(made, manifest), manifest.build_task())
