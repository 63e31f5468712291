"""BalGrad's losses and update in numpy, over the model of `oracles.balancers`. Shares no code with equipoise."""

import numpy as np
from oracles import balancers as base


def categorical_kl(target, p):
    return (target * (np.log(target) - np.log(p))).sum(axis=1)


def bernoulli_kl(target, p):
    return (target * np.log(target / p) + (1 - target) * np.log((1 - target) / (1 - p))).mean(axis=1)


def probabilities(z, single):
    return base.softmax(z) if single else 1 / (1 + np.exp(-z))


def unimodal_losses(z, batch, single):
    """{m: mean over its rows} of the modalities that some row has."""
    found = {}
    for i, m in enumerate(z):
        rows = batch["present"][:, i]
        if rows.any():
            y = batch["target"][rows]
            if single:
                found[m] = base.cross_entropy(z[m][rows], y).mean()
            else:
                p = probabilities(z[m][rows], False)
                found[m] = -(y * np.log(p) + (1 - y) * np.log(1 - p)).mean(axis=1).mean()
    return found


def divergences(z, fixed, batch, single):
    """{m: mean KL of the other present modalities' mean probability, of the logits `fixed`, to its own}; row by row."""
    found = {}
    for i, m in enumerate(z):
        rows = []
        for r, present in enumerate(batch["present"]):
            others = [fixed[o][r : r + 1] for k, o in enumerate(z) if k != i and present[k]]
            if present[i] and others:
                target = np.mean([probabilities(o, single) for o in others], axis=0)
                own = probabilities(z[m][r : r + 1], single)
                rows.append((categorical_kl if single else bernoulli_kl)(target, own)[0])
        if rows:
            found[m] = np.mean(rows)
    return found


def loss_shares(losses):
    total = sum(losses.values())
    return {m: v / total if total else 1 / len(losses) for m, v in losses.items()}


def projected(aim, against):
    """A gradient without what opposes another, in numpy."""
    d = aim @ against
    return aim if d >= 0 or not against.any() else aim - d / (against @ against) * against
