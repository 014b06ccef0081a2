"""ADPSGD (adpsgd §II–III): the variance of the learners and what it costs."""

from __future__ import annotations

import numpy as np

from localavg.theory.constants import X, checked


@checked
def adpsgd_weighted_variance(*, gamma: X, variance: X) -> X:
    """The weighted average (9), Σ γ_k Var[W_k] / Σ γ_j, over the last axis.

    A schedule should keep it small.
    """
    steps, variance = np.broadcast_arrays(gamma, variance)
    return (steps * variance).sum(-1) / steps.sum(-1)


@checked
def adpsgd_bound(*, F1_minus_Fstar: X, L: X, sigma2: X, gamma: X, variance: X, B: X, P: X) -> X:
    """Bound (8) of the weighted mean of E‖∇f(w̄_k)‖².

    γ_k and Var[W_k] run over the last axis; M = PB samples a step.
    """
    weighted = adpsgd_weighted_variance(gamma=gamma, variance=variance)
    steps, _ = np.broadcast_arrays(gamma, variance)
    return (
        2 * F1_minus_Fstar / steps.sum(-1)
        + L**2 * weighted
        + (steps**2).sum(-1) / steps.sum(-1) * L * sigma2 / (P * B)
    )
