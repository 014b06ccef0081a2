"""Hier-AVG (hieravg §3): delta = L²γ²(1 + δ_∇F,w)."""

from __future__ import annotations

import numpy as np

from localavg.errors import UserError
from localavg.theory.constants import Condition, X, argmin_K, checked
from localavg.theory.kavg import kavg_bound


def _check_clusters(P: X, S: X, K1: X, K2: X) -> None:
    """Raise UserError unless S divides P and K1 ≤ K2."""
    if np.any(np.where(np.isfinite(P), P, S) % S != 0):
        raise UserError(f"P = {P}, S = {S}: the cluster size S must divide P; choose a divisor")
    if np.any(K1 > K2):
        raise UserError(
            f"K1 = {K1}, K2 = {K2}: clusters average at least as often as all; make K1 at most K2"
        )


@checked
def hieravg_bound_3_2(
    *, F1_minus_Fstar: X, L: X, M: X, M_G: X, gamma: X, B: X, P: X, K2: X, T: X
) -> X:
    """Bound (3.2) of (1/T) Σ E‖∇F(w̄_t)‖² over every update, Theorem 3.1; it needs Lγ ≤ 1.

    M_G² bounds E‖∇F(w; ξ)‖², as (6.10) uses it; Assumption 5 prints M_G there.
    """
    return (
        2 * F1_minus_Fstar / (gamma * T)
        + 4 * L**2 * gamma**2 * K2**2 * M_G**2
        + L * gamma * M / (P * B)
    )


@checked
def hieravg_step(*, B: X, P: X, T: X) -> tuple[X, X]:
    """(γ, K2) of (3.3), K2 not rounded: bound (3.2) is then the sum (3.4), O(1/sqrt(PBT))."""
    return np.sqrt(P * B / T), T ** (1 / 4) / (P * B) ** (3 / 4)


@checked
def hieravg_step_conditions(*, L: X, B: X, P: X, T: X) -> tuple[Condition, Condition]:
    """The conditions that (3.3) assumes: its γ meets (3.1), and its K2 is an interval, K2 ≥ 1."""
    return (
        Condition("Hier-AVG (3.1) at the γ of (3.3): T ≥ L²PB", T, L**2 * P * B),
        Condition("Hier-AVG (3.3), K2 ≥ 1: T ≥ (PB)³", T, (P * B) ** 3),
    )


@checked
def hieravg_conditions(
    *, L: X, gamma: X, K2: X, delta: X
) -> tuple[Condition, Condition, Condition]:
    """Condition (3.5) of Theorem 3.2, and the bounds on δ of 0 < δ_∇F,w ≤ K2(K2−1)/2 − 1.

    That range is empty for K2 ≤ 2.
    """
    L2gamma2 = L**2 * gamma**2
    return (
        Condition(
            "Hier-AVG (3.5): 1 ≥ L²γ²K2(K2−1)/2 − δ + LγK2",
            1.0,
            L2gamma2 * K2 * (K2 - 1) / 2 - delta + L * gamma * K2,
        ),
        Condition("Hier-AVG Theorem 3.2: δ > L²γ²", delta, L2gamma2, ">"),
        Condition("Hier-AVG Theorem 3.2: L²γ²K2(K2−1)/2 ≥ δ", L2gamma2 * K2 * (K2 - 1) / 2, delta),
    )


@checked
def hieravg_bound_3_6(
    *, F1_minus_Fstar: X, L: X, M: X, gamma: X, B: X, P: X, K1: X, K2: X, S: X, N: X, delta: X
) -> X:
    """Bound (3.6) of (1/N) Σ E‖∇F(w̃_n)‖² over the N global averages, Theorem 3.2.

    Theorem 3.5, δ fixed: it increases with K1 (strictly if S > 1 and M > 0) and decreases with S
    (strictly if K1 < K2 and M > 0). S = 1 and K1 = K2 each give K-AVG(K2), where the bound does not
    depend on the other one.
    """
    _check_clusters(P, S, K1, K2)
    local = L**2 * gamma**2 * M * K2 / (12 * B * (K2 - delta))
    return (
        2 * F1_minus_Fstar / (N * (K2 - delta) * gamma)
        + L * gamma * M * K2**2 / (P * B * (K2 - delta))
        + local * ((K2 - K1) * (4 * K2 + K1 - 3) / S + (K1 - 1) * (3 * K2 + K1 - 2))
    )


