"""Downpour SGD.

Jeffrey Dean, Greg Corrado, Rajat Monga, Kai Chen, Matthieu Devin, Quoc V. Le, Mark Mao,
Marc'Aurelio Ranzato, Andrew Senior, Paul Tucker, Ke Yang, Andrew Y. Ng: Large Scale Distributed
Deep Networks. NIPS 2012, §4.1. A baseline of Zhou and Cong (kavg §4.1).
"""

from __future__ import annotations

from typing import Annotated

from localavg.algorithms.about import about
from localavg.algorithms.center import Asynchronous, CenterLearner, CenterRule
from localavg.algorithms.parameters import algorithm
from localavg.interfaces import Array, Batch, Problem


@about(
    take_if="you compare with asynchronous SGD: changes go to a server, weights come back",
    rounds="⌈T/K⌉ for each learner",
    source="kavg §4.1",
    sent="4d, and 4d back",
)
@algorithm
def downpour(
    P: int,
    K: Annotated[int, "local updates between two exchanges of a learner with the servers"] = 16,
    servers: Annotated[int, "number of ranks that hold the center variable, each a part of it"] = 1,
) -> Asynchronous:
    """Downpour (Dean et al. 2012): learners push changes to a center and pull it, every K."""
    return Asynchronous(Downpour(K, P), servers)


class Downpour(CenterRule):
    """Every K updates Δ, the sum of x_j's changes, is added to x̃; then x_j ← x̃.

    The learner's message is Δ, and the reply is x̃.
    """

    def step_(
        self, learner: CenterLearner, problem: Problem, batch: Batch, g: Array, gamma: float
    ) -> float | Array:
        """x_j ← x_j − γ ∇f(x_j); Δ ← Δ − γ ∇f(x_j)."""
        x, change, g_n = learner.w[: self.n], learner.message[: self.n], g[: self.n]
        loss = problem.gradient_(learner.w, batch, out=g)
        g_n *= gamma
        x -= g_n
        change -= g_n
        return loss

    def pull_(self, learner: CenterLearner, reply: Array) -> None:
        """x_j ← x̃; Δ ← 0."""
        learner.w[: self.n] = reply[: self.n]
        learner.message[: self.n] = 0

    def serve_(self, center: Array, change: Array, reply: Array) -> None:
        """x̃ ← x̃ + Δ; the reply is x̃."""
        center += change
        reply[...] = center
