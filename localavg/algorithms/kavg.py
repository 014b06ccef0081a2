"""K-AVG, known under other names as CPSGD, LUPA-SGD, Local SGD, and FedAvg with all learners.

Fan Zhou, Guojing Cong: On the Convergence Properties of a K-Step Averaging Stochastic Gradient
Descent Algorithm for Nonconvex Optimization. IJCAI 2018, Algorithm 1.

    initialize w̃_1
    for n = 1, …, N:
        set w_n^j = w̃_n                             on every learner j
        for k = 1, …, K: update w_{n+k}^j            the local optimiser, n K + k = t
        synchronize w̃_{n+1} = (1/P) Σ_j w_{n+K}^j    `Every` says when, `Mean` what
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Unpack

from localavg.algorithms.about import about
from localavg.algorithms.auto import Auto
from localavg.algorithms.base import Algorithm, Schedule, check_period
from localavg.algorithms.common import Common, composed
from localavg.algorithms.parameters import AUTO, OR_AUTO, Period, algorithm
from localavg.errors import bad
from localavg.scope import Scope


@about(
    take_if="you begin: it is the simplest, and K is its only number",
    rounds="⌈T/K⌉",
    source="kavg Alg. 1",
)
@algorithm
def kavg(
    K: Annotated[int | str, Period("K", 16, f"local updates between two averages; {OR_AUTO}")] = 16,
    **common: Unpack[Common],
) -> Algorithm:
    """K-AVG (kavg Alg. 1), Local SGD: everyone averages every K updates, w_j ← w̄.

    The same as CPSGD (adpsgd Alg. 1), LUPA-SGD (lupa Alg. 1, τ = K), and FedAvg with all learners.
    """
    return composed(every(K), **common)


def every(K: int | str) -> Schedule:
    """Make the schedule of a fixed period K, or of K = auto."""
    if K == AUTO:
        return Auto()
    if isinstance(K, str):
        raise bad("K", K, "must be a whole number of at least 1, or auto")
    return Every(K)


@dataclass(frozen=True)
class Every(Schedule):
    """Everyone after every K local updates."""

    K: int

    def __post_init__(self) -> None:
        check_period("K", self.K)

    @property
    def shortest(self) -> int:
        return self.K

    @property
    def fixed(self) -> int:
        return self.K

    def after(self, t: int) -> Scope:
        # "synchronize" (kavg); p divides k (adpsgd Alg. 1, line 5); τ divides t (lupa line 6)
        return Scope.NONE if t % self.K else Scope.WORLD
