"""What the papers prove: bounds, the conditions under which they hold, and the optima that follow from them.

Every formula takes its symbols by keyword, under the papers' names, as scalars or arrays that broadcast together.
Common symbols: `F1_minus_Fstar` = F(w̃_1) − F*; `L` Lipschitz constant of ∇F; `M` (`sigma2` in mavg, lupa, adpsgd)
variance of the gradient at one sample; `gamma` (`eta`) step size; `P` learners (inf allowed); `B` mini-batch per
learner; `K` local updates between averages; `N` averages; `T` = N K local updates per learner (`S_total`: kavg's S).
Bounds are of squared gradient norms unless said otherwise. A value that breaks its symbol's rule raises UserError.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from localavg.config import UserError

Array = np.ndarray | float

_at_least_0 = (lambda x: (x >= 0) & (x < np.inf), "must be finite and at least 0")
_above_0 = (lambda x: (x > 0) & (x < np.inf), "must be finite and above 0")
_at_least_1 = (lambda x: (x >= 1) & (x < np.inf), "must be finite and at least 1")
_RULES: dict[str, tuple[Callable, str]] = {
    **dict.fromkeys(("F1_minus_Fstar", "M", "M_G", "sigma2", "G2_max", "C0", "C1", "a", "variance"), _at_least_0),
    **dict.fromkeys(("L", "gamma", "eta", "N", "mu_PL", "alpha", "C"), _above_0),
    **dict.fromkeys(("K", "K1", "K2", "S", "B", "T", "S_total", "tau", "taus", "tau0"), _at_least_1),
    "P": (lambda x: x >= 1, "must be at least 1"),
    "c": (lambda x: (x >= 4) & (x < np.inf), "must be finite and at least 4, as α max τ_i + 4 is"),
    "E": (lambda x: (x >= 2) & (x < np.inf), "must be finite and at least 2: one period has nothing to grow from"),
    "delta": (lambda x: (x > 0) & (x < 1), "must lie strictly between 0 and 1"),
    "mu": (lambda x: (x >= 0) & (x < 1), "must lie in [0, 1)"),
}


def _admit(name: str, value: Any) -> Any:
    if name not in _RULES or value is None:
        return value
    holds, rule = _RULES[name]
    x = np.asarray(value, float)
    if (bad := x[~holds(x)]).size:
        raise UserError(f"{name} = {bad.flat[0]:g}: {rule}")
    return x


def _checked(formula: Callable) -> Callable:
    """Give the formula its symbols as float arrays that obey `_RULES`."""

    @functools.wraps(formula)
    def call(**symbols):
        return formula(**{name: _admit(name, value) for name, value in symbols.items()})

    return call


@dataclass(frozen=True, eq=False)
class Condition:
    """One condition of a theorem, `lhs relation rhs`; its values are arrays where its symbols are."""

    name: str
    """The paper, the equation and the inequality."""
    lhs: Array
    """Left-hand side."""
    rhs: Array
    """Right-hand side."""
    relation: str = ">="
    """One of >=, > and =."""

    @property
    def margin(self) -> Array:
        """lhs − rhs, or −|lhs − rhs| for an equality; negative where the condition fails, by that much."""
        return -np.abs(self.lhs - self.rhs) if self.relation == "=" else np.subtract(self.lhs, self.rhs)

    @property
    def holds(self) -> Array:
        """True where the condition is met."""
        return self.margin > 0 if self.relation == ">" else self.margin >= 0


@dataclass(frozen=True, kw_only=True)
class Constants:
    """The constants of a problem, shared by all the papers. Tables and `predict` read them."""

    F1_minus_Fstar: float
    """F(w̃_1) − F*."""
    L: float
    """Lipschitz constant of ∇F."""
    M: float
    """Variance of the gradient at one sample (σ² in mavg, lupa and adpsgd)."""
    delta: float = 0.5
    """δ of K-AVG and M-AVG, in (0, 1); Hier-AVG's δ is 1 − this one, so that K1 = K2 gives K-AVG's bound."""
    G2_max: float | None = None
    """mavg's M, ‖∇F‖² ≤ M. None: 2 L (F1 − F*), which L-smoothness gives wherever F ≤ F1."""
    mu_PL: float | None = None
    """Polyak-Łojasiewicz constant μ of lupa. None: no PL condition, and no LUPA bound."""
    C1: float = 0.0
    """lupa (5): E‖g̃ − g‖² ≤ C1 ‖g‖² + σ²/B."""
    alpha: float = 1.0
    """lupa: a = α τ + 4 of the step size 4/(μ(t + a))."""

    def __post_init__(self) -> None:
        for f in fields(self):
            _admit(f.name, getattr(self, f.name))

    @property
    def G2(self) -> float:
        """The bound on ‖∇F‖² in use."""
        return 2 * self.L * self.F1_minus_Fstar if self.G2_max is None else self.G2_max

    @property
    def M_G(self) -> float:
        """hieravg's M_G, E‖∇F(w; ξ)‖² ≤ M_G²: mean square = variance + squared mean."""
        return float(np.sqrt(self.M + self.G2))


