"""Conflict removal between gradients, on their inner products alone."""

import torch
from torch import Tensor

from equipoise.models.errors import EquipoiseError


def remove_conflicts(gram: Tensor, orders: Tensor) -> Tensor:
    """Each gradient without the parts that oppose the others: float64 [k, k], row i gives gradient i in terms of the originals.

        C = I;  for each i, for j along orders[i]:  d = (C K)_ij;  where d < 0: C_ij -= d / K_jj

    The k gradients G [k, P] become C G, their inner products C K C^T. Every removal is along the *original* gradient j, and a
    gradient of zeros removes nothing (Yu et al., "Gradient Surgery for Multi-Task Learning", NeurIPS 2020, algorithm 1; with
    availability subsets as objectives GMD, Wang et al., AAAI 2024, equations 8 and 9). For k > 2 the result depends on the
    orders, and a pair may still be in conflict.

    Args:
        gram: inner products K = G G^T, float64 [k, k].
        orders: int [k, k - 1], row i the other objectives in the order in which they are met.

    Raises:
        EquipoiseError: a Gram matrix that is not square or not finite, orders that are no permutations of the others.
    """
    gram, orders = torch.as_tensor(gram, dtype=torch.float64), torch.as_tensor(orders)
    k = len(gram)
    if gram.shape != (k, k) or not bool(gram.isfinite().all()):
        raise EquipoiseError(
            f"remove_conflicts needs a square matrix of finite inner products [k, k], found {tuple(gram.shape)}"
            f"{'' if bool(gram.isfinite().all()) else ' with NaN or Inf'}."
        )
    others = torch.tensor([[j for j in range(k) if j != i] for i in range(k)]).reshape(k, max(k - 1, 0))
    if orders.shape != others.shape or not torch.equal(orders.cpu().long().sort(dim=1).values, others):
        raise EquipoiseError(
            f"orders must be int [{k}, {k - 1}], row i a permutation of all objectives but i, found {orders.tolist()}."
        )
    return walk(gram, orders)


def walk(gram: Tensor, orders: Tensor) -> Tensor:
    """`remove_conflicts` along any orders [k, n], an objective itself among them or not."""
    k = len(gram)
    rows = torch.arange(k, device=gram.device)
    c = torch.eye(k, dtype=torch.float64, device=gram.device)
    size = gram.diagonal()
    for j in orders.to(gram.device, torch.int64).T:  # the n-th one that each row meets, for all rows at once
        d = (c * gram[:, j].T).sum(dim=1)
        c[rows, j] -= torch.where((d < 0) & (size[j] > 0), d / size[j].clamp(min=torch.finfo(torch.float64).tiny), 0.0)
    return c


def random_orders(k: int, generator: torch.Generator) -> Tensor:
    """int64 [k, k - 1]: for each objective, the others in an order of its own."""
    found = torch.empty(k, max(k - 1, 0), dtype=torch.int64)
    for i in range(k):
        order = torch.randperm(k - 1, generator=generator) if k > 1 else torch.empty(0, dtype=torch.int64)
        found[i] = order + (order >= i)
    return found
