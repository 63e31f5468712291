"""What a step costs in things that can be counted: passes as declared, memory as promised."""

import pytest
import torch
from torch import nn

from benchmarks.step import SMALL, count, kind, made
from benchmarks.step_cost import Live, counted
from equipoise import balancers
from equipoise.balancers import Balancer
from equipoise.balancers.gmd import GMD


@pytest.mark.parametrize("modalities", [2, 3])
@pytest.mark.parametrize("name", balancers.names())
def test_backward_passes_are_as_many_as_declared(name, modalities):
    balancer = balancers.get(name)
    model = SMALL.build(modalities, kind(balancer))
    step = made(balancer, model)
    for number in range(2):  # the first may lack what a method learns in it
        with counted(dict(model.encoders.items())) as passes:
            step(SMALL.batch(modalities, number))
    assert passes.runs == balancer.backward_passes(modalities)
    assert set(passes.forward.values()) == {1}, "features are encoded once"
    assert max(passes.backward.values()) <= passes.runs


@pytest.mark.parametrize("modalities", [2, 3])
def test_a_set_goes_back_through_its_own_encoders_alone(modalities):
    model = SMALL.build(modalities, {})
    step = made(balancers.get("gmd"), model)
    with counted(dict(model.encoders.items())) as passes:
        step(SMALL.batch(modalities, 0))
    assert passes.runs == 2**modalities - 1
    assert set(passes.backward.values()) == {2 ** (modalities - 1)}  # the sets that a modality is in


def test_passes_are_counted():
    # The count itself: two runs, one of which comes through one module alone.
    a, b, x = nn.Linear(2, 3), nn.Linear(3, 2), torch.ones(4, 2)
    with counted({"a": a, "b": b}) as passes:
        y = a(x)
        loss = b(y).sum() + y.sum()
        torch.autograd.grad(y.sum(), list(a.parameters()), retain_graph=True)
        loss.backward()
        torch.autograd.grad((x.requires_grad_() * 2).sum(), [x])
    assert dict(passes.forward) == {"a": 1, "b": 1}
    assert dict(passes.backward) == {"a": 2, "b": 1}
    assert passes.runs == 2


def test_live_memory_is_measured():
    before = torch.ones(1000)
    with Live().known(iter([before])) as live:
        kept = before * 2
        for _ in range(3):
            (before + 1).sum()
        view = kept[:10]
        before.mul_(2)
    assert live.peak == pytest.approx(2 * 4000, abs=64)
    assert live.now == pytest.approx(4000, abs=64)
    assert len(view) == 10


@pytest.mark.parametrize("modalities", [2, 3])
def test_gmd_keeps_k_and_a_half_gradients_at_the_most(modalities):
    counts = count(balancers.get("gmd"), modalities)
    k = counts.objectives
    assert k == 2**modalities - 1
    assert k < counts.live <= k + 1.5


def test_a_copy_of_all_gradients_would_be_seen():
    class Copying(GMD):
        name = ""

        def combine(self, gradients, ctx):
            return (gradients.flat * 2).sum(dim=0) / 2

    assert count(Copying(), 2).live > 6


class Looking(Balancer):
    """One objective a modality; notes how much is alive when gradients are combined. Registered nowhere."""

    separate = True

    def objectives(self, ctx):
        return {m: ctx.mean(ctx.task.losses(ctx.fuse([m]), ctx.target), m) for m in ctx.modalities}

    def combine(self, gradients, ctx):
        gradients.flat.sum()  # what has died since the last operator is noticed by the next
        self.alive = self.live.now / gradients.flat.nbytes
        return super().combine(gradients, ctx)


def test_the_graph_is_gone_before_gradients_are_combined():
    # Each objective leads to one encoder, so that none but the last frees what it saved: 20,000 rows of it.
    balancer = Looking()
    model = SMALL.build(2, {})
    step = made(balancer, model)
    batch = SMALL.batch(2, 0)
    many = {name: x.repeat(300, *(1,) * (x.ndim - 1)) for name, x in batch.items() if name != "inputs"}
    many["inputs"] = {m: x.repeat(300, 1) for m, x in batch["inputs"].items()}
    with Live() as balancer.live:
        step(many)
    features = 300 * 64 * 64 * 4 * 2 / (2 * step.layout.size * 4)  # of both encoders, in the same unit
    assert balancer.live.peak / (2 * step.layout.size * 4) > 3 * features
    assert features < balancer.alive < 1.5 * features, "they stay for `modulate` to read, the hidden layers do not"