def _argmin_K(q0, q1, q2, c, lowest, highest):
    """The smallest integer K in [lowest, highest] that minimises B(K) = (q0 + q1 K + q2 K²) K/(K − c), 0 < c < 1.

    B(K) = a quadratic + c q(c)/(K − c). With q increasing, B is convex if q(c) > 0 and rising if not, so the minimum is
    the first K with B(K+1) >= B(K), and bisection over the integers finds it.
    """
    highest = np.maximum(lowest, np.minimum(highest, 2**53))  # floats count by ones up to there
    q0, q1, q2, c, low, high = np.broadcast_arrays(q0, q1, q2, c, np.ceil(lowest), np.floor(highest))
    while np.any(low < high):
        K = (low + high) // 2
        # B(K+1) >= B(K) with the denominators cleared: the difference itself drowns in rounding at large K
        rises = (q1 + q2 * (2 * K + 1 + c)) * (K - c) * (K + 1 - c) >= c * (q0 + q1 * c + q2 * c**2)
        low, high = np.where(rises | (low == high), low, K + 1), np.where(rises, K, high)
    return low.astype(np.int64)[()]


# K-AVG (kavg.md) ------------------------------------------------------------------------------------------------------


@_checked
def kavg_conditions(*, L, gamma, K, delta) -> tuple[Condition, Condition]:
    """The two conditions (3.1) of Theorem 3.1."""
    return (
        Condition("K-AVG (3.1): 1 ≥ L²γ²(K+1)(K−2)/2 + LγK",
                  1.0, L**2 * gamma**2 * (K + 1) * (K - 2) / 2 + L * gamma * K),
        Condition("K-AVG (3.1): 1 − δ ≥ L²γ²", 1 - delta, L**2 * gamma**2),
    )


@_checked
def kavg_bound(*, F1_minus_Fstar, L, M, gamma, B, P, K, N, delta):
    """Bound (3.2) of (1/N) E Σ ‖∇F(w̃_n)‖² over the N averages, Theorem 3.1."""
    return (2 * F1_minus_Fstar / (N * (K - 1 + delta) * gamma)
            + L * K * gamma * M / (B * (K - 1 + delta)) * (K / P + L * (2 * K - 1) * (K - 1) * gamma / 6))


@_checked
def kavg_step(*, F1_minus_Fstar, L, M, B, P, K, N):
    """The step size (3.23) of Corollary 3.1."""
    if np.any(M == 0):
        raise UserError("M = 0: the step (3.23) divides by it; without noise take any step that meets (3.1)")
    return np.sqrt(F1_minus_Fstar * B * P / (L * M * K**2 * N))


@_checked
def kavg_N_conditions(*, F1_minus_Fstar, L, M, B, P, K, N) -> tuple[Condition, Condition]:
    """Condition (3.24) of Corollary 3.1 on N as printed, and the one that bound (3.25) needs; both times M.

    (3.25) follows if K/P ≥ L(2K−1)(K−1)γ/6 at the step (3.23), which is the second condition: (3.30) lost a square, so
    (3.24) suffices for K ≤ 4 only. Nor does (3.24) imply the first of (3.1), as its proof has it, but for K ≤ 2 or
    P ≥ 1.37 K: at equality with P ≤ K, LγK = 1 leaves no room for the other term. Check (3.1) by itself.
    """
    least = F1_minus_Fstar * L * B * P
    return (Condition("K-AVG (3.24): N ≥ (F1−F*)LBP/M · max(P²/K², 1), times M",
                      N * M, least * np.maximum(P**2 / K**2, 1)),
            Condition("K-AVG (3.25): N ≥ (F1−F*)LBP/M · (P(2K−1)(K−1)/(6K²))², times M",
                      N * M, least * (P * (2 * K - 1) * (K - 1) / (6 * K**2))**2))


def _kavg_alpha_beta_eta(F1_minus_Fstar, L, M, gamma, B, P, S_total):
    """(3.45)."""
    return 2 * F1_minus_Fstar / (S_total * gamma), L * gamma * M / (P * B), L**2 * gamma**2 * M / (6 * B)


@_checked
def kavg_K_opt(*, F1_minus_Fstar, L, M, gamma, B, P, S_total, delta):
    """K_opt (3.46) at fixed S = N K: argmin over 1 ≤ K ≤ S of B(K) = (α + βK + η(2K−1)(K−1)) K/(K−1+δ), (3.44).

    Int64; the smaller K on a tie. Condition (3.1) at that K is for the caller to check.
    """
    alpha, beta, eta = _kavg_alpha_beta_eta(F1_minus_Fstar, L, M, gamma, B, P, S_total)
    return _argmin_K(alpha + eta, beta - 3 * eta, 2 * eta, 1 - delta, 1.0, S_total)


@_checked
def kavg_K_above_1(*, F1_minus_Fstar, L, M, gamma, B, P, S_total, delta) -> Condition:
    """Condition (3.47) for K_opt > 1. The paper says sufficient; it is necessary too, B(K) having one minimum."""
    alpha, beta, eta = _kavg_alpha_beta_eta(F1_minus_Fstar, L, M, gamma, B, P, S_total)
    # Theorem 3.4 prints its last term in (3.42) as L²γ²M/(3B) = 2η; B(2) < B(1) gives 3η = L²γ²M/(2B), as in (3.47).
    return Condition("K-AVG (3.47): (1−δ)α/(2δ) > (3δ−1)β/(2δ) + 3η",
                     (1 - delta) * alpha / (2 * delta), (3 * delta - 1) * beta / (2 * delta) + 3 * eta, ">")


