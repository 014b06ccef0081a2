"""Rows to average, their mean and their mix as every transport must give them."""

import numpy as np


def ordered(rows):
    """The mean of rows [P, n]: summed one by one in their own precision, divided once."""
    total = rows[0].copy()
    for row in rows[1:]:
        total = total + row
    return total / rows.dtype.type(len(rows))


def values(P, n, whole, dtype=np.float32):
    """[P, n]; `whole`: rank- and element-valued integers, whose sums are exact in any order."""
    if whole:
        return ((1 + np.arange(P))[:, None] + 2 * (np.arange(n) % 1001)).astype(dtype)
    return np.random.default_rng([P, n]).normal(size=(P, n)).astype(dtype)


def mixed(rows, W):
    """Row j is Σ_i W_ji w_i, added up in the order of i in the rows' precision."""
    weights, result = W.astype(rows.dtype), []
    for j in range(len(rows)):
        total = None
        for i in np.flatnonzero(W[j]):
            term = weights[j, i] * rows[i]
            total = term if total is None else total + term
        result.append(total)
    return np.array(result)
