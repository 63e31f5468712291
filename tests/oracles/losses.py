"""CML, MMCosine and PMR in numpy, over the model of `oracles.balancers`. Shares no code with equipoise."""

import numpy as np
from oracles import balancers as base


def without(batch, i):
    """The batch with modality i absent, and the rows that had it beside another."""
    present = batch["present"].copy()
    spare = present[:, i] & (present.sum(axis=1) > 1)
    present[:, i] = False
    return batch | {"present": present}, spare


def cml_losses(p, batch, weight):
    """{name: loss}"""
    z = base.fused_logits(p, batch)
    confidence = base.softmax(z).max(axis=1)
    reduced, rise = {}, np.zeros(len(z))
    for i, m in enumerate(batch["inputs"]):
        less, spare = without(batch, i)
        if spare.any():
            zm = base.fused_logits(p, less)
            reduced[f"without/{m}"] = base.cross_entropy(zm, batch["target"])[spare].mean()
            rise += np.where(spare, np.maximum(base.softmax(zm).max(axis=1) - confidence, 0), 0)
    losses = {"fused": base.cross_entropy(z, batch["target"]).mean()} | reduced
    return {n: v / len(losses) for n, v in losses.items()} | {"rise": weight * rise.mean()}


def cosine_logits(p, batch, scale):
    total, at = 0, 0
    for feature in base.features(p, batch).values():
        w = p["fusion.head.weight"][:, at : at + feature.shape[1]]
        at += feature.shape[1]
        size = np.linalg.norm(feature, axis=1, keepdims=True) * np.linalg.norm(w, axis=1)
        total = total + scale * np.divide(feature @ w.T, size, out=np.zeros_like(size), where=size > 0)
    return total


class Prototypes:
    """Running class means of each modality's features: momentum of the old, the rest of the batch's mean."""

    def __init__(self, momentum):
        self.momentum, self.of = momentum, {}

    def follow(self, p, batch):
        for i, (m, feature) in enumerate(base.features(p, batch).items()):
            known = self.of.setdefault(m, {})
            for k in set(batch["target"][batch["present"][:, i]].tolist()):
                mean = feature[batch["present"][:, i] & (batch["target"] == k)].mean(axis=0)
                known[k] = self.momentum * known[k] + (1 - self.momentum) * mean if k in known else mean

    def log_p(self, p, batch):
        """{m: (rows that count, log p of them over the known classes, the place of each row's own class)}"""
        found = {}
        for i, (m, feature) in enumerate(base.features(p, batch).items()):
            known = self.of.get(m, {})
            classes = sorted(known)
            rows = np.array([r for r in range(len(feature)) if batch["present"][r, i] and batch["target"][r] in known])
            if len(rows):
                d = np.array([[np.linalg.norm(feature[r] - known[k]) for k in classes] for r in rows])
                log_p = -d - np.log(np.exp(-d).sum(axis=1, keepdims=True))
                found[m] = log_p, np.array([classes.index(batch["target"][r]) for r in rows])
        return found

    def scores(self, p, batch):
        return {m: np.exp(log_p[np.arange(len(own)), own]).mean() for m, (log_p, own) in self.log_p(p, batch).items()}
