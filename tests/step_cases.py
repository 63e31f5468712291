"""What a gloo process runs for the balanced step's tests."""

import warnings

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


def overflow(rank, world, group, name):
    """The statistics of two steps, the first of which overflows on the last rank alone, and whether that changed nothing."""
    model = build_model(torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**100)
    balancer = balancers.get(name)
    step = balancers.BalancedStep(model, Classification(CLASSES), balancer, optimizer, scaler=scaler, group=group)
    before = [p.detach().clone() for p in model.parameters()]
    edges = CUTS["even"][world]
    statistics, same = [], True
    for t in range(2):
        local = take(global_batch(t, torch.float32), slice(edges[rank], edges[rank + 1]))
        if t == 0 and rank == world - 1:
            weight = next(model.encoders["a"].parameters())
            hook = weight.register_hook(lambda g: torch.full_like(g, float("inf")))
        statistics.append(step(local).statistics)
        if t == 0:
            same = all(torch.equal(p, q) for p, q in zip(model.parameters(), before)) and not optimizer.state
            if rank == world - 1:
                hook.remove()
    kept = [{k: s[k] for k in ("skipped", "loss_scale")} for s in statistics]
    return kept, same and all(bool(p.isfinite().all()) for p in model.parameters())


def compiled(rank, world, group, name):
    """The parameters after three steps with encoders compiled by inductor."""
    model = build_model(torch.float32)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    balancer = balancers.get(name)
    step = balancers.BalancedStep(model, Classification(CLASSES), balancer, optimizer, compile=True, group=group)
    edges = CUTS["uneven"][world]
    for t in range(3):
        step(take(global_batch(t, torch.float32), slice(edges[rank], edges[rank + 1])))
    return torch.cat([p.detach().flatten() for p in model.parameters()]).tolist()


def warned(rank, world, group):
    """What the step warns of while it is made."""
    model = build_model(torch.float64)
    optimizer = torch.optim.AdamW(model.parameters())
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        balancers.BalancedStep(model, Classification(CLASSES), balancers.get("ogm"), optimizer, group=group)
    return [str(warning.message) for warning in told]
