"""Tables of the bounds: a list of rows, each a dict of plain Python values."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np

from localavg.theory.constants import Condition, Constants, X, admit
from localavg.theory.hieravg import (
    hieravg_against_kavg,
    hieravg_bound_3_2,
    hieravg_bound_3_6,
    hieravg_conditions,
    hieravg_K2_opt,
)
from localavg.theory.kavg import asgd_bound, kavg_bound, kavg_conditions, kavg_K_opt
from localavg.theory.lupa import (
    adalupa_alpha,
    adalupa_bound,
    adalupa_conditions,
    lupa_bound,
    lupa_conditions,
    lupa_tau,
    stich_tau,
)
from localavg.theory.mavg import mavg_bound, mavg_conditions, mavg_K_opt, mavg_mu_max, mavg_mu_opt

Row: TypeAlias = dict[str, Any]
"""one row of a table: plain Python values by column"""


def row(conditions: Sequence[Condition] = (), **values: object) -> Row:
    """Make a row of plain Python values from numbers of NumPy.

    With conditions, `holds` (of all) and the smallest `margin` are its last two columns.
    """
    if conditions:
        values |= {
            "holds": all(c.holds for c in conditions),
            "margin": min(c.margin for c in conditions),
        }
    return {
        name: x.item() if isinstance(x, np.generic | np.ndarray) else x
        for name, x in values.items()
    }


def kavg_table(
    constants: Constants, *, gamma: float, B: int, S_total: int, P: Sequence[int], K: Sequence[int]
) -> list[Row]:
    """Bound (3.2) for every P and K at fixed S = N K, with K_opt and whether (3.1) holds.

    ASGD's bound (3.39) stands in each row too, at N = S.
    """
    c, _ = constants, admit("K", K)
    of_F = {"F1_minus_Fstar": c.F1_minus_Fstar, "L": c.L, "M": c.M, "gamma": gamma, "B": B}
    return [
        row(
            P=p,
            K=k,
            N=S_total / k,
            bound=kavg_bound(**of_F, P=p, K=k, N=S_total / k, delta=c.delta),
            asgd_bound=asgd_bound(**of_F, P=p, N=S_total),
            K_opt=kavg_K_opt(**of_F, P=p, S_total=S_total, delta=c.delta),
            conditions=kavg_conditions(L=c.L, gamma=gamma, K=k, delta=c.delta),
        )
        for p, k in itertools.product(P, K)
    ]


def mavg_table(
    constants: Constants,
    *,
    eta: float,
    B: int,
    S_total: int,
    P: Sequence[int],
    K: Sequence[int],
    mu: Sequence[float],
) -> list[Row]:
    """Bound (3) for every P, K and μ at fixed S = N K (Lemma 7).

    Each row has μ_opt, its limit μ_max, and K_opt(μ) too.
    """
    c, _ = constants, admit("K", K)
    of_F = {"F1_minus_Fstar": c.F1_minus_Fstar, "L": c.L, "eta": eta, "B": B}
    of_F |= {"M": c.G2, "sigma2": c.M}
    return [
        row(
            P=p,
            K=k,
            mu=m,
            N=S_total / k,
            bound=mavg_bound(**of_F, P=p, K=k, mu=m, N=S_total / k, delta=c.delta),
            mu_opt=mavg_mu_opt(**of_F, P=p, K=k, N=S_total / k),
            mu_max=mavg_mu_max(L=c.L, eta=eta, K=k, delta=c.delta),
            K_opt=mavg_K_opt(**of_F, P=p, mu=m, S_total=S_total, delta=c.delta),
            conditions=mavg_conditions(L=c.L, eta=eta, mu=m, K=k, delta=c.delta),
        )
        for p, k, m in itertools.product(P, K, mu)
    ]


def hieravg_table(
    constants: Constants,
    *,
    gamma: float,
    B: int,
    T: int,
    P: Sequence[int],
    K1: Sequence[int],
    K2: Sequence[int],
    S: Sequence[int],
) -> list[Row]:
    """Bounds (3.6) and (3.2) for every P, K2, K1 ≤ K2 and S | P at fixed T = N K2.

    K-AVG(K2)'s bound stands in each row for comparison.
    """
    c, _, _ = constants, admit("K2", K2), admit("S", S)
    of_F = {"F1_minus_Fstar": c.F1_minus_Fstar, "L": c.L, "M": c.M, "gamma": gamma, "B": B}
    return [
        row(
            P=p,
            K2=k2,
            K1=k1,
            S=s,
            N=T / k2,
            bound=hieravg_bound_3_6(**of_F, P=p, K1=k1, K2=k2, S=s, N=T / k2, delta=1 - c.delta),
            kavg_bound=kavg_bound(**of_F, P=p, K=k2, N=T / k2, delta=c.delta),
            bound_3_2=hieravg_bound_3_2(**of_F, M_G=c.M_G, P=p, K2=k2, T=T),
            K2_opt=hieravg_K2_opt(**of_F, P=p, K1=k1, S=s, T=T, delta=1 - c.delta),
            conditions=hieravg_conditions(L=c.L, gamma=gamma, K2=k2, delta=1 - c.delta),
        )
        for p, k2, k1, s in itertools.product(P, K2, K1, S)
        if k1 <= k2 and p % s == 0
    ]


def lupa_table(constants: Constants, *, B: int, P: Sequence[int], T: Sequence[int]) -> list[Row]:
    """τ and Stich's τ for every p and T, exact and as used (91 and 5 in §6).

    Bound (8) and its conditions stand in each row where μ_PL is given.
    """
    c = constants
    rows: list[Row] = []
    for p, t in itertools.product(P, T):
        exact, stich = lupa_tau(B=B, P=p, T=t), stich_tau(B=B, P=p, T=t)
        tau = max(1, round(float(exact)))
        conditions: tuple[Condition, ...] = ()
        bounds: dict[str, X] = {}
        if c.mu_PL is not None:
            of_F = {"L": c.L, "mu_PL": c.mu_PL, "P": p, "tau": tau, "alpha": c.alpha}
            bound = lupa_bound(**of_F, F1_minus_Fstar=c.F1_minus_Fstar, sigma2=c.M, B=B, T=t)
            bounds["bound"] = bound
            conditions = lupa_conditions(**of_F, C1=c.C1)
        rows.append(
            row(
                conditions,
                P=p,
                T=t,
                tau_exact=exact,
                tau=tau,
                averages=-(-t // tau),
                tau_stich_exact=stich,
                tau_stich=max(1, int(stich)),
                **bounds,
            )
        )
    return rows


def adalupa_table(
    constants: Constants, *, B: int, P: Sequence[int], T: int, tau0: int, E: Sequence[int]
) -> list[Row]:
    """The α that makes Σ τ_i = T, and the longest period, for every p and number of periods E.

    Each row has whether the conditions after Theorem 2 hold with constants of 1, and bound (12)
    where μ_PL is given. Rows whose E periods do not fit in T are left out.
    """
    c = constants
    rows: list[Row] = []
    of_F = {"F1_minus_Fstar": c.F1_minus_Fstar, "L": c.L, "sigma2": c.M, "B": B, "alpha": c.alpha}
    for p, e in itertools.product(P, E):
        if e < 2 or e * tau0 > T:
            continue
        alpha = adalupa_alpha(T=T, E=e, tau0=tau0)
        taus = np.ceil((1 + np.arange(e) * alpha) * tau0 - 1e-9)  # [E]
        taus[-1] += T - taus.sum()  # they are rounded up, but the run ends at T
        bounds: dict[str, X] = {}
        if c.mu_PL is not None:
            bounds["bound"] = adalupa_bound(**of_F, mu_PL=c.mu_PL, P=p, taus=taus)
        conditions = adalupa_conditions(taus=taus, T=T, B=B, P=p)
        rows.append(row(conditions, P=p, E=e, alpha=alpha, longest=taus.max(), **bounds))
    return rows


def against_table(
    constants: Constants,
    *,
    gamma: float,
    B: int,
    T: int,
    P: Sequence[int],
    K: Sequence[int],
    a: Sequence[float],
) -> list[Row]:
    """Theorem 3.6 for every P that S = 4 divides, every K and a: both bounds at equal T.

    `margin` is by how much Hier-AVG's bound is the lower one; below 0 where it is not.
    """
    c = constants
    of_F = {"F1_minus_Fstar": c.F1_minus_Fstar, "L": c.L, "M": c.M, "gamma": gamma, "B": B}
    rows = []
    for p, k, x in itertools.product([p for p in P if p % 4 == 0], K, a):
        bounds, sufficient = hieravg_against_kavg(**of_F, P=p, K=k, a=x, T=T, delta=1 - c.delta)
        rows.append(
            row(
                P=p,
                K=k,
                a=x,
                kavg_bound=bounds.lhs,
                hieravg_bound=bounds.rhs,
                holds=bounds.holds,
                margin=bounds.margin,
                sufficient_holds=sufficient.holds,
            )
        )
    return rows