@_checked
def asgd_bound(*, F1_minus_Fstar, L, M, gamma, B, P, N, C0=2.0, C1=1.0):
    """ASGD's bound (3.39), which grows with P. C0 and C1 are left open there; the defaults only fix a scale."""
    return C0 * F1_minus_Fstar / (N * gamma) + C1 * L**2 * gamma**2 * M**2 * P / (2 * B)


# M-AVG (mavg.md): M bounds ‖∇F‖², sigma2 is the variance --------------------------------------------------------------


@_checked
def mavg_conditions(*, L, eta, mu, K, delta) -> tuple[Condition, Condition]:
    """The two conditions of Theorem 1; the minus sign in the first one's later printings is a slip."""
    return (
        Condition("M-AVG Theorem 1: 1 ≥ L²η²(K+1)(K−2)/(2(1−μ)²) + 2ηLK/(1−μ)",
                  1.0, L**2 * eta**2 * (K + 1) * (K - 2) / (2 * (1 - mu)**2) + 2 * eta * L * K / (1 - mu)),
        Condition("M-AVG Theorem 1: 1 − δ ≥ L²η²/(1−μ)²", 1 - delta, L**2 * eta**2 / (1 - mu)**2),
    )


@_checked
def mavg_bound(*, F1_minus_Fstar, L, M, sigma2, eta, mu, B, P, K, N, delta):
    """Bound (3) of (1/N) Σ E‖∇F(w̃_i)‖², Theorem 1.

    At μ = 0 the 1/P term is twice that of K-AVG's (3.2), so Remark 2's "equivalent" holds up to that factor.
    """
    return (2 * (1 - mu) * F1_minus_Fstar / (N * (K - 1 + delta) * eta)
            + L**2 * eta**2 * sigma2 * (2 * K - 1) * K * (K - 1) / (6 * (K - 1 + delta) * B * (1 - mu)**2)
            + 2 * L * K**2 * sigma2 * eta / (P * B * (K - 1 + delta) * (1 - mu)) * (1 + mu**2 / (2 * (1 - mu)**2))
            + L * eta * mu**2 * K**2 * M / ((K - 1 + delta) * (1 - mu)**3))


@_checked
def mavg_mu_opt(*, F1_minus_Fstar, L, M, sigma2, eta, B, P, K, N):
    """The μ in [0, 1) that minimises bound (3), which is convex in μ; δ does not matter.

    Lemma 6 (N = S/(P B K), S fixed): μ_opt(λP) ≥ μ_opt(P) for λ > 1. The lemma's strict sign needs μ_opt(λP) > 0; where
    momentum does not pay at either P, both are 0. The conditions of Theorem 1 do not enter: `mavg_mu_max` is their
    limit, the same for every P, and the best admissible μ is the smaller of the two.
    """
    if np.any(M + sigma2 == 0):
        raise UserError("M = sigma2 = 0: bound (3) falls all the way to μ = 1; give one of them above 0")
    first, second = 2 * F1_minus_Fstar / (N * eta), L**2 * eta**2 * sigma2 * (2 * K - 1) * K * (K - 1) / (6 * B)
    third, fourth = 2 * L * K**2 * sigma2 * eta / (P * B), L * eta * K**2 * M

    def slope(mu):  # dg/dμ, times K − 1 + δ
        return (-first + 2 * second / (1 - mu)**3 + third / (1 - mu)**2
                + (third / 2 + fourth) * mu * (2 + mu) / (1 - mu)**4)

    low, high = np.zeros_like(slope(0.0)), np.ones_like(slope(0.0))
    for _ in range(53):  # bits of a float in [0, 1)
        mu = (low + high) / 2
        falls = slope(mu) < 0
        low, high = np.where(falls, mu, low), np.where(falls, high, mu)
    return low[()]


@_checked
def mavg_mu_max(*, L, eta, K, delta):
    """The largest μ that meets both conditions of Theorem 1; below 0 where not even μ = 0 does."""
    # K x + K x + (K+1)(K−2)x²/2 = 1 in x = Lη/(1−μ), solved without cancellation
    x = 1 / (K + np.sqrt(K**2 + (K + 1) * (K - 2) / 2))
    return 1 - L * eta / np.minimum(x, np.sqrt(1 - delta))


