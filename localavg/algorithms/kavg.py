"""K-AVG (kavg Alg. 1) = CPSGD (adpsgd Alg. 1) = LUPA-SGD (lupa Alg. 1)."""

from __future__ import annotations

from dataclasses import dataclass

from localavg.algorithms.base import Algorithm, Mean, Nothing, Schedule, _at_least_one
from localavg.scope import Scope


def kavg(K: int = 16) -> Algorithm:
    """K-AVG (kavg Alg. 1) = CPSGD (adpsgd Alg. 1) = LUPA-SGD (lupa Alg. 1, τ = K): w_j ← w̄ every K
    updates.
    """
    return Algorithm(Every(K), Mean(), Nothing())


@dataclass(frozen=True)
class Every(Schedule):
    """Everyone after every K local updates (kavg Alg. 1; adpsgd Alg. 1, line 5; lupa Alg. 1, line
    6).
    """

    K: int

    def __post_init__(self) -> None:
        _at_least_one("K", self.K)

    def after(self, t: int) -> Scope:
        return Scope.NONE if t % self.K else Scope.WORLD
