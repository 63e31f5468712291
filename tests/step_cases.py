"""What a gloo process runs for the balanced step's tests."""

import torch
from world_cases import CLASSES, CUTS, build_model, global_batch, take

from equipoise import balancers
from equipoise.models import Classification


def results(rank, world, group, name, cut):
    """The step results of two steps, as plain tuples."""
    model = build_model(torch.float64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    step = balancers.BalancedStep(
        model, Classification(CLASSES), balancers.get(name), optimizer, clip_norm=0.1, group=group
    )
    edges = CUTS[cut][world]
    return [tuple(step(take(global_batch(t, torch.float64), slice(edges[rank], edges[rank + 1])))) for t in range(2)]


def refusal(rank, world, group):
    """The sentence and whether anything changed, where only the last rank's rows hold a NaN."""
    model = build_model(torch.float64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    step = balancers.BalancedStep(model, Classification(CLASSES), balancers.get("ogm"), optimizer, group=group)
    edges = CUTS["even"][world]
    local = take(global_batch(0, torch.float64), slice(edges[rank], edges[rank + 1]))
    if rank == world - 1:
        local["inputs"]["a"][:] = float("nan")
    before = [p.detach().clone() for p in model.parameters()]
    try:
        step(local)
    except Exception as error:
        same = all(torch.equal(p, q) for p, q in zip(model.parameters(), before))
        return f"{type(error).__name__}: {error}", same
    return "no error", False


def different_micro_batches(rank, world, group):
    """The sentence where rank 0 gives one micro-batch and the others two."""
    model = build_model(torch.float64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    step = balancers.BalancedStep(model, Classification(CLASSES), balancers.get("ogm"), optimizer, group=group)
    rows = global_batch(0, torch.float64)
    try:
        step([rows] if rank == 0 else [take(rows, slice(0, 6)), take(rows, slice(6, 12))])
    except Exception as error:
        return str(error)
    return "no error"