@_checked
def mavg_K_opt(*, F1_minus_Fstar, L, M, sigma2, eta, mu, B, P, S_total, delta):
    """K_opt(μ) at fixed S = N K: argmin over 1 ≤ K ≤ S of bound (3). Int64; the smaller K on a tie.

    Lemma 7, K_opt(μ) ≤ K_opt(0), holds for every μ if δ ≥ 1/3 (its condition (12) is then not needed) or if (12) holds
    at μ = 0. With δ < 1/3 condition (12) at μ alone, as printed, is not enough: K_opt(0) = 1 < K_opt(μ) can occur.
    """
    # α, β, η of (3.45) in K-AVG, read off bound (3); η here is the step size
    alpha = 2 * (1 - mu) * F1_minus_Fstar / (S_total * eta)
    beta = (2 * L * sigma2 * eta / (P * B * (1 - mu)) * (1 + mu**2 / (2 * (1 - mu)**2))
            + L * eta * mu**2 * M / (1 - mu)**3)
    eta_K = L**2 * eta**2 * sigma2 / (6 * B * (1 - mu)**2)
    return _argmin_K(alpha + eta_K, beta - 3 * eta_K, 2 * eta_K, 1 - delta, 1.0, S_total)


@_checked
def mavg_K_above_1(*, F1_minus_Fstar, L, M, sigma2, eta, mu, B, P, S_total, delta) -> Condition:
    """Condition (11) of Lemma 5 for K_opt(μ) > 1, also (12) of Lemma 7. Necessary too, as K-AVG's (3.47)."""
    return Condition(
        "M-AVG (11), K_opt(μ) > 1",
        (1 - delta) / delta * F1_minus_Fstar / (S_total * eta),
        1 / (1 - mu)**3 * L**2 * eta**2 * sigma2 / (2 * B)
        + 1 / (1 - mu)**2 * (3 * delta - 1) / (2 * delta)
        * (mu**2 / (1 - mu)**2 * (L * sigma2 * eta / (P * B) + L * eta * M) + 2 * L * sigma2 * eta / (P * B)), ">")


# Hier-AVG (hieravg.md): delta = L²γ²(1 + δ_∇F,w) ----------------------------------------------------------------------


def _check_clusters(P, S, K1, K2) -> None:
    if np.any(np.where(np.isfinite(P), P, S) % S != 0):
        raise UserError(f"P = {P}, S = {S}: the cluster size S must divide P; choose a divisor")
    if np.any(K1 > K2):
        raise UserError(f"K1 = {K1}, K2 = {K2}: clusters average at least as often as all; make K1 at most K2")


@_checked
def hieravg_bound_3_2(*, F1_minus_Fstar, L, M, M_G, gamma, B, P, K2, T):
    """Bound (3.2) of (1/T) Σ E‖∇F(w̄_t)‖² over every update, Theorem 3.1; it needs Lγ ≤ 1.

    M_G² bounds E‖∇F(w; ξ)‖², as (6.10) uses it; Assumption 5 prints M_G there.
    """
    return 2 * F1_minus_Fstar / (gamma * T) + 4 * L**2 * gamma**2 * K2**2 * M_G**2 + L * gamma * M / (P * B)


@_checked
def hieravg_step(*, B, P, T):
    """(γ, K2) of (3.3), K2 not rounded: bound (3.2) is then the sum (3.4), O(1/sqrt(PBT))."""
    return np.sqrt(P * B / T), T**(1 / 4) / (P * B)**(3 / 4)


@_checked
def hieravg_step_conditions(*, L, B, P, T) -> tuple[Condition, Condition]:
    """What (3.3) takes for granted: its γ meets (3.1), and its K2 is an interval, K2 ≥ 1."""
    return (Condition("Hier-AVG (3.1) at the γ of (3.3): T ≥ L²PB", T, L**2 * P * B),
            Condition("Hier-AVG (3.3), K2 ≥ 1: T ≥ (PB)³", T, (P * B)**3))


@_checked
def hieravg_conditions(*, L, gamma, K2, delta) -> tuple[Condition, Condition, Condition]:
    """Condition (3.5) of Theorem 3.2, and the range 0 < δ_∇F,w ≤ K2(K2−1)/2 − 1 as it bounds δ (empty for K2 ≤ 2)."""
    L2gamma2 = L**2 * gamma**2
    return (
        Condition("Hier-AVG (3.5): 1 ≥ L²γ²K2(K2−1)/2 − δ + LγK2",
                  1.0, L2gamma2 * K2 * (K2 - 1) / 2 - delta + L * gamma * K2),
        Condition("Hier-AVG Theorem 3.2: δ > L²γ²", delta, L2gamma2, ">"),
        Condition("Hier-AVG Theorem 3.2: L²γ²K2(K2−1)/2 ≥ δ", L2gamma2 * K2 * (K2 - 1) / 2, delta),
    )


@_checked
def hieravg_bound_3_6(*, F1_minus_Fstar, L, M, gamma, B, P, K1, K2, S, N, delta):
    """Bound (3.6) of (1/N) Σ E‖∇F(w̃_n)‖² over the N global averages, Theorem 3.2.

    Theorem 3.5, δ fixed: increases with K1 (strictly if S > 1 and M > 0), decreases with S (strictly if K1 < K2 and
    M > 0); S = 1 and K1 = K2 are K-AVG(K2), where the bound is flat in the other one.
    """
    _check_clusters(P, S, K1, K2)
    return (2 * F1_minus_Fstar / (N * (K2 - delta) * gamma)
            + L * gamma * M * K2**2 / (P * B * (K2 - delta))
            + L**2 * gamma**2 * M * K2 / (12 * B * (K2 - delta))
            * ((K2 - K1) * (4 * K2 + K1 - 3) / S + (K1 - 1) * (3 * K2 + K1 - 2)))


