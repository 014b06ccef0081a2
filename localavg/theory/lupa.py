"""LUPA and ADA-LUPA (lupa §4–5)."""

from __future__ import annotations

import numpy as np

from localavg.errors import UserError
from localavg.theory.constants import Condition, X, checked


@checked
def lupa_tau(*, B: X, P: X, T: X) -> X:
    """τ = T^(2/3)/(pB)^(1/3), Corollary 1, not rounded (§6 rounds 90.8 to 91)."""
    return T ** (2 / 3) / (P * B) ** (1 / 3)


@checked
def lupa_P_end(*, B: X, T: X, tau: X) -> X:
    """T²/(Bτ³), the p whose τ of Corollary 1 is this one: up to it the speed-up is linear."""
    return T**2 / (B * tau**3)


@checked
def stich_tau(*, B: X, P: X, T: X) -> X:
    """Stich's τ = sqrt(T/(pB)), §6, not rounded (the paper cuts 5.8 to 5)."""
    return np.sqrt(T / (P * B))


@checked
def lupa_conditions(
    *, L: X, mu_PL: X, P: X, tau: X, alpha: X, C1: X = 0.0, c: X | None = None
) -> tuple[Condition, ...]:
    """The conditions of Theorem 1 on α and τ, (7) included.

    Theorem 2 has the same conditions on every τ_i, with c = α max τ_i + 4 in place of a.
    """
    a, kappa = alpha * tau + 4 if c is None else c, L / mu_PL
    # (7) divided by X = ((p+1)/p) 192 κ² e^(4/α), which overflows for small α; x = 1/X
    x = P / (P + 1) / (192 * kappa**2) * np.exp(-4 / alpha)
    room = 1 - alpha**2 * x
    tau_7 = (
        1 + 6 * alpha * x + np.sqrt((1 + 6 * alpha * x) ** 2 + 20 * x * np.maximum(room, 0))
    ) / 2
    # both sides of the last two are divided by (a+1)^(τ−2), which overflows too
    return (
        Condition(
            "LUPA Theorem 1: κ sqrt(192(p+1)/p) > α exp(−2/α)",
            kappa * np.sqrt(192 * (P + 1) / P),
            alpha * np.exp(-2 / alpha),
            ">",
        ),
        Condition(
            "LUPA (7): τ ≥ its right-hand side (infinite where the condition on α fails)",
            tau,
            np.divide(tau_7, room, out=np.full(np.shape(tau_7), np.inf), where=room > 0)[()],
        ),
        Condition(
            "LUPA Theorem 1: 64L²(p+1)/(μp)·(τ−1)τ ≥ 4(a−3)((a−3)/(a+1))^(τ−2)·L(C1+p)",
            64 * L**2 * (P + 1) / (mu_PL * P) * (tau - 1) * tau,
            4 * (a - 3) * ((a - 3) / (a + 1)) ** (tau - 2) * L * (C1 + P),
        ),
        Condition(
            "LUPA Theorem 1: 64L²/μ·(τ−1)τ ≥ 32L²/μ·C1(τ−1)",
            64 * L**2 / mu_PL * (tau - 1) * tau,
            32 * L**2 / mu_PL * C1 * (tau - 1),
        ),
    )


@checked
def lupa_bound(
    *, F1_minus_Fstar: X, L: X, mu_PL: X, sigma2: X, B: X, P: X, T: X, tau: X, alpha: X
) -> X:
    """Bound (8) of E[F(x̄_T) − F*], Theorem 1, in units of F.

    The step size is 4/(μ(t + a)), a = ατ + 4.
    """
    a, kappa = alpha * tau + 4, L / mu_PL
    return (
        mu_PL * B * P * a**3 * F1_minus_Fstar
        + 4 * kappa * sigma2 * T * (T + 2 * a)
        + 256 * kappa**2 * sigma2 * T * (tau - 1)
    ) / (mu_PL * B * P * (T + a) ** 3)


@checked
def adalupa_bound(
    *, F1_minus_Fstar: X, L: X, mu_PL: X, sigma2: X, B: X, P: X, taus: np.ndarray, alpha: X
) -> X:
    """Bound (12) of E[F(x̄_T) − F*], Theorem 2, in units of F.

    taus: [..., E], the lengths of the periods. T = Σ τ_i, c = α max τ_i + 4.
    """
    T, c, kappa = taus.sum(-1), alpha * taus.max(-1) + 4, L / mu_PL
    return (
        c**3 / (T + c) ** 3 * F1_minus_Fstar
        + 4 * kappa * sigma2 * T * (T + 2 * c) / (mu_PL * B * P * (T + c) ** 3)
        + 256 * kappa**2 * sigma2 * ((taus - 1) * taus).sum(-1) / (mu_PL * B * P * (T + c) ** 3)
    )


@checked
def adalupa_conditions(*, taus: np.ndarray, T: X, B: X, P: X, C: X = 1.0) -> tuple[Condition, ...]:
    """The three conditions on τ_1 … τ_E after Theorem 2, with C for the constant of each O(·).

    taus: [..., E]. With C ≥ 1 the second follows from the first: Σ τ_i(τ_i − 1) < (Σ τ_i)².
    """
    return (
        Condition("ADA-LUPA (i): Σ τ_i = T", taus.sum(-1), T, "="),
        Condition("ADA-LUPA (ii): C T² ≥ Σ τ_i(τ_i−1)", C * T**2, (taus * (taus - 1)).sum(-1)),
        Condition("ADA-LUPA (iii): C T²/(pB) ≥ (max τ_i)³", C * T**2 / (P * B), taus.max(-1) ** 3),
    )


@checked
def adalupa_alpha(*, T: X, E: X, tau0: X) -> X:
    """The α that makes Σ τ_i = T for τ_i = (1 + iα)τ_0, i = 0 … E−1: 2(T/(Eτ_0) − 1)/(E − 1)."""
    if np.any(E * tau0 > T):
        raise UserError(
            f"T = {T}: E = {E} periods of at least tau0 = {tau0} do not fit; lower E or tau0"
        )
    return 2 * (T / (E * tau0) - 1) / (E - 1)
