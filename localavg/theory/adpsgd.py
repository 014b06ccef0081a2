"""ADPSGD (adpsgd §II–III): the variance of the learners and what it costs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from localavg.errors import UserError
from localavg.theory.constants import checked


def adpsgd_variance(W):
    """Var[W_k] (7) of one realisation, (1/n) Σ ‖w̄ − w_i‖²; W [..., n, d] → [...]."""
    W = np.asarray(W, float)
    return ((W.mean(-2, keepdims=True) - W) ** 2).sum(-1).mean(-1)


@checked
def adpsgd_V(*, variance, p: int | Sequence[int]):
    """V_t (11), the mean of Var[W_k] between two averages; `variance` [..., K] → [..., periods].

    `p` is the period, or the length of each one; the last may be cut short by the end of the run.
    """
    K, lengths = variance.shape[-1], np.atleast_1d(p)
    if lengths.dtype.kind != "i" or np.any(lengths < 1):
        raise UserError(
            f"p = {p}: a period is a whole number of updates; give integers of at least 1"
        )
    ends = np.cumsum(lengths if np.ndim(p) else np.repeat(lengths, -(-K // p)))
    starts = np.concatenate([[0], ends[:-1]])
    if not starts[-1] < K <= ends[-1]:
        raise UserError(
            f"p adds up to {ends[-1]}: periods must just cover the {K} values of Var[W_k]; give as "
            "many"
        )
    return np.add.reduceat(variance, starts, -1) / np.diff(starts, append=K)


@checked
def adpsgd_weighted_variance(*, gamma, variance):
    """The weighted average (9), Σ γ_k Var[W_k] / Σ γ_j, over the last axis: what a schedule should
    keep small.
    """
    gamma, variance = np.broadcast_arrays(gamma, variance)
    return (gamma * variance).sum(-1) / gamma.sum(-1)


@checked
def adpsgd_bound(*, F1_minus_Fstar, L, sigma2, gamma, variance, B, P):
    """Bound (8) of the weighted mean of E‖∇f(w̄_k)‖²; γ_k and Var[W_k] run over the last axis, M =
    PB samples a step.
    """
    weighted = adpsgd_weighted_variance(gamma=gamma, variance=variance)
    gamma, _ = np.broadcast_arrays(gamma, variance)
    return (
        2 * F1_minus_Fstar / gamma.sum(-1)
        + L**2 * weighted
        + (gamma**2).sum(-1) / gamma.sum(-1) * L * sigma2 / (P * B)
    )
