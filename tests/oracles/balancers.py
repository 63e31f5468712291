"""The balancers' formulas over a small late-fusion model, in numpy. Shares no code with equipoise.

Parameters are {name: array} as `named_parameters` gives them, batches {"inputs", "present", "target"} of arrays. Encoders
are MLPs with one hidden layer, the fusion concatenates, an absent modality's feature is zeros.
"""

from itertools import product

import numpy as np


def arrays(batch):
    """A batch of tensors as float64 arrays."""
    return {
        "inputs": {m: x.detach().numpy().astype(np.float64) for m, x in batch["inputs"].items()},
        "present": batch["present"].numpy(),
        "target": batch["target"].numpy(),
    }


def features(p, batch):
    found = {}
    for i, (m, x) in enumerate(batch["inputs"].items()):
        hidden = np.maximum(x @ p[f"encoders.{m}.layers.0.weight"].T + p[f"encoders.{m}.layers.0.bias"], 0)
        feature = hidden @ p[f"encoders.{m}.layers.2.weight"].T + p[f"encoders.{m}.layers.2.bias"]
        found[m] = np.where(batch["present"][:, i : i + 1], feature, 0)
    return found


def fused_logits(p, batch):
    return np.concatenate(list(features(p, batch).values()), axis=1) @ p["fusion.head.weight"].T + p["fusion.head.bias"]


def unimodal_logits(p, batch, kind, frozen=None):
    """W_m f_m + b / M of the fused head (split), or an own head (heads). `frozen`: features of these parameters instead."""
    logits, at = {}, 0
    found = features(p if frozen is None else frozen, batch)
    for m, feature in found.items():
        if kind == "heads":
            logits[m] = feature @ p[f"heads.{m}.weight"].T + p[f"heads.{m}.bias"]
        else:
            block = p["fusion.head.weight"][:, at : at + feature.shape[1]]
            logits[m] = feature @ block.T + p["fusion.head.bias"] / len(found)
        at += feature.shape[1]
    return logits


def softmax(z):
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def probability_of_label(z, target):
    return softmax(z)[np.arange(len(z)), target]


def cross_entropy(z, target):
    return -np.log(probability_of_label(z, target))


def joint_loss(p, batch):
    return cross_entropy(fused_logits(p, batch), batch["target"]).mean()


def unimodal_losses(p, batch, kind, frozen=None):
    """The mean over the rows that have a modality; a modality that no row has is left out."""
    z = unimodal_logits(p, batch, kind, frozen)
    rows = {m: batch["present"][:, i] for i, m in enumerate(z)}
    return {m: cross_entropy(z[m][rows[m]], batch["target"][rows[m]]).mean() for m in z if rows[m].any()}


def subset_loss(p, batch, subset):
    """The fused model's mean loss over the rows that have all of `subset`, with the other modalities' features zero; NaN where
    no row has them.
    """
    columns = [list(batch["inputs"]).index(m) for m in subset]
    rows = batch["present"][:, columns].all(axis=1)
    keep = np.zeros_like(batch["present"])
    keep[:, columns] = True
    z = fused_logits(p, batch | {"present": batch["present"] & keep})
    return cross_entropy(z, batch["target"])[rows].mean() if rows.any() else np.nan


def summed_loss(p, batch, kind, weight):
    return joint_loss(p, batch) + weight * sum(unimodal_losses(p, batch, kind).values())


def gradient(loss, p, names=None, step=1e-6):
    """Central differences of loss(p) by every entry of the named parameters."""
    found = {}
    for name in names or p:
        found[name] = np.zeros_like(p[name])
        for index in np.ndindex(p[name].shape):
            ends = []
            for sign in (1, -1):
                moved = p[name].copy()
                moved[index] += sign * step
                ends.append(loss({**p, name: moved}))
            found[name][index] = (ends[0] - ends[1]) / (2 * step)
    return found


def ogm_scores(p, batch, kind):
    z = unimodal_logits(p, batch, kind)
    rows = {m: batch["present"][:, i] for i, m in enumerate(z)}
    return {m: probability_of_label(z[m][rows[m]], batch["target"][rows[m]]).mean() for m in z if rows[m].any()}


def ogm_coefficients(scores, alpha):
    k = {}
    for m, s in scores.items():
        others = [other for name, other in scores.items() if name != m]
        rho = s / np.mean(others) if others else 0
        k[m] = 1 - np.tanh(alpha * rho) if rho > 1 else 1.0
    return k


def dropout_patterns(present, p):
    """{kept modalities as a tuple of bools: probability} for a row, with independent drops of probability `p`, or where p
    is None with every non-empty subset of the present ones equally likely.
    """
    there = [i for i, has in enumerate(present) if has]
    found = {}
    for kept in product([False, True], repeat=len(there)):
        pattern = [False] * len(present)
        for i, keep in zip(there, kept):
            pattern[i] = keep
        n = sum(kept)
        if n:
            chance = 1 / (2 ** len(there) - 1) if p is None else p ** (len(there) - n) * (1 - p) ** n
            # All dropped: one of them stays, each as likely as the others.
            chance += p ** len(there) / len(there) if p is not None and n == 1 else 0
            found[tuple(pattern)] = chance
    return found
