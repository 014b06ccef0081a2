"""What the papers predict for the constants of a problem."""

from __future__ import annotations

from localavg.theory.constants import Condition, Constants
from localavg.theory.hieravg import (
    hieravg_conditions,
    hieravg_K2_above_1,
    hieravg_K2_opt,
    hieravg_step,
    hieravg_step_conditions,
)
from localavg.theory.kavg import (
    kavg_conditions,
    kavg_K_above_1,
    kavg_K_opt,
    kavg_N_conditions,
    kavg_step,
)
from localavg.theory.lupa import lupa_conditions
from localavg.theory.mavg import (
    mavg_conditions,
    mavg_K_above_1,
    mavg_K_opt,
    mavg_mu_max,
    mavg_mu_opt,
)
from localavg.theory.tables import Row, lupa_table, row


def predict(
    constants: Constants, *, P: int, B: int, gamma: float, T: int, K1: int = 1, S: int = 1
) -> Row:
    """Predict the best periods for T local updates per learner, with every condition at them.

    `K_opt` of K-AVG, `gamma_K_opt` of Corollary 3.1 (None without noise); `mu_opt` and its limit
    `mu_max` of M-AVG at that K, `K_opt_mu` = K_opt(μ_opt); `K2` and `gamma_K2` of Hier-AVG's (3.3),
    `K2_opt` of its (3.6) for K1 and S; `tau`, `tau_stich`. `conditions` are rows (condition, lhs,
    relation, rhs, margin, holds), `failing` those that do not hold.
    """
    c, lupa = constants, lupa_table(constants, B=B, P=[P], T=[T])[0]
    of_F = {"F1_minus_Fstar": c.F1_minus_Fstar, "L": c.L, "M": c.M, "B": B, "P": P}
    of_M = of_F | {"M": c.G2, "sigma2": c.M, "eta": gamma}
    K_opt = kavg_K_opt(**of_F, gamma=gamma, S_total=T, delta=c.delta)
    N = T / K_opt
    mu_opt = mavg_mu_opt(**of_M, K=K_opt, N=N)
    gamma_K2, K2 = hieravg_step(B=B, P=P, T=T)
    K2_opt = hieravg_K2_opt(**of_F, gamma=gamma, K1=K1, S=S, T=T, delta=1 - c.delta)
    conditions: list[Condition] = [
        *kavg_conditions(L=c.L, gamma=gamma, K=K_opt, delta=c.delta),
        *kavg_N_conditions(**of_F, K=K_opt, N=N),
        kavg_K_above_1(**of_F, gamma=gamma, S_total=T, delta=c.delta),
        *mavg_conditions(L=c.L, eta=gamma, mu=mu_opt, K=K_opt, delta=c.delta),
        mavg_K_above_1(**of_M, mu=mu_opt, S_total=T, delta=c.delta),
        *hieravg_step_conditions(L=c.L, B=B, P=P, T=T),
        *hieravg_conditions(L=c.L, gamma=gamma, K2=K2_opt, delta=1 - c.delta),
        *hieravg_K2_above_1(**of_F, gamma=gamma, S=S, T=T, delta=1 - c.delta),
        *_of_lupa(c, P, lupa["tau"]),
    ]
    rows = [_condition_row(condition) for condition in conditions]
    predicted = row(
        K_opt=K_opt,
        gamma_K_opt=kavg_step(**of_F, K=K_opt, N=N) if c.M > 0 else None,
        mu_opt=mu_opt, mu_max=mavg_mu_max(L=c.L, eta=gamma, K=K_opt, delta=c.delta),
        K_opt_mu=mavg_K_opt(**of_M, mu=mu_opt, S_total=T, delta=c.delta),
        gamma_K2=gamma_K2, K2=K2, K2_opt=K2_opt, tau=lupa["tau"], tau_stich=lupa["tau_stich"],
    )  # fmt: skip
    return predicted | {"conditions": rows, "failing": [r for r in rows if not r["holds"]]}


def _of_lupa(c: Constants, P: int, tau: float) -> tuple[Condition, ...]:
    """Return LUPA-SGD's conditions; none without μ_PL."""
    if c.mu_PL is None:
        return ()
    return lupa_conditions(L=c.L, mu_PL=c.mu_PL, P=P, tau=tau, alpha=c.alpha, C1=c.C1)


def _condition_row(x: Condition) -> Row:
    return row(
        condition=x.name, lhs=x.lhs, relation=x.relation, rhs=x.rhs, margin=x.margin, holds=x.holds
    )
