"""Conflict removal on the gradients themselves, one vector at a time, in numpy. Shares no code with equipoise."""

import numpy as np


def projected(gradients, orders):
    """Each row of [k, P] without what opposes the others, which it meets in the order given; the others as they were."""
    gradients = np.asarray(gradients, dtype=np.float64)
    found = []
    for own, order in zip(gradients, orders, strict=True):
        v = own.copy()
        for j in order:
            against = v @ gradients[j]
            if against < 0:
                v = v - against / (gradients[j] @ gradients[j]) * gradients[j]
        found.append(v)
    return np.array(found)