@_checked
def hieravg_K2_opt(*, F1_minus_Fstar, L, M, gamma, B, P, K1, S, T, delta):
    """K2* of §6.4 at fixed T = N K2: argmin over integers K1 ≤ K2 ≤ T of bound (3.6). Int64."""
    _check_clusters(P, S, K1, K1)
    alpha, beta = 2 * F1_minus_Fstar / (T * gamma), L * gamma * M / (P * B)
    eta = L**2 * gamma**2 * M / (12 * B)
    # f(K2) = α + βK2 + η((K2−K1)(4K2+K1−3)/S + (K1−1)(3K2+K1−2)) by powers of K2
    return _argmin_K(alpha + eta * (K1 * (3 - K1) / S + (K1 - 1) * (K1 - 2)),
                     beta + eta * (-3 * (K1 + 1) / S + 3 * (K1 - 1)), 4 * eta / S, delta, K1, T)


@_checked
def hieravg_K2_above_1(*, F1_minus_Fstar, L, M, gamma, B, P, S, T, delta) -> tuple[Condition, Condition]:
    """When some K2 > 1 beats K2 = 1 in (3.6) at fixed T = N K2, K1 = 1: (3.11) as printed, and what B(2) < B(1) gives.

    §6.4 calls them equivalent. (3.11) is only sufficient: it halves α and rounds (2−3δ)/(1−δ) up to 2.
    """
    alpha, beta = 2 * F1_minus_Fstar / (T * gamma), L * gamma * M / (P * B)
    eta = L**2 * gamma**2 * M / (12 * B)
    return (
        Condition("Hier-AVG (3.11): δ(F1−F*)/(Tγ(1−δ)) > 2LγM/(PB) + L²γ²M/(BS)",
                  delta * F1_minus_Fstar / (T * gamma * (1 - delta)),
                  2 * L * gamma * M / (P * B) + L**2 * gamma**2 * M / (B * S), ">"),
        Condition("Hier-AVG §6.4, B(2) < B(1): δα/(1−δ) > (2−3δ)β/(1−δ) + 12η/S",
                  delta * alpha / (1 - delta), (2 - 3 * delta) * beta / (1 - delta) + 12 * eta / S, ">"),
    )


@_checked
def hieravg_against_kavg(*, F1_minus_Fstar, L, M, gamma, B, P, K, a, T, delta, S=4) -> tuple[Condition, Condition]:
    """Theorem 3.6: K-AVG(K)'s bound against Hier-AVG's (3.6) with K2 = (1+a)K, K1 = 1 and S = 4, at equal T.

    The first condition compares the bounds, 1/P terms included; the second says how large "LγP ≫ 1" must be for f1 < f2
    of §6.6, and so is sufficient for the first. For P = ∞ both hold for 0 ≤ a ≤ 0.6 and K ≥ 2 (M > 0), the theorem's
    range with the K ≥ 2 that only its proof states; at K = 1 neither does, and with P too small neither need.
    """
    K2, of_F = (1 + a) * K, {"F1_minus_Fstar": F1_minus_Fstar, "L": L, "M": M, "gamma": gamma, "B": B, "P": P}
    return (
        Condition("Hier-AVG Theorem 3.6: bound of K-AVG(K) > bound of Hier-AVG((1+a)K, 1, S)",
                  kavg_bound(**of_F, K=K, N=T / K, delta=1 - delta),
                  hieravg_bound_3_6(**of_F, K1=1, K2=K2, S=S, N=T / K2, delta=delta), ">"),
        Condition("Hier-AVG Theorem 3.6, LγP ≫ 1: (K−1)(2K−1) − (K2−1)(2K2−1)/S > 6aK/(LγP)",
                  (K - 1) * (2 * K - 1) - (K2 - 1) * (2 * K2 - 1) / S, 6 * a * K / (L * gamma * P), ">"),
    )


# LUPA (lupa.md) -------------------------------------------------------------------------------------------------------


@_checked
def lupa_tau(*, B, P, T):
    """τ = T^(2/3)/(pB)^(1/3), Corollary 1, not rounded (§6 rounds 90.8 to 91)."""
    return T**(2 / 3) / (P * B)**(1 / 3)


@_checked
def stich_tau(*, B, P, T):
    """Stich's τ = sqrt(T/(pB)), §6, not rounded (the paper cuts 5.8 to 5)."""
    return np.sqrt(T / (P * B))


