"""Min-norm points by brute force, and the steps made of them, on the gradients themselves, in numpy. Shares no code with
equipoise.
"""

from itertools import combinations

import numpy as np


def min_norm_point(gradients):
    """The point of smallest norm in the convex hull of the rows of [k, P]: of all faces, the affine minima that lie in them."""
    gradients = np.asarray(gradients, dtype=np.float64)
    best = None
    for n in range(1, len(gradients) + 1):
        for face in combinations(range(len(gradients)), n):
            first, *others = gradients[list(face)]
            edges = np.array([g - first for g in others]).reshape(n - 1, gradients.shape[1])
            steps = np.linalg.lstsq(edges.T, -first, rcond=None)[0] if n > 1 else np.zeros(0)
            weights = np.concatenate([[1 - steps.sum()], steps])
            if (weights >= -1e-12).all():
                point = first + steps @ edges
                if best is None or point @ point < best @ best:
                    best = point
    return best


def projected_on_dual_cone(gradients, direction):
    """The nearest point to `direction` [P] that has no negative product with a row of [k, P]: of all sets of active rows, the
    one whose orthogonal projection is allowed and nearest.
    """
    gradients, direction = np.asarray(gradients, dtype=np.float64), np.asarray(direction, dtype=np.float64)
    best = None
    for n in range(len(gradients) + 1):
        for active in combinations(range(len(gradients)), n):
            rows = gradients[list(active)]
            point = direction - np.linalg.pinv(rows) @ (rows @ direction) if n else direction
            if (gradients @ point >= -1e-9).all() and (
                best is None or np.linalg.norm(point - direction) < np.linalg.norm(best - direction)
            ):
                best = point
    return best


def mmpareto_encoder(fused, own, gamma):
    """The gradient {tensor: array} of one encoder from those of its two losses."""
    u = np.concatenate([fused[n].ravel() for n in fused])
    v = np.concatenate([own[n].ravel() for n in fused])
    a = 0.5
    if u @ v <= 0:
        # The foot of the perpendicular from 0 on the line through u and v.
        a = np.clip(-(v @ (u - v)) / ((u - v) @ (u - v)), 0, 1)
    found = {}
    for n in fused:
        h = 2 * a * fused[n] + 2 * (1 - a) * own[n]
        longer = np.linalg.norm(fused[n] + own[n]) / np.linalg.norm(h)
        found[n] = gamma * h * max(1.0, longer)
    return found
