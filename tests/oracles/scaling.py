"""What scales what a modality owns, in numpy: the parts and coefficients of AGM, MSLR, MSES. Shares no code with equipoise."""

from itertools import permutations

import numpy as np
from oracles import balancers as oracle


def shapley_parts(table, present):
    """[M, n, K] from the logits of every set {frozenset of indices: [n, K]}: the mean over all orders in which a row's modalities
    arrive, of what each adds to those before it. Nothing is worth zeros, and so is an absent modality.
    """
    n, m = present.shape
    full = table[frozenset(range(m))]
    parts = np.zeros((m, n, full.shape[1]))
    for i in range(n):
        players = [j for j in range(m) if present[i, j]]
        orders = list(permutations(players))
        for order in orders:
            there, worth = frozenset(), np.zeros(full.shape[1])
            for j in order:
                there = there | {j}
                parts[j, i] += (table[there][i] - worth) / len(orders)
                worth = table[there][i]
    return parts


def concat_table(p, batch):
    """The fused logits of every set, of the small network of oracles/balancers.py: other features are zeros."""
    m = batch["present"].shape[1]
    table = {}
    for bits in range(1, 2**m):
        some = np.array([bool(bits >> j & 1) for j in range(m)])
        table[frozenset(np.flatnonzero(some).tolist())] = oracle.fused_logits(
            p, {**batch, "present": batch["present"] & some}
        )
    return table


def agm_parts(p, batch):
    return dict(zip(batch["inputs"], shapley_parts(concat_table(p, batch), batch["present"])))


def agm_losses(parts, batch):
    """{modality: mean loss of its part over the rows that have it}; a probability counts as 1e-8 at least."""
    found = {}
    for j, (m, z) in enumerate(parts.items()):
        rows = batch["present"][:, j]
        if rows.any():
            probability = oracle.probability_of_label(z[rows], batch["target"][rows])
            found[m] = -np.log(np.maximum(probability, 1e-8)).mean()
    return found


def agm_coefficients(losses, running, alpha):
    """kappa_m = exp(alpha min(tau_m - r_m, 10)), where `running` lists the losses of the steps before."""

    def ratio(level):
        others = {m: [v for o, v in level.items() if o != m] for m in level}
        return {m: np.exp(np.mean(others[m]) - level[m]) if others[m] else 1.0 for m in level}

    before = {m: np.mean([step[m] for step in running if m in step]) for m in losses if any(m in s for s in running)}
    tau, r = ratio(before), ratio(losses)
    return {m: np.exp(alpha * min(tau.get(m, 1.0) - r[m], 10)) for m in losses}


def agm_loss(p, at, batch, k):
    """The fused loss whose gradient at the parameters `at` is AGM's: each part moves k_m times as far as p says."""
    here, there = agm_parts(at, batch), agm_parts(p, batch)
    z = sum(here[m] + k.get(m, 1.0) * (there[m] - here[m]) for m in here)
    return oracle.cross_entropy(z, batch["target"]).mean()


def mslr_coefficient(initial, values, memory=5, limit=10.0, lower_is_better=False):
    """From the validation values of all epochs so far, those without rows left out."""
    if len(values) <= memory:
        return initial
    mean = np.mean(values[-memory - 1 : -1])
    if mean <= 0 or values[-1] <= 0:
        return initial
    ratio = mean / values[-1] if lower_is_better else values[-1] / mean
    return initial * np.clip(ratio, 1 / limit, limit)


def mses_stops(losses, patience):
    """The epoch after which a modality is stopped, None where it is not: the first whose lowest loss is `patience` old."""
    for epoch in range(len(losses)):
        if epoch - int(np.argmin(losses[: epoch + 1])) >= patience:
            return epoch
    return None
