"""M-AVG (mavg §III): M bounds ‖∇F‖², sigma2 is the variance."""

from __future__ import annotations

import numpy as np

from localavg.errors import UserError
from localavg.theory.constants import Condition, X, argmin_K, checked


@checked
def mavg_conditions(*, L: X, eta: X, mu: X, K: X, delta: X) -> tuple[Condition, Condition]:
    """The two conditions of Theorem 1.

    Where the paper prints the first again, its minus sign is a mistake.
    """
    return (
        Condition(
            "M-AVG Theorem 1: 1 ≥ L²η²(K+1)(K−2)/(2(1−μ)²) + 2ηLK/(1−μ)",
            1.0,
            L**2 * eta**2 * (K + 1) * (K - 2) / (2 * (1 - mu) ** 2) + 2 * eta * L * K / (1 - mu),
        ),
        Condition("M-AVG Theorem 1: 1 − δ ≥ L²η²/(1−μ)²", 1 - delta, L**2 * eta**2 / (1 - mu) ** 2),
    )


@checked
def mavg_bound(
    *, F1_minus_Fstar: X, L: X, M: X, sigma2: X, eta: X, mu: X, B: X, P: X, K: X, N: X, delta: X
) -> X:
    """Bound (3) of (1/N) Σ E‖∇F(w̃_i)‖², Theorem 1.

    At μ = 0 the 1/P term is twice that of K-AVG's (3.2), so Remark 2's "equivalent" holds up to
    that factor.
    """
    brake, room = 1 - mu, K - 1 + delta
    start = 2 * brake * F1_minus_Fstar / (N * room * eta)
    local = L**2 * eta**2 * sigma2 * (2 * K - 1) * K * (K - 1) / (6 * room * B * brake**2)
    noise = 2 * L * K**2 * sigma2 * eta / (P * B * room * brake)
    block = L * eta * mu**2 * K**2 * M / (room * brake**3)
    return start + local + noise * (1 + mu**2 / (2 * brake**2)) + block


@checked
def mavg_mu_opt(*, F1_minus_Fstar: X, L: X, M: X, sigma2: X, eta: X, B: X, P: X, K: X, N: X) -> X:
    """The μ in [0, 1) that minimises bound (3), which is convex in μ; it does not depend on δ.

    Lemma 6 (N = S/(P B K), S fixed): μ_opt(λP) ≥ μ_opt(P) for λ > 1. The lemma's strict sign needs
    μ_opt(λP) > 0; where momentum does not help at either P, both are 0. The conditions of Theorem 1
    are not used here: `mavg_mu_max` is their limit, the same for every P, and the best admissible μ
    is the smaller of the two.
    """
    if np.any(M + sigma2 == 0):
        raise UserError(
            "M = sigma2 = 0: bound (3) falls all the way to μ = 1; give one of them above 0"
        )
    first = 2 * F1_minus_Fstar / (N * eta)
    second = L**2 * eta**2 * sigma2 * (2 * K - 1) * K * (K - 1) / (6 * B)
    third, fourth = 2 * L * K**2 * sigma2 * eta / (P * B), L * eta * K**2 * M

    def slope(mu: X) -> X:
        """The derivative of the bound by μ, times K − 1 + δ."""
        return (
            -first
            + 2 * second / (1 - mu) ** 3
            + third / (1 - mu) ** 2
            + (third / 2 + fourth) * mu * (2 + mu) / (1 - mu) ** 4
        )

    low = np.zeros_like(slope(0.0))
    high = np.ones_like(low)
    for _ in range(53):  # bits of a float in [0, 1)
        mu = (low + high) / 2
        falls = slope(mu) < 0
        low, high = np.where(falls, mu, low), np.where(falls, high, mu)
    return low[()]


@checked
def mavg_mu_max(*, L: X, eta: X, K: X, delta: X) -> X:
    """The largest μ that meets both conditions of Theorem 1; below 0 where μ = 0 fails them."""
    # K x + K x + (K+1)(K−2)x²/2 = 1 in x = Lη/(1−μ), solved without cancellation
    x = 1 / (K + np.sqrt(K**2 + (K + 1) * (K - 2) / 2))
    return 1 - L * eta / np.minimum(x, np.sqrt(1 - delta))


@checked
def mavg_K_opt(
    *, F1_minus_Fstar: X, L: X, M: X, sigma2: X, eta: X, mu: X, B: X, P: X, S_total: X, delta: X
) -> X:
    """K_opt(μ) at fixed S = N K: argmin of bound (3) over 1 ≤ K ≤ S. Int64.

    On a tie it is the smaller K. Lemma 7, K_opt(μ) ≤ K_opt(0), holds for every μ if δ ≥ 1/3 (its
    condition (12) is then not needed) or if (12) holds at μ = 0. With δ < 1/3 condition (12) at μ
    alone, as printed, is not enough: K_opt(0) = 1 < K_opt(μ) can occur.
    """
    # α, β, η of (3.45) in K-AVG, read off bound (3); η here is the step size
    alpha = 2 * (1 - mu) * F1_minus_Fstar / (S_total * eta)
    beta = (
        2 * L * sigma2 * eta / (P * B * (1 - mu)) * (1 + mu**2 / (2 * (1 - mu) ** 2))
        + L * eta * mu**2 * M / (1 - mu) ** 3
    )
    eta_K = L**2 * eta**2 * sigma2 / (6 * B * (1 - mu) ** 2)
    return argmin_K(alpha + eta_K, beta - 3 * eta_K, 2 * eta_K, 1 - delta, 1.0, S_total)


@checked
def mavg_K_above_1(
    *, F1_minus_Fstar: X, L: X, M: X, sigma2: X, eta: X, mu: X, B: X, P: X, S_total: X, delta: X
) -> Condition:
    """Condition (11) of Lemma 5 for K_opt(μ) > 1, also (12) of Lemma 7.

    It is necessary too, as K-AVG's (3.47) is.
    """
    momentum = mu**2 / (1 - mu) ** 2 * (L * sigma2 * eta / (P * B) + L * eta * M)
    noise = 2 * L * sigma2 * eta / (P * B)
    return Condition(
        "M-AVG (11), K_opt(μ) > 1",
        (1 - delta) / delta * F1_minus_Fstar / (S_total * eta),
        1 / (1 - mu) ** 3 * L**2 * eta**2 * sigma2 / (2 * B)
        + 1 / (1 - mu) ** 2 * (3 * delta - 1) / (2 * delta) * (momentum + noise),
        ">",
    )
