"""M-AVG: block momentum at the average. Known as BMUF in speech recognition.

Guojing Cong, Tianyi Liu: Accelerate Distributed Stochastic Descent for Nonconvex Optimization with
Momentum. 2020, Algorithm 1; its statements have no numbers and stand as comments below.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from localavg.algorithms.base import Algorithm, Average, Mean, NoExchange
from localavg.algorithms.kavg import Every
from localavg.algorithms.parameters import algorithm
from localavg.errors import bad
from localavg.interfaces import Array, Transport
from localavg.parallel import kernels
from localavg.parallel.device import put_
from localavg.scope import Scope

MU = "block momentum μ at an average of everyone, in [0, 1); 0 is the plain mean"
NESTEROV = "use Nesterov's form of block momentum"


@algorithm
def mavg(
    K: Annotated[int, "local updates between two averages"] = 16,
    mu: Annotated[float, MU] = 0.7,
    nesterov: Annotated[bool, NESTEROV] = False,
) -> Algorithm:
    """M-AVG (mavg Alg. 1): K-AVG with block momentum μ at the global level.

    The same as BMUF (Chen and Huo 2016).
    """
    return Algorithm(Every(K), BlockMomentum(mu, nesterov), NoExchange())


def mean_or_momentum(mu: float, nesterov: bool) -> Average:
    """Make M-AVG's average for any schedule, or the plain mean if μ is 0."""
    return BlockMomentum(mu, nesterov) if mu else Mean()


@dataclass
class BlockMomentum(Mean):
    """Block momentum μ at averages of everyone. Averages of clusters are plain means.

    The momentum is heavy ball as in the paper, or Nesterov's form: there the step is μv + d with
    the new v. Columns that are not trained are averaged without momentum. v is not rescaled when γ
    changes.
    """

    mu: float
    nesterov: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.mu < 1:
            raise bad("mu", self.mu, "block momentum must lie in [0, 1)")

    def start(self, w: Array, trained: int) -> None:
        super().start(w, trained)
        self.w_tilde = w[0, :trained].copy()  # [n] initialize w̃_1
        self.v = w[0, :trained] * 0  # [n] v ← 0

    def average_(
        self, w: Array, scope: Scope, transport: Transport, variance: bool = False
    ) -> float:
        S = super().average_(w, scope, transport, variance)  # a ← (1/P) Σ w_j, in every row
        if scope is not Scope.WORLD:
            return S
        w_tilde, v, mu = self.w_tilde, self.v, self.mu
        if (xp := kernels.array_module(w)) is not None:
            kernels.block_momentum_(xp, w[:, : len(v)], w_tilde, v, mu, self.nesterov)
            return S
        a = w[0, : len(v)]
        d = a - w_tilde  # d ← a − w̃_n
        v *= mu
        v += d  # v ← μv + d
        w_tilde += mu * v + d if self.nesterov else v  # w̃_{n+1} = w̃_n + v
        w[:, : len(v)] = w_tilde  # set w_{n+1}^j = w̃_{n+1}
        return S

    def state_dict(self) -> dict[str, Array]:
        return {"w_tilde": self.w_tilde, "v": self.v}

    def load_state_dict(self, state: dict[str, Array]) -> None:
        put_(self.w_tilde, state["w_tilde"])
        put_(self.v, state["v"])
