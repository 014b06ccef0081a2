"""ADPSGD (adpsgd §II–III): the variance of the learners and what it costs."""

from __future__ import annotations

import numpy as np

from localavg.theory.constants import checked


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
