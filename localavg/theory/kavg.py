"""K-AVG (kavg §3): the bound, its conditions, K_opt; ASGD's bound beside it."""

from __future__ import annotations

import numpy as np

from localavg.errors import UserError
from localavg.theory.constants import Condition, argmin_K, checked


@checked
def kavg_conditions(*, L, gamma, K, delta) -> tuple[Condition, Condition]:
    """The two conditions (3.1) of Theorem 3.1."""
    return (
        Condition(
            "K-AVG (3.1): 1 ≥ L²γ²(K+1)(K−2)/2 + LγK",
            1.0,
            L**2 * gamma**2 * (K + 1) * (K - 2) / 2 + L * gamma * K,
        ),
        Condition("K-AVG (3.1): 1 − δ ≥ L²γ²", 1 - delta, L**2 * gamma**2),
    )


@checked
def kavg_bound(*, F1_minus_Fstar, L, M, gamma, B, P, K, N, delta):
    """Bound (3.2) of (1/N) E Σ ‖∇F(w̃_n)‖² over the N averages, Theorem 3.1."""
    return 2 * F1_minus_Fstar / (N * (K - 1 + delta) * gamma) + L * K * gamma * M / (
        B * (K - 1 + delta)
    ) * (K / P + L * (2 * K - 1) * (K - 1) * gamma / 6)


@checked
def kavg_step(*, F1_minus_Fstar, L, M, B, P, K, N):
    """The step size (3.23) of Corollary 3.1."""
    if np.any(M == 0):
        raise UserError(
            "M = 0: the step (3.23) divides by it; without noise take any step that meets (3.1)"
        )
    return np.sqrt(F1_minus_Fstar * B * P / (L * M * K**2 * N))


@checked
def kavg_N_conditions(*, F1_minus_Fstar, L, M, B, P, K, N) -> tuple[Condition, Condition]:
    """Condition (3.24) of Corollary 3.1 on N as printed, and the one that bound (3.25) needs; both
    times M.

    (3.25) follows if K/P ≥ L(2K−1)(K−1)γ/6 at the step (3.23), which is the second condition:
    (3.30) lost a square, so (3.24) suffices for K ≤ 4 only. Nor does (3.24) imply the first of
    (3.1), as its proof has it, but for K ≤ 2 or P ≥ 1.37 K: at equality with P ≤ K, LγK = 1 leaves
    no room for the other term. Check (3.1) by itself.
    """
    least = F1_minus_Fstar * L * B * P
    return (
        Condition(
            "K-AVG (3.24): N ≥ (F1−F*)LBP/M · max(P²/K², 1), times M",
            N * M,
            least * np.maximum(P**2 / K**2, 1),
        ),
        Condition(
            "K-AVG (3.25): N ≥ (F1−F*)LBP/M · (P(2K−1)(K−1)/(6K²))², times M",
            N * M,
            least * (P * (2 * K - 1) * (K - 1) / (6 * K**2)) ** 2,
        ),
    )


def _kavg_alpha_beta_eta(F1_minus_Fstar, L, M, gamma, B, P, S_total):
    """(3.45)."""
    return (
        2 * F1_minus_Fstar / (S_total * gamma),
        L * gamma * M / (P * B),
        L**2 * gamma**2 * M / (6 * B),
    )


@checked
def kavg_K_opt(*, F1_minus_Fstar, L, M, gamma, B, P, S_total, delta):
    """K_opt (3.46) at fixed S = N K: argmin over 1 ≤ K ≤ S of B(K) = (α + βK + η(2K−1)(K−1))
    K/(K−1+δ), (3.44).

    Int64; the smaller K on a tie. Condition (3.1) at that K is for the caller to check.
    """
    alpha, beta, eta = _kavg_alpha_beta_eta(F1_minus_Fstar, L, M, gamma, B, P, S_total)
    return argmin_K(alpha + eta, beta - 3 * eta, 2 * eta, 1 - delta, 1.0, S_total)


@checked
def kavg_K_above_1(*, F1_minus_Fstar, L, M, gamma, B, P, S_total, delta) -> Condition:
    """Condition (3.47) for K_opt > 1. The paper says sufficient; it is necessary too, B(K) having
    one minimum.
    """
    alpha, beta, eta = _kavg_alpha_beta_eta(F1_minus_Fstar, L, M, gamma, B, P, S_total)
    # Theorem 3.4 prints its last term in (3.42) as L²γ²M/(3B) = 2η; B(2) < B(1) gives 3η =
    # L²γ²M/(2B), as in (3.47).
    return Condition(
        "K-AVG (3.47): (1−δ)α/(2δ) > (3δ−1)β/(2δ) + 3η",
        (1 - delta) * alpha / (2 * delta),
        (3 * delta - 1) * beta / (2 * delta) + 3 * eta,
        ">",
    )


@checked
def asgd_bound(*, F1_minus_Fstar, L, M, gamma, B, P, N, C0=2.0, C1=1.0):
    """ASGD's bound (3.39), which grows with P. C0 and C1 are left open there; the defaults only fix
    a scale.
    """
    return C0 * F1_minus_Fstar / (N * gamma) + C1 * L**2 * gamma**2 * M**2 * P / (2 * B)
