"""Gradients of several objectives, given by hand, measured on a small model, and along training on digits."""

from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from oracles import balancers as oracle
from sklearn.datasets import load_digits
from torch import nn
from world_cases import CLASSES, build_model, global_batch

from equipoise import balancers
from equipoise.balancers import BalancedStep, Gradients
from equipoise.balancers.gradients import Layout
from equipoise.models import MLP, Classification, LateFusion

METHODS = ["mmpareto", "pcgrad", "mgda", "jd"]
FULL = 5  # `global_batch(FULL)`: no row has "b"; the others miss some of each
CASES = [(0, "heads"), (FULL, "heads"), (0, "split"), (FULL, "split")]

#: Of inner products [[4, -1], [-1, 1]].
CONFLICT = [[2, 0], [-1 / 2, np.sqrt(3) / 2]]
#: Of `by_hand`: the encoder of "a" in two tensors, of "b" in one, an own head of "a", a fused head.
SIZES = {"a": [2, 3, 1], "b": [2], "shared": [], "head": [2]}
TWO = [1.0, -2, 3, 0.5, 1, 0, 0, 0, 2, 1]
VECTORS = st.integers(1, 5).flatmap(
    lambda k: st.lists(st.lists(st.integers(-6, 6).map(float), min_size=4, max_size=4), min_size=k, max_size=k)
)

try:
    from torchjd import aggregation
except ImportError:
    aggregation = None
needs_torchjd = pytest.mark.skipif(aggregation is None, reason="TorchJD is not installed: pip install 'equipoise[jd]'")


def each(names):
    return [pytest.param(name, marks=[needs_torchjd] if name == "jd" else []) for name in names]


def by_hand(**rows):
    """Gradients of named objectives; each row has the ten numbers of SIZES. A tensor of zeros counts as not reached."""
    groups = {owner: [nn.Parameter(torch.zeros(n)) for n in sizes] for owner, sizes in SIZES.items()}
    layout = Layout.of(groups)
    flat = torch.tensor(list(rows.values()), dtype=torch.float64)
    reached = torch.stack([(flat[:, part] != 0).any(dim=1) for part in layout.tensors], dim=1)
    return Gradients(flat, tuple(rows), layout, reached)


def combined(name, gradients, losses=None, **options):
    reports = {}
    ctx = SimpleNamespace(
        modalities=("a", "b"), report=reports.__setitem__, agreed=lambda t: t, losses=losses or {},
        generator=lambda purpose: torch.Generator().manual_seed(3),
    )  # fmt: skip
    return balancers.get(name, **options).combine(gradients, ctx).numpy(), reports


def step_of(name, batch, *, unimodal="heads", seed=3, **options):
    """What SGD with learning rate 1 subtracted, and the parameters it was taken at, {name: array}."""
    model = build_model(torch.float64, unimodal=unimodal)
    torch.manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.3 * torch.randn(p.shape, dtype=p.dtype))
    balancer = name if isinstance(name, balancers.Balancer) else balancers.get(name, **options)
    step = BalancedStep(model, Classification(CLASSES), balancer, torch.optim.SGD(model.parameters(), lr=1.0), seed=11)
    before = {n: p.detach().numpy().copy() for n, p in model.named_parameters()}
    result = step(batch)
    return {n: before[n] - p.detach().numpy() for n, p in model.named_parameters()}, before, result


def numeric(p, batch, kind):
    """{objective: {parameter: gradient}} by finite differences."""
    data = oracle.arrays(batch)
    found = {"fused": oracle.gradient(lambda q: oracle.joint_loss(q, data), p)}
    for m in oracle.unimodal_losses(p, data, kind):
        found[m] = oracle.gradient(lambda q, m=m: oracle.unimodal_losses(q, data, kind)[m], p)
    return found


def flat(gradient):
    return np.concatenate([g.ravel() for g in gradient.values()])


@cache
def measured(t, kind):
    """The batch, the parameters and every objective's gradient of a case: finite differences are made once."""
    batch = global_batch(t, torch.float64)
    _, p, _ = step_of("summed", batch, unimodal=kind)
    return batch, p, numeric(p, batch, kind)


def assert_close(found, expected):
    for n, g in expected.items():
        np.testing.assert_allclose(found[n], g, rtol=1e-5, atol=1e-8, err_msg=n)


def shared_names(gradients):
    """Parameters that several objectives reach."""
    return [n for n in gradients["fused"] if sum(np.abs(g[n]).max() > 1e-12 for g in gradients.values()) > 1]


def expected_of_shared(gradients, combine, names=None):
    """{parameter: gradient}: `combine` of the matrix [k, P] over the named parameters, the plain sum elsewhere."""
    names = shared_names(gradients) if names is None else names
    found = {n: sum(g[n] for g in gradients.values()) for n in gradients["fused"]}
    vector = combine(np.array([flat({n: g[n] for n in names}) for g in gradients.values()]))
    for n in names:
        size = found[n].size
        found[n], vector = vector[:size].reshape(found[n].shape), vector[size:]
    return found


def digits_steps(name, steps=100, **options):
    """(gradients of each objective by autograd, what the method made of them, the report) along training on two columns of
    the image and the other six.
    """
    x, y = torch.tensor(load_digits().images).double() / 16, torch.tensor(load_digits().target)
    torch.manual_seed(0)
    parts = {"left": MLP((8, 2), (16,), 8), "right": MLP((8, 6), (16,), 8)}
    model = LateFusion(parts, 10, unimodal="heads").double()
    step = BalancedStep(
        model, Classification(10), balancers.get(name, **options), torch.optim.SGD(model.parameters(), lr=0.5), seed=0
    )
    for t in range(steps):
        ids = (torch.arange(16) + 16 * t) % len(y)
        present = torch.ones(16, 2, dtype=torch.bool)
        inputs = {"left": x[ids, :, :2], "right": x[ids, :, 2:]}
        batch = {"sample_id": ids, "copy": 0 * ids, "inputs": inputs, "present": present, "target": y[ids]}
        out = model(inputs, present)
        losses = {"fused": out.logits, **out.unimodal_logits}
        rows = {}
        for n, z in losses.items():
            loss = nn.functional.cross_entropy(z, y[ids])
            grads = torch.autograd.grad(loss, list(model.parameters()), retain_graph=True, allow_unused=True)
            rows[n] = {
                key: torch.zeros_like(p) if g is None else g
                for (key, p), g in zip(model.named_parameters(), grads, strict=True)
            }
        result = step(batch)
        yield rows, {n: p.grad.clone() for n, p in model.named_parameters()}, result.statistics
