"""The point of smallest norm in the convex hull of some gradients, from their inner products alone."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from equipoise.models.errors import EquipoiseError


def min_norm_weights(gram: Tensor) -> Tensor:
    """Weights float64 [k] >= 0 with sum 1 that minimise |sum_i w_i g_i|.

    Minus that point is a direction along which no objective rises; it is zero where there is none (Désidéri, "Multiple-gradient
    descent algorithm (MGDA) for multiobjective optimization", Comptes Rendus 2012). Found exactly: two gradients in closed
    form, more by an active-set method, where the paper of Sener and Koltun iterates. Where gradients depend on each other
    several weights may give the point: one of them. Gradients of zeros take all the weight.

    Args:
        gram: inner products g_i . g_j, float64 [k, k].

    Raises:
        EquipoiseError: a matrix that is not square or not finite.
    """
    from scipy.optimize import nnls  # every process of a run imports the balancers, and few need this

    k = len(gram)
    if gram.shape != (k, k) or not bool(gram.isfinite().all()):
        raise EquipoiseError(f"Inner products must be a finite matrix [k, k], found {gram.tolist()}.")
    size = gram.diagonal().double().clamp(min=0).sqrt()
    if k == 1 or bool((size == 0).any()):
        return (size == size.min()).double() / (size == size.min()).sum()
    if k == 2:
        between = gram[0, 1].double()
        weights = (gram.diagonal().flip(0).double() - between).clamp(min=0)
        return weights / weights.sum() if bool(weights.sum() > 0) else torch.full_like(weights, 0.5)
    # min u'Ru + (c'u - 1)^2, u >= 0, has its minimum along the wanted ray: for a given c'u = s the first part is s^2 times the
    # smallest squared norm. Unit gradients, so that one a million times smaller than the others is weighed as exactly.
    cosines = (gram.double() / size[:, None] / size).cpu().numpy()
    lengths = size.cpu().numpy()
    ray, _ = nnls(np.vstack([root(cosines), lengths.min() / lengths]), np.eye(k + 1)[k], maxiter=100 * k)
    return torch.from_numpy(ray / lengths / (ray / lengths).sum()).to(gram.device)


def root(gram: NDArray[np.float64]) -> NDArray[np.float64]:
    """F float64 [k, k] with F'F = gram, whose eigenvalues below rounding count as zero."""
    values, vectors = np.linalg.eigh(gram)
    values[values < len(gram) * np.finfo(np.float64).eps * values.max()] = 0.0
    found: NDArray[np.float64] = np.sqrt(values)[:, None] * vectors.T
    return found
