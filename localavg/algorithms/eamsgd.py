"""EAMSGD: elastic averaging SGD with momentum.

Sixin Zhang, Anna Choromanska, Yann LeCun: Deep Learning with Elastic Averaging SGD. NIPS 2015,
Algorithm 2, for any number of learners and servers. A baseline of Zhou and Cong (kavg §4.1).
"""

from __future__ import annotations

from typing import Annotated

import numpy as np

from localavg.algorithms.about import about
from localavg.algorithms.center import Asynchronous, CenterLearner, CenterRule, Zeros
from localavg.algorithms.parameters import algorithm
from localavg.errors import bad
from localavg.interfaces import Array, Batch, Problem


@about(
    take_if="you compare with asynchronous SGD: an elastic force pulls learners to a center",
    rounds="⌈T/K⌉ for each learner",
    source="kavg §4.1",
    sent="4d, and 4d back",
)
@algorithm
def eamsgd(
    P: int,
    momentum: float,
    K: Annotated[int, "τ, local updates between two exchanges of a learner with the servers"] = 16,
    alpha: Annotated[
        float | None,
        "moving rate α, the part of the way that learner and center move (default: 0.9 / P)",
    ] = None,
    servers: Annotated[int, "number of ranks that hold the center variable, each a part of it"] = 1,
) -> Asynchronous:
    """EAMSGD (Zhang et al. 2015): an elastic force to a center, every τ = K updates.

    The moving rate α is 0.9 / P by default. δ is the run's momentum.
    """
    return Asynchronous(EAMSGD(K, P, 0.9 / P if alpha is None else alpha, momentum), servers)


class EAMSGD(CenterRule):
    """Every τ = K updates e = α (x_j − x̃); x_j ← x_j − e; x̃ ← x̃ + e. Moving rate α, momentum δ.

    The message is x_j and the reply is e. The server computes e from the present x̃, so an exchange
    never changes x̃ + Σ x_j.
    """

    def __init__(self, K: int, P: int, alpha: float, delta: float) -> None:
        super().__init__(K, P)
        if not 0 < alpha < 1:
            rule = "must lie in (0, 1): it is the part of the way that learner and center move"
            raise bad("alpha", alpha, rule)
        self.alpha, self.delta = alpha, delta

    def learner(self, j: int, center: Array, zeros: Zeros) -> CenterLearner:
        learner = CenterLearner(j, center, zeros)
        learner.message[...] = center  # x_j lives here
        learner.v = zeros((self.n,))
        return learner

    def step_(
        self, learner: CenterLearner, problem: Problem, batch: Batch, g: Array, gamma: float
    ) -> float | Array:
        """v ← δ v − γ ∇f(x_j + δ v); x_j ← x_j + v (Nesterov)."""
        x, v, g_n = learner.message[: self.n], learner.v, g[: self.n]
        v *= self.delta
        np.add(x, v, out=learner.w[: self.n])  # x_j + δ v
        loss = problem.gradient_(learner.w, batch, out=g)
        g_n *= gamma
        v -= g_n
        x += v
        return loss

    def pull_(self, learner: CenterLearner, reply: Array) -> None:
        """x_j ← x_j − e."""
        learner.message[: self.n] -= reply[: self.n]

    def serve_(self, center: Array, x: Array, reply: Array) -> None:
        """e = α (x_j − x̃); x̃ ← x̃ + e; the reply is e."""
        np.subtract(x, center, out=reply)
        reply *= self.alpha
        center += reply