@_checked
def lupa_conditions(*, L, mu_PL, P, tau, alpha, C1=0.0, c=None) -> tuple[Condition, ...]:
    """What Theorem 1 asks of α and τ, (7) included. Theorem 2 asks it of every τ_i with c = α max τ_i + 4 for a."""
    a, kappa = alpha * tau + 4 if c is None else c, L / mu_PL
    # (7) divided by X = ((p+1)/p) 192 κ² e^(4/α), which overflows for small α; x = 1/X
    x = P / (P + 1) / (192 * kappa**2) * np.exp(-4 / alpha)
    room = 1 - alpha**2 * x
    tau_7 = (1 + 6 * alpha * x + np.sqrt((1 + 6 * alpha * x)**2 + 20 * x * np.maximum(room, 0))) / 2
    # both sides of the last two are divided by (a+1)^(τ−2), which overflows too
    return (
        Condition("LUPA Theorem 1: κ sqrt(192(p+1)/p) > α exp(−2/α)",
                  kappa * np.sqrt(192 * (P + 1) / P), alpha * np.exp(-2 / alpha), ">"),
        Condition("LUPA (7): τ ≥ its right-hand side (infinite where the condition on α fails)",
                  tau, np.divide(tau_7, room, out=np.full(np.shape(tau_7), np.inf), where=room > 0)[()]),
        Condition("LUPA Theorem 1: 64L²(p+1)/(μp)·(τ−1)τ ≥ 4(a−3)((a−3)/(a+1))^(τ−2)·L(C1+p)",
                  64 * L**2 * (P + 1) / (mu_PL * P) * (tau - 1) * tau,
                  4 * (a - 3) * ((a - 3) / (a + 1))**(tau - 2) * L * (C1 + P)),
        Condition("LUPA Theorem 1: 64L²/μ·(τ−1)τ ≥ 32L²/μ·C1(τ−1)",
                  64 * L**2 / mu_PL * (tau - 1) * tau, 32 * L**2 / mu_PL * C1 * (tau - 1)),
    )


@_checked
def lupa_bound(*, F1_minus_Fstar, L, mu_PL, sigma2, B, P, T, tau, alpha):
    """Bound (8) of E[F(x̄_T) − F*], Theorem 1, in units of F; step size 4/(μ(t + a)), a = ατ + 4."""
    a, kappa = alpha * tau + 4, L / mu_PL
    return ((mu_PL * B * P * a**3 * F1_minus_Fstar + 4 * kappa * sigma2 * T * (T + 2 * a)
             + 256 * kappa**2 * sigma2 * T * (tau - 1)) / (mu_PL * B * P * (T + a)**3))


@_checked
def adalupa_bound(*, F1_minus_Fstar, L, mu_PL, sigma2, B, P, taus, alpha):
    """Bound (12) of E[F(x̄_T) − F*], Theorem 2, in units of F; `taus` [..., E], T = Σ τ_i, c = α max τ_i + 4."""
    T, c, kappa = taus.sum(-1), alpha * taus.max(-1) + 4, L / mu_PL
    return (c**3 / (T + c)**3 * F1_minus_Fstar
            + 4 * kappa * sigma2 * T * (T + 2 * c) / (mu_PL * B * P * (T + c)**3)
            + 256 * kappa**2 * sigma2 * ((taus - 1) * taus).sum(-1) / (mu_PL * B * P * (T + c)**3))


@_checked
def adalupa_conditions(*, taus, T, B, P, C=1.0) -> tuple[Condition, ...]:
    """The three conditions on τ_1 … τ_E (`taus` [..., E]) after Theorem 2, with C for the constant of each O(·).

    With C ≥ 1 the second follows from the first: Σ τ_i(τ_i − 1) < (Σ τ_i)².
    """
    return (Condition("ADA-LUPA (i): Σ τ_i = T", taus.sum(-1), T, "="),
            Condition("ADA-LUPA (ii): C T² ≥ Σ τ_i(τ_i−1)", C * T**2, (taus * (taus - 1)).sum(-1)),
            Condition("ADA-LUPA (iii): C T²/(pB) ≥ (max τ_i)³", C * T**2 / (P * B), taus.max(-1)**3))


@_checked
def adalupa_alpha(*, T, E, tau0):
    """The α that makes Σ τ_i = T for τ_i = (1 + iα)τ_0, i = 0 … E−1: 2(T/(Eτ_0) − 1)/(E − 1)."""
    if np.any(E * tau0 > T):
        raise UserError(f"T = {T}: E = {E} periods of at least tau0 = {tau0} do not fit; lower E or tau0")
    return 2 * (T / (E * tau0) - 1) / (E - 1)


@_checked
def adalupa_alpha_printed(*, T, E, tau0):
    """The paper's α = 1.09 (T = 5469, E = 10, τ_0 = 91): 2T/((E+1)Eτ_0), which sums τ_i = iατ_0, i = 1 … E, to T."""
    return 2 * T / ((E + 1) * E * tau0)


# ADPSGD (adpsgd.md) ---------------------------------------------------------------------------------------------------


def adpsgd_variance(W):
    """Var[W_k] (7) of one realisation, (1/n) Σ ‖w̄ − w_i‖²; W [..., n, d] → [...]."""
    W = np.asarray(W, float)
    return ((W.mean(-2, keepdims=True) - W)**2).sum(-1).mean(-1)


