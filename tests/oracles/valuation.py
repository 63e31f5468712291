"""The definitions of the valuation, spelt out with exact rationals and loops. Shares no code with equipoise.valuation."""

from fractions import Fraction
from itertools import permutations

import torch


def benefit(table, coalition):
    """v(C) = |C| * score(C) for a set of modalities; `table` maps frozensets to scores, the empty one is worth 0."""
    return len(coalition) * Fraction(table[coalition]) if coalition else Fraction(0)


def contributions(table, players):
    """The average marginal over all orders of the players: {player: Fraction}."""
    phi = dict.fromkeys(players, Fraction(0))
    orders = list(permutations(players))
    for order in orders:
        before = frozenset()
        for player in order:
            after = before | {player}
            phi[player] += benefit(table, after) - benefit(table, before)
            before = after
    return {player: total / len(orders) for player, total in phi.items()}


def row_table(row):
    """{coalition as a frozenset: score} of one row of a score table (entry c - 1 = coalition whose bits are c)."""
    return {
        frozenset(m for m in range(len(row).bit_length()) if c >> m & 1): score for c, score in enumerate(row, start=1)
    }


def shapley(row, present):
    """Contributions of one row as a list of Fractions, None where absent."""
    phi = contributions(row_table(row), [m for m, there in enumerate(present) if there])
    return [phi.get(m) for m in range(len(present))]


def bins(phi):
    if phi is None or phi >= 1:
        return 0
    if phi >= Fraction(4, 10):
        return 1
    return 2 if phi >= Fraction(-1, 10) else 3


def naive_scores(model, batch, task):
    """A score table by full passes: nothing cached, nothing shared. NaN for rows without the coalition."""
    model.eval()
    columns = []
    count = batch["present"].shape[1]
    with torch.no_grad():
        for coalition in range(1, 2**count):
            inside = torch.tensor([coalition >> m & 1 == 1 for m in range(count)])
            both = batch["present"] & inside
            empty = ~both.any(dim=1)
            logits = model(batch["inputs"], torch.where(empty[:, None], batch["present"], both)).logits
            scores = task.benefit(logits, batch["target"]).double()
            scores[empty] = float("nan")
            columns.append(scores)
    return torch.stack(columns, dim=1)
