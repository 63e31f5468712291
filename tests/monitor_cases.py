"""A few steps with or without a monitor, for one process and for gloo workers."""

import torch
from world_cases import CLASSES, CUTS, build_model, global_batch, take

from equipoise import balancers
from equipoise.models import Classification


def steps(rank, world, group, name, every, micro=1, noise=False):
    """{"parameters": [arrays], "buffers": ..., "seen": [the monitor's numbers of each step], "state": generator's}"""
    torch.manual_seed(5)
    model = build_model(torch.float64, unimodal="heads")
    if noise:  # layers that draw numbers and keep statistics of what they see
        model.encoders["a"] = torch.nn.Sequential(
            model.encoders["a"], torch.nn.BatchNorm1d(5).double(), torch.nn.Dropout(0.3)
        )
    sgd = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    monitor = None if every is None else balancers.Monitor(every=every)
    step = balancers.BalancedStep(
        model, Classification(CLASSES), balancers.get(name), sgd, seed=11, group=group, monitor=monitor
    )
    edges, seen = CUTS["empty"][world], []
    for t in range(7):
        local = take(global_batch(t, torch.float64), slice(edges[rank], edges[rank + 1]))
        n = len(local["sample_id"])
        parts = [take(local, slice(n * i // micro, n * (i + 1) // micro)) for i in range(micro)]
        found = step(parts if micro > 1 else local).statistics
        seen.append({k: v for k, v in found.items() if k.startswith("monitor/")})
    return {
        "parameters": [p.detach().numpy().copy() for p in model.parameters()],
        "buffers": [b.numpy().copy() for b in model.buffers()],
        "seen": seen,
        "state": torch.get_rng_state().numpy(),
    }
