"""K-AVG (kavg §3): the bound, its conditions and K_opt; also ASGD's bound."""

from __future__ import annotations

import numpy as np

from localavg.errors import UserError
from localavg.theory.constants import Condition, X, argmin_K, checked


@checked
def kavg_conditions(*, L: X, gamma: X, K: X, delta: X) -> tuple[Condition, Condition]:
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
def kavg_bound(*, F1_minus_Fstar: X, L: X, M: X, gamma: X, B: X, P: X, K: X, N: X, delta: X) -> X:
    """Bound (3.2) of (1/N) E Σ ‖∇F(w̃_n)‖² over the N averages, Theorem 3.1."""
    noise = L * K * gamma * M / (B * (K - 1 + delta))
    start = 2 * F1_minus_Fstar / (N * (K - 1 + delta) * gamma)
    return start + noise * (K / P + L * (2 * K - 1) * (K - 1) * gamma / 6)


@checked
def kavg_P_end(*, L: X, gamma: X, K: X) -> X:
    """P at which both noise terms of bound (3.2) are equal; infinite for K = 1.

    Below it the noise falls nearly as 1/P; there half of this speed-up is left.
    """
    with np.errstate(divide="ignore"):
        return 6 * K / (L * (2 * K - 1) * (K - 1) * gamma)


@checked
def kavg_step(*, F1_minus_Fstar: X, L: X, M: X, B: X, P: X, K: X, N: X) -> X:
    """The step size (3.23) of Corollary 3.1."""
    if np.any(M == 0):
        raise UserError(
            "M = 0: the step (3.23) divides by it; without noise take any step that meets (3.1)"
        )
    return np.sqrt(F1_minus_Fstar * B * P / (L * M * K**2 * N))


@checked
def kavg_N_conditions(
    *, F1_minus_Fstar: X, L: X, M: X, B: X, P: X, K: X, N: X
) -> tuple[Condition, Condition]:
    """Conditions on N of Corollary 3.1: (3.24) as printed, and that of bound (3.25); both times M.

    (3.25) follows if K/P ≥ L(2K−1)(K−1)γ/6 at the step (3.23), which is the second condition: a
    square is missing in (3.30), so (3.24) suffices for K ≤ 4 only. The proof of (3.24) uses that it
    implies the first of (3.1). That is true only for K ≤ 2 or P ≥ 1.37 K: at equality with P ≤ K,
    LγK = 1 leaves no room for the other term. Check (3.1) by itself.
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


def _kavg_alpha_beta_eta(
    F1_minus_Fstar: X, L: X, M: X, gamma: X, B: X, P: X, S_total: X
) -> tuple[X, X, X]:
    """The α, β and η of (3.45)."""
    return (
        2 * F1_minus_Fstar / (S_total * gamma),
        L * gamma * M / (P * B),
        L**2 * gamma**2 * M / (6 * B),
    )


@checked
def kavg_K_opt(*, F1_minus_Fstar: X, L: X, M: X, gamma: X, B: X, P: X, S_total: X, delta: X) -> X:
    """K_opt (3.46) at fixed S = N K: argmin of B(K) (3.44) over 1 ≤ K ≤ S. Int64.

    B(K) = (α + βK + η(2K−1)(K−1)) K/(K−1+δ). On a tie it is the smaller K. The caller has to check
    condition (3.1) at that K.
    """
    alpha, beta, eta = _kavg_alpha_beta_eta(F1_minus_Fstar, L, M, gamma, B, P, S_total)
    return argmin_K(alpha + eta, beta - 3 * eta, 2 * eta, 1 - delta, 1.0, S_total)


@checked
def kavg_K_above_1(
    *, F1_minus_Fstar: X, L: X, M: X, gamma: X, B: X, P: X, S_total: X, delta: X
) -> Condition:
    """Condition (3.47) for K_opt > 1.

    The paper calls it sufficient. It is necessary too, since B(K) has one minimum.
    """
    alpha, beta, eta = _kavg_alpha_beta_eta(F1_minus_Fstar, L, M, gamma, B, P, S_total)
    # In (3.42) Theorem 3.4 prints the last term as L²γ²M/(3B) = 2η; B(2) < B(1) gives
    # 3η = L²γ²M/(2B), as in (3.47).
    return Condition(
        "K-AVG (3.47): (1−δ)α/(2δ) > (3δ−1)β/(2δ) + 3η",
        (1 - delta) * alpha / (2 * delta),
        (3 * delta - 1) * beta / (2 * delta) + 3 * eta,
        ">",
    )


@checked
def asgd_bound(
    *, F1_minus_Fstar: X, L: X, M: X, gamma: X, B: X, P: X, N: X, C0: X = 2.0, C1: X = 1.0
) -> X:
    """ASGD's bound (3.39), which grows with P.

    The paper does not give C0 and C1; the defaults only fix a scale.
    """
    return C0 * F1_minus_Fstar / (N * gamma) + C1 * L**2 * gamma**2 * M**2 * P / (2 * B)