@_checked
def adpsgd_V(*, variance, p: int | Sequence[int]):
    """V_t (11), the mean of Var[W_k] between two averages; `variance` [..., K] → [..., periods].

    `p` is the period, or the length of each one; the last may be cut short by the end of the run.
    """
    K, lengths = variance.shape[-1], np.atleast_1d(p)
    if lengths.dtype.kind != "i" or np.any(lengths < 1):
        raise UserError(f"p = {p}: a period is a whole number of updates; give integers of at least 1")
    ends = np.cumsum(lengths if np.ndim(p) else np.repeat(lengths, -(-K // p)))
    starts = np.concatenate([[0], ends[:-1]])
    if not starts[-1] < K <= ends[-1]:
        raise UserError(f"p adds up to {ends[-1]}: periods must just cover the {K} values of Var[W_k]; give as many")
    return np.add.reduceat(variance, starts, -1) / np.diff(starts, append=K)


@_checked
def adpsgd_weighted_variance(*, gamma, variance):
    """The weighted average (9), Σ γ_k Var[W_k] / Σ γ_j, over the last axis: what a schedule should keep small."""
    gamma, variance = np.broadcast_arrays(gamma, variance)
    return (gamma * variance).sum(-1) / gamma.sum(-1)


@_checked
def adpsgd_bound(*, F1_minus_Fstar, L, sigma2, gamma, variance, B, P):
    """Bound (8) of the weighted mean of E‖∇f(w̄_k)‖²; γ_k and Var[W_k] run over the last axis, M = PB samples a step."""
    weighted = adpsgd_weighted_variance(gamma=gamma, variance=variance)
    gamma, _ = np.broadcast_arrays(gamma, variance)
    return (2 * F1_minus_Fstar / gamma.sum(-1) + L**2 * weighted
            + (gamma**2).sum(-1) / gamma.sum(-1) * L * sigma2 / (P * B))


# Tables and predictions, as plain rows --------------------------------------------------------------------------------


def _row(conditions: Sequence[Condition] = (), **values: Any) -> dict[str, Any]:
    """Plain Python numbers; `holds` and the smallest `margin` of the conditions, if any, at the end."""
    if conditions:
        values |= {"holds": all(c.holds for c in conditions), "margin": min(c.margin for c in conditions)}
    return {name: x.item() if isinstance(x, np.generic | np.ndarray) else x for name, x in values.items()}


def kavg_table(constants: Constants, *, gamma: float, B: int, S_total: int, P: Sequence[int],
               K: Sequence[int]) -> list[dict]:
    """Bound (3.2) for every P and K at fixed S = N K, with K_opt and whether (3.1) holds; ASGD's (3.39) at N = S."""
    c, _ = constants, _admit("K", K)
    of_F = {"F1_minus_Fstar": c.F1_minus_Fstar, "L": c.L, "M": c.M, "gamma": gamma, "B": B}
    return [_row(P=p, K=k, N=S_total / k, bound=kavg_bound(**of_F, P=p, K=k, N=S_total / k, delta=c.delta),
                 asgd_bound=asgd_bound(**of_F, P=p, N=S_total),
                 K_opt=kavg_K_opt(**of_F, P=p, S_total=S_total, delta=c.delta),
                 conditions=kavg_conditions(L=c.L, gamma=gamma, K=k, delta=c.delta))
            for p, k in itertools.product(P, K)]


def mavg_table(constants: Constants, *, eta: float, B: int, S_total: int, P: Sequence[int], K: Sequence[int],
               mu: Sequence[float]) -> list[dict]:
    """Bound (3) for every P, K and μ at fixed S = N K (Lemma 7), with μ_opt, its limit μ_max, and K_opt(μ)."""
    c, _ = constants, _admit("K", K)
    of_F = {"F1_minus_Fstar": c.F1_minus_Fstar, "L": c.L, "M": c.G2, "sigma2": c.M, "eta": eta, "B": B}
    return [_row(P=p, K=k, mu=m, N=S_total / k,
                 bound=mavg_bound(**of_F, P=p, K=k, mu=m, N=S_total / k, delta=c.delta),
                 mu_opt=mavg_mu_opt(**of_F, P=p, K=k, N=S_total / k),
                 mu_max=mavg_mu_max(L=c.L, eta=eta, K=k, delta=c.delta),
                 K_opt=mavg_K_opt(**of_F, P=p, mu=m, S_total=S_total, delta=c.delta),
                 conditions=mavg_conditions(L=c.L, eta=eta, mu=m, K=k, delta=c.delta))
            for p, k, m in itertools.product(P, K, mu)]


def hieravg_table(constants: Constants, *, gamma: float, B: int, T: int, P: Sequence[int], K1: Sequence[int],
                  K2: Sequence[int], S: Sequence[int]) -> list[dict]:
    """Bounds (3.6) and (3.2) for every P, K2, K1 ≤ K2 and S | P at fixed T = N K2, with K-AVG(K2)'s for comparison."""
    c, _, _ = constants, _admit("K2", K2), _admit("S", S)
    of_F = {"F1_minus_Fstar": c.F1_minus_Fstar, "L": c.L, "M": c.M, "gamma": gamma, "B": B}
    return [_row(P=p, K2=k2, K1=k1, S=s, N=T / k2,
                 bound=hieravg_bound_3_6(**of_F, P=p, K1=k1, K2=k2, S=s, N=T / k2, delta=1 - c.delta),
                 kavg_bound=kavg_bound(**of_F, P=p, K=k2, N=T / k2, delta=c.delta),
                 bound_3_2=hieravg_bound_3_2(**of_F, M_G=c.M_G, P=p, K2=k2, T=T),
                 K2_opt=hieravg_K2_opt(**of_F, P=p, K1=k1, S=s, T=T, delta=1 - c.delta),
                 conditions=hieravg_conditions(L=c.L, gamma=gamma, K2=k2, delta=1 - c.delta))
            for p, k2, k1, s in itertools.product(P, K2, K1, S) if k1 <= k2 and p % s == 0]


def lupa_table(constants: Constants, *, B: int, P: Sequence[int], T: Sequence[int]) -> list[dict]:
    """τ and Stich's for every p and T, as numbers and as used (91 and 5 in §6), with bound (8) where μ_PL is given."""
    c, rows = constants, []
    for p, t in itertools.product(P, T):
        exact, stich = lupa_tau(B=B, P=p, T=t), stich_tau(B=B, P=p, T=t)
        tau, conditions, bounds = max(1, round(float(exact))), (), {}
        if c.mu_PL is not None:
            of_F = {"L": c.L, "mu_PL": c.mu_PL, "P": p, "tau": tau, "alpha": c.alpha}
            bounds = {"bound": lupa_bound(**of_F, F1_minus_Fstar=c.F1_minus_Fstar, sigma2=c.M, B=B, T=t)}
            conditions = lupa_conditions(**of_F, C1=c.C1)
        rows.append(_row(conditions, P=p, T=t, tau_exact=exact, tau=tau, averages=-(-t // tau), tau_stich_exact=stich,
                         tau_stich=max(1, int(stich)), **bounds))
    return rows


def predict(constants: Constants, *, P: int, B: int, gamma: float, T: int, K1: int = 1, S: int = 1) -> dict[str, Any]:
    """What the papers predict for T local updates per learner, and every condition at the predicted values.

    `K_opt` of K-AVG, `gamma_K_opt` of Corollary 3.1 (None without noise); `mu_opt` and its limit `mu_max` of M-AVG at
    that K, `K_opt_mu` = K_opt(μ_opt); `K2` and `gamma_K2` of Hier-AVG's (3.3), `K2_opt` of its (3.6) for K1 and S;
    `tau`, `tau_stich`. `conditions` are rows (condition, lhs, relation, rhs, margin, holds), `failing` those that do
    not hold.
    """
    c, lupa = constants, lupa_table(constants, B=B, P=[P], T=[T])[0]
    of_F = {"F1_minus_Fstar": c.F1_minus_Fstar, "L": c.L, "M": c.M, "B": B, "P": P}
    of_M = {"F1_minus_Fstar": c.F1_minus_Fstar, "L": c.L, "M": c.G2, "sigma2": c.M, "eta": gamma, "B": B, "P": P}
    K_opt = kavg_K_opt(**of_F, gamma=gamma, S_total=T, delta=c.delta)
    N = T / K_opt
    mu_opt = mavg_mu_opt(**of_M, K=K_opt, N=N)
    gamma_K2, K2 = hieravg_step(B=B, P=P, T=T)
    K2_opt = hieravg_K2_opt(**of_F, gamma=gamma, K1=K1, S=S, T=T, delta=1 - c.delta)
    conditions = [
        *kavg_conditions(L=c.L, gamma=gamma, K=K_opt, delta=c.delta),
        *kavg_N_conditions(**of_F, K=K_opt, N=N),
        kavg_K_above_1(**of_F, gamma=gamma, S_total=T, delta=c.delta),
        *mavg_conditions(L=c.L, eta=gamma, mu=mu_opt, K=K_opt, delta=c.delta),
        mavg_K_above_1(**of_M, mu=mu_opt, S_total=T, delta=c.delta),
        *hieravg_step_conditions(L=c.L, B=B, P=P, T=T),
        *hieravg_conditions(L=c.L, gamma=gamma, K2=K2_opt, delta=1 - c.delta),
        *hieravg_K2_above_1(**of_F, gamma=gamma, S=S, T=T, delta=1 - c.delta),
    ]
    if c.mu_PL is not None:
        conditions += lupa_conditions(L=c.L, mu_PL=c.mu_PL, P=P, tau=lupa["tau"], alpha=c.alpha, C1=c.C1)
    rows = [_row(condition=x.name, lhs=x.lhs, relation=x.relation, rhs=x.rhs, margin=x.margin, holds=x.holds)
            for x in conditions]
    return _row(
        K_opt=K_opt, gamma_K_opt=kavg_step(**of_F, K=K_opt, N=N) if c.M > 0 else None,
        mu_opt=mu_opt, mu_max=mavg_mu_max(L=c.L, eta=gamma, K=K_opt, delta=c.delta),
        K_opt_mu=mavg_K_opt(**of_M, mu=mu_opt, S_total=T, delta=c.delta),
        gamma_K2=gamma_K2, K2=K2, K2_opt=K2_opt, tau=lupa["tau"], tau_stich=lupa["tau_stich"],
    ) | {"conditions": rows, "failing": [row for row in rows if not row["holds"]]}
