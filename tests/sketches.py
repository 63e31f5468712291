"""Methods sketched against the balancer contract: does it hold what they need?

Short of options and of what their papers need beyond the contract, and registered nowhere. The world-size test runs them,
since they use every hook and both roads.
"""

import torch

from equipoise.balancers import Balancer
from equipoise.balancers.modality_objectives import ModalityObjectives


class AGMSketch(Balancer):
    """AGM: Shapley-style logits of each modality, their gradients scaled by running means of global statistics."""

    weights_from_statistics = True

    def __init__(self, alpha=0.5):
        super().__init__()
        self.alpha, self.mean, self.steps = alpha, {}, 0

    def parts(self, ctx):
        # z^m = 1/2 (z(all) - z(all without m) + z(m)); rows that lack m do not count.
        return {
            m: (ctx.outputs.logits - ctx.fuse(set(ctx.modalities) - {m}) + ctx.fuse([m])) / 2 for m in ctx.modalities
        }

    def statistics(self, ctx):
        return {m: (ctx.task.losses(z, ctx.target) * ctx.has(m)).sum() for m, z in self.parts(ctx).items()}

    def objectives(self, ctx):
        s = {m: float(v) / max(ctx.counts[m], 1) for m, v in ctx.statistics.items()}
        level = sum(s.values()) / len(s)
        running = {m: (self.mean.get(m, 0.0) * self.steps + v) / (self.steps + 1) for m, v in s.items()}
        mean = sum(running.values()) / len(s)
        self.next = (running, self.steps + 1)
        z = 0
        for m, part in self.parts(ctx).items():
            ratio = torch.tensor(2 * (level - s[m])).exp().item()
            k = (
                torch.tensor(self.alpha * min(torch.tensor(2 * (mean - running[m])).exp().item() - ratio, 10))
                .exp()
                .item()
            )
            z = z + part.detach() + k * (part - part.detach())  # the value of the part, k times its gradient
        return {"fused": ctx.mean(ctx.task.losses(z, ctx.target))}

    def modulate(self, gradients, ctx):
        self.mean, self.steps = self.next  # once a step, however many micro-batches

    def state_dict(self):
        return {"mean": dict(self.mean), "steps": self.steps}

    def load_state_dict(self, state):
        self.mean, self.steps = dict(state["mean"]), state["steps"]


class MSESSketch(Balancer):
    """MSES: a modality stops learning once its own validation loss has not improved for `patience` epochs."""

    def __init__(self, patience=1):
        super().__init__()
        self.patience, self.best, self.stale = patience, {}, {}

    def objectives(self, ctx):
        return {"fused": ctx.mean(ctx.task.losses(ctx.outputs.logits, ctx.target))}

    def on_epoch(self, validation, contributions):
        for i, m in enumerate(self.modalities):
            loss = validation[1 << i]["loss"]
            better = loss < self.best.get(m, float("inf"))
            self.stale[m] = 0 if better else self.stale.get(m, 0) + 1
            self.best[m] = min(loss, self.best.get(m, loss))

    def modulate(self, gradients, ctx):
        self.modalities = ctx.modalities
        for m in ctx.modalities:
            if self.stale.get(m, 0) > self.patience:
                for g in gradients[m]:
                    g.zero_()

    def state_dict(self):
        return {"best": dict(self.best), "stale": dict(self.stale)}

    def load_state_dict(self, state):
        self.best, self.stale = dict(state["best"]), dict(state["stale"])


class SeparateSummed(Balancer):
    """Fused and unimodal losses kept apart and added: must give what `summed` gives on the DDP road."""

    separate = True
    accepts = ("split", "heads")
    objectives = ModalityObjectives.objectives


SKETCHES = {
    "agm": AGMSketch,
    "mses": MSESSketch,
    "separate_summed": SeparateSummed,
}