@checked
def hieravg_K2_opt(
    *, F1_minus_Fstar: X, L: X, M: X, gamma: X, B: X, P: X, K1: X, S: X, T: X, delta: X
) -> X:
    """K2* of §6.4 at fixed T = N K2: argmin over integers K1 ≤ K2 ≤ T of bound (3.6). Int64."""
    _check_clusters(P, S, K1, K1)
    alpha, beta = 2 * F1_minus_Fstar / (T * gamma), L * gamma * M / (P * B)
    eta = L**2 * gamma**2 * M / (12 * B)
    # f(K2) = α + βK2 + η((K2−K1)(4K2+K1−3)/S + (K1−1)(3K2+K1−2)) by powers of K2
    return argmin_K(
        alpha + eta * (K1 * (3 - K1) / S + (K1 - 1) * (K1 - 2)),
        beta + eta * (-3 * (K1 + 1) / S + 3 * (K1 - 1)),
        4 * eta / S,
        delta,
        K1,
        T,
    )


@checked
def hieravg_K2_above_1(
    *, F1_minus_Fstar: X, L: X, M: X, gamma: X, B: X, P: X, S: X, T: X, delta: X
) -> tuple[Condition, Condition]:
    """Two conditions for some K2 > 1 to beat K2 = 1 in (3.6) at fixed T = N K2, K1 = 1.

    They are (3.11) as printed, and B(2) < B(1). §6.4 calls them equivalent. (3.11) is only
    sufficient: it halves α and rounds (2−3δ)/(1−δ) up to 2.
    """
    alpha, beta = 2 * F1_minus_Fstar / (T * gamma), L * gamma * M / (P * B)
    eta = L**2 * gamma**2 * M / (12 * B)
    return (
        Condition(
            "Hier-AVG (3.11): δ(F1−F*)/(Tγ(1−δ)) > 2LγM/(PB) + L²γ²M/(BS)",
            delta * F1_minus_Fstar / (T * gamma * (1 - delta)),
            2 * L * gamma * M / (P * B) + L**2 * gamma**2 * M / (B * S),
            ">",
        ),
        Condition(
            "Hier-AVG §6.4, B(2) < B(1): δα/(1−δ) > (2−3δ)β/(1−δ) + 12η/S",
            delta * alpha / (1 - delta),
            (2 - 3 * delta) * beta / (1 - delta) + 12 * eta / S,
            ">",
        ),
    )


@checked
def hieravg_against_kavg(
    *, F1_minus_Fstar: X, L: X, M: X, gamma: X, B: X, P: X, K: X, a: X, T: X, delta: X, S: X = 4
) -> tuple[Condition, Condition]:
    """Theorem 3.6: K-AVG(K) against Hier-AVG with K2 = (1+a)K, K1 = 1 and S = 4, at equal T.

    The first condition compares the bounds (3.2) and (3.6), 1/P terms included. The second is how
    large "LγP ≫ 1" must be for f1 < f2 of §6.6; it is sufficient for the first. For P = ∞ both hold
    for 0 ≤ a ≤ 0.6 and K ≥ 2 (M > 0), which is the theorem's range with the K ≥ 2 that only its
    proof states. At K = 1 neither holds, and with P too small they may fail.
    """
    K2 = (1 + a) * K
    of_F = {"F1_minus_Fstar": F1_minus_Fstar, "L": L, "M": M, "gamma": gamma, "B": B, "P": P}
    return (
        Condition(
            "Hier-AVG Theorem 3.6: bound of K-AVG(K) > bound of Hier-AVG((1+a)K, 1, S)",
            kavg_bound(**of_F, K=K, N=T / K, delta=1 - delta),
            hieravg_bound_3_6(**of_F, K1=1, K2=K2, S=S, N=T / K2, delta=delta),
            ">",
        ),
        Condition(
            "Hier-AVG Theorem 3.6, LγP ≫ 1: (K−1)(2K−1) − (K2−1)(2K2−1)/S > 6aK/(LγP)",
            (K - 1) * (2 * K - 1) - (K2 - 1) * (2 * K2 - 1) / S,
            6 * a * K / (L * gamma * P),
            ">",
        ),
    )
