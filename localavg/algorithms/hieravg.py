"""Hier-AVG.

Fan Zhou, Guojing Cong: A Distributed Hierarchical Averaging SGD Algorithm: Trading Local Reductions
for Global Reductions. 2019, Algorithm 1. The local sum is over the cluster of learner j (the index
in the paper is misprinted). K1 need not divide K2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Unpack

from localavg.algorithms.base import Algorithm, Schedule, check_period
from localavg.algorithms.common import Common, composed
from localavg.algorithms.kavg import Every
from localavg.algorithms.parameters import algorithm
from localavg.errors import UserError, bad
from localavg.scope import Scope


@algorithm
def hieravg(
    K1: Annotated[int, "local updates between two averages of a cluster"] = 4,
    K2: Annotated[int, "local updates between two averages of everyone"] = 16,
    S: Annotated[
        int, "consecutive learners in a cluster; S must divide the number of learners"
    ] = 4,
    **common: Unpack[Common],
) -> Algorithm:
    """Hier-AVG (hieravg Alg. 1): clusters average every K1 updates, everyone every K2."""
    if S < 1:
        raise bad("S", S, "a cluster has at least 1 learner")
    hierarchical = Hierarchical(K1, K2)
    schedule = hierarchical if S > 1 else Every(K2)  # a cluster of one has nothing to average
    return composed(schedule, S, **common)


@dataclass(frozen=True)
class Hierarchical(Schedule):
    """Clusters average every K1 updates, everyone every K2.

    If both are due at the same t, only everyone averages. The count to K1 restarts at every average
    of everyone.
    """

    K1: int
    K2: int

    def __post_init__(self) -> None:
        check_period("K1", self.K1)
        check_period("K2", self.K2)
        if self.K1 > self.K2:
            raise UserError(
                f"`K1 = {self.K1}` exceeds `K2 = {self.K2}`: clusters average at least as often as "
                "everyone, K1 <= K2"
            )

    def after(self, t: int) -> Scope:
        since_global = t % self.K2
        if not since_global:
            return Scope.WORLD  # "globally average and synchronize"
        if since_global % self.K1:
            return Scope.NONE  # "local SGD"
        return Scope.CLUSTER  # "locally average and synchronize"
