"""M-AVG: block momentum at the average. Known as BMUF in speech recognition.

Guojing Cong, Tianyi Liu: Accelerate Distributed Stochastic Descent for Nonconvex Optimization with
Momentum. 2020, Algorithm 1, whose statements have no numbers:

    initialize w̃_1, v ← 0
    for n = 1, …, N:
        set w_n^j = w̃_n                                 on every learner j
        for k = 1, …, K: update w_{n+k}^j                the local optimiser, n K + k = t
        a ← (1/P) Σ_j w_{n+K}^j                          `Every` says when
        d ← a − w̃_n
        v ← μv + d
        w̃_{n+1} = w̃_n + v                               `outer.Momentum` with η = 1

v is not rescaled when γ changes. Nesterov's form, outer = nesterov, adds μv + d in the last line.
"""

from __future__ import annotations

from typing import Annotated, Unpack

from localavg.algorithms.about import about
from localavg.algorithms.base import Algorithm
from localavg.algorithms.common import MU, OUTER_LR, Others, composed
from localavg.algorithms.kavg import every
from localavg.algorithms.parameters import OR_AUTO, Period, algorithm
from localavg.errors import check_choice


@about(take_if="K-AVG makes too little progress per round", rounds="⌈T/K⌉", source="mavg Alg. 1")
@algorithm
def mavg(
    K: Annotated[int | str, Period("K", 16, f"local updates between two averages; {OR_AUTO}")] = 16,
    outer: Annotated[
        str, "form of block momentum: the paper's (momentum) or nesterov"
    ] = "momentum",
    outer_lr: Annotated[float, OUTER_LR] = 1.0,
    mu: Annotated[float, MU] = 0.7,
    **others: Unpack[Others],
) -> Algorithm:
    """M-AVG (mavg Alg. 1), BMUF: K-AVG with block momentum μ at the global level.

    BMUF is of Chen and Huo, 2016. The same as kavg with the outer optimiser momentum.
    """
    check_choice("outer", outer, ("momentum", "nesterov"))
    return composed(every(K), outer=outer, outer_lr=outer_lr, mu=mu, **others)
