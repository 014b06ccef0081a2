"""Hier-AVG (hieravg Alg. 1)."""

from __future__ import annotations

from dataclasses import dataclass

from localavg.algorithms.base import Algorithm, Nothing, Schedule, _at_least_one
from localavg.algorithms.kavg import Every
from localavg.algorithms.mavg import _average
from localavg.errors import UserError, bad
from localavg.scope import Scope


def hieravg(
    K1: int = 4, K2: int = 16, S: int = 4, mu: float = 0.0, nesterov: bool = False
) -> Algorithm:
    """Hier-AVG (hieravg Alg. 1): clusters of S consecutive learners average every K1 updates,
    everyone every K2.
    """
    if S < 1:
        raise bad("S", S, "a cluster has at least 1 learner")
    schedule = Hierarchical(K1, K2)
    return Algorithm(
        schedule if S > 1 else Every(K2), _average(mu, nesterov), Nothing(), S
    )  # S = 1: nobody to meet


@dataclass(frozen=True)
class Hierarchical(Schedule):
    """Clusters every K1, everyone every K2 (hieravg Alg. 1).

    K1 need not divide K2: a global average replaces the local one due at the same t, and the local
    count restarts there.
    """

    K1: int
    K2: int

    def __post_init__(self) -> None:
        _at_least_one("K1", self.K1)
        _at_least_one("K2", self.K2)
        if self.K1 > self.K2:
            raise UserError(
                f"--K1 {self.K1} exceeds --K2 {self.K2}: clusters average at least as often as "
                "everyone, K1 <= K2"
            )

    def after(self, t: int) -> Scope:
        since_global = t % self.K2
        if not since_global:
            return Scope.WORLD
        return Scope.NONE if since_global % self.K1 else Scope.CLUSTER
