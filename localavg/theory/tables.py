"""Tables and predictions as plain rows: a list of dicts, one a row."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from localavg.theory.constants import Condition, Constants, admit
from localavg.theory.hieravg import (
    hieravg_against_kavg,
    hieravg_bound_3_2,
    hieravg_bound_3_6,
    hieravg_conditions,
    hieravg_K2_above_1,
    hieravg_K2_opt,
    hieravg_step,
    hieravg_step_conditions,
)
from localavg.theory.kavg import (
    asgd_bound,
    kavg_bound,
    kavg_conditions,
    kavg_K_above_1,
    kavg_K_opt,
    kavg_N_conditions,
    kavg_step,
)
from localavg.theory.lupa import (
    adalupa_alpha,
    adalupa_bound,
    adalupa_conditions,
    lupa_bound,
    lupa_conditions,
    lupa_tau,
    stich_tau,
)
from localavg.theory.mavg import (
    mavg_bound,
    mavg_conditions,
    mavg_K_above_1,
    mavg_K_opt,
    mavg_mu_max,
    mavg_mu_opt,
)


def _row(conditions: Sequence[Condition] = (), **values: Any) -> dict[str, Any]:
    """Plain Python numbers; `holds` and the smallest `margin` of the conditions, if any, at the
    end.
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
) -> list[dict]:
    """Bound (3.2) for every P and K at fixed S = N K, with K_opt and whether (3.1) holds; ASGD's
    (3.39) at N = S.
    """
    c, _ = constants, admit("K", K)
    of_F = {"F1_minus_Fstar": c.F1_minus_Fstar, "L": c.L, "M": c.M, "gamma": gamma, "B": B}
    return [
        _row(
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
) -> list[dict]:
    """Bound (3) for every P, K and μ at fixed S = N K (Lemma 7), with μ_opt, its limit μ_max, and
    K_opt(μ).
    """
    c, _ = constants, admit("K", K)
    of_F = {
        "F1_minus_Fstar": c.F1_minus_Fstar,
        "L": c.L,
        "M": c.G2,
        "sigma2": c.M,
        "eta": eta,
        "B": B,
    }
    return [
        _row(
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
) -> list[dict]:
    """Bounds (3.6) and (3.2) for every P, K2, K1 ≤ K2 and S | P at fixed T = N K2, with K-AVG(K2)'s
    for comparison.
    """
    c, _, _ = constants, admit("K2", K2), admit("S", S)
    of_F = {"F1_minus_Fstar": c.F1_minus_Fstar, "L": c.L, "M": c.M, "gamma": gamma, "B": B}
    return [
        _row(
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


def lupa_table(constants: Constants, *, B: int, P: Sequence[int], T: Sequence[int]) -> list[dict]:
    """τ and Stich's for every p and T, as numbers and as used (91 and 5 in §6), with bound (8)
    where μ_PL is given.
    """
    c, rows = constants, []
    for p, t in itertools.product(P, T):
        exact, stich = lupa_tau(B=B, P=p, T=t), stich_tau(B=B, P=p, T=t)
        tau, conditions, bounds = max(1, round(float(exact))), (), {}
        if c.mu_PL is not None:
            of_F = {"L": c.L, "mu_PL": c.mu_PL, "P": p, "tau": tau, "alpha": c.alpha}
            bounds = {
                "bound": lupa_bound(**of_F, F1_minus_Fstar=c.F1_minus_Fstar, sigma2=c.M, B=B, T=t)
            }
            conditions = lupa_conditions(**of_F, C1=c.C1)
        rows.append(
            _row(
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
) -> list[dict]:
    """For every p and number of periods E: the α that makes Σ τ_i = T, the longest period, whether
    the conditions after Theorem 2 hold with constants of 1, and bound (12) where μ_PL is given.
    Rows whose E periods do not fit in T are left out.
    """
    c, rows = constants, []
    for p, e in itertools.product(P, E):
        if e < 2 or e * tau0 > T:
            continue
        alpha = adalupa_alpha(T=T, E=e, tau0=tau0)
        taus = np.ceil((1 + np.arange(e) * alpha) * tau0 - 1e-9)  # [E]
        taus[-1] += T - taus.sum()  # rounding up: the run ends at T
        bound = (
            {}
            if c.mu_PL is None
            else {
                "bound": adalupa_bound(
                    F1_minus_Fstar=c.F1_minus_Fstar,
                    L=c.L,
                    mu_PL=c.mu_PL,
                    sigma2=c.M,
                    B=B,
                    P=p,
                    taus=taus,
                    alpha=c.alpha,
                )
            }
        )
        conditions = adalupa_conditions(taus=taus, T=T, B=B, P=p)
        rows.append(_row(conditions, P=p, E=e, alpha=alpha, longest=taus.max(), **bound))
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
) -> list[dict]:
    """Theorem 3.6 for every P that S = 4 divides, K and a: both bounds at equal T, and by how much
    Hier-AVG wins or not.
    """
    c = constants
    of_F = {"F1_minus_Fstar": c.F1_minus_Fstar, "L": c.L, "M": c.M, "gamma": gamma, "B": B}
    rows = []
    for p, k, x in itertools.product([p for p in P if p % 4 == 0], K, a):
        bounds, sufficient = hieravg_against_kavg(**of_F, P=p, K=k, a=x, T=T, delta=1 - c.delta)
        rows.append(
            _row(
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


def predict(
    constants: Constants, *, P: int, B: int, gamma: float, T: int, K1: int = 1, S: int = 1
) -> dict[str, Any]:
    """What the papers predict for T local updates per learner, and every condition at the predicted
    values.

    `K_opt` of K-AVG, `gamma_K_opt` of Corollary 3.1 (None without noise); `mu_opt` and its limit
    `mu_max` of M-AVG at that K, `K_opt_mu` = K_opt(μ_opt); `K2` and `gamma_K2` of Hier-AVG's (3.3),
    `K2_opt` of its (3.6) for K1 and S; `tau`, `tau_stich`. `conditions` are rows (condition, lhs,
    relation, rhs, margin, holds), `failing` those that do not hold.
    """
    c, lupa = constants, lupa_table(constants, B=B, P=[P], T=[T])[0]
    of_F = {"F1_minus_Fstar": c.F1_minus_Fstar, "L": c.L, "M": c.M, "B": B, "P": P}
    of_M = {
        "F1_minus_Fstar": c.F1_minus_Fstar,
        "L": c.L,
        "M": c.G2,
        "sigma2": c.M,
        "eta": gamma,
        "B": B,
        "P": P,
    }
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
        conditions += lupa_conditions(
            L=c.L, mu_PL=c.mu_PL, P=P, tau=lupa["tau"], alpha=c.alpha, C1=c.C1
        )
    rows = [
        _row(
            condition=x.name,
            lhs=x.lhs,
            relation=x.relation,
            rhs=x.rhs,
            margin=x.margin,
            holds=x.holds,
        )
        for x in conditions
    ]
    return _row(
        K_opt=K_opt,
        gamma_K_opt=kavg_step(**of_F, K=K_opt, N=N) if c.M > 0 else None,
        mu_opt=mu_opt,
        mu_max=mavg_mu_max(L=c.L, eta=gamma, K=K_opt, delta=c.delta),
        K_opt_mu=mavg_K_opt(**of_M, mu=mu_opt, S_total=T, delta=c.delta),
        gamma_K2=gamma_K2,
        K2=K2,
        K2_opt=K2_opt,
        tau=lupa["tau"],
        tau_stich=lupa["tau_stich"],
    ) | {"conditions": rows, "failing": [row for row in rows if not row["holds"]]}
