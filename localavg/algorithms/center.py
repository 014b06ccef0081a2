"""Asynchronous algorithms: rules for learners and servers of a center variable x̃.

The arithmetic is in the rules. `training/asynchronous` carries the messages, over MPI or in
simulated time. A vector [d] holds the n trained parameters, then BatchNorm's running statistics. A
server may hold any part of x̃, because it works elementwise.

    learner j                                               server
    for t in 1..T:
        step_(learner, …)         local update
        if t mod K = 0 or t = T:
            push_(learner)        message  ─────────────►   answer_(x̃, message, reply)
            pull_(learner)                 ◄─────────────   reply

Statistics are no sums of steps, so every rule treats them alike: the center's statistics move 1/P
of the way to those of the learner that pushes, s̃ ← s̃ + (s_j − s̃)/P, and learners keep their own.
The papers do not specify this.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np

from localavg.errors import at_least
from localavg.interfaces import Array, Batch, Problem


@dataclass(frozen=True)
class Asynchronous:
    """One row of the asynchronous table: a rule, and the number of ranks that share the center."""

    rule: CenterRule
    servers: int

    def __post_init__(self) -> None:
        at_least("servers", self.servers, 1)


class CenterLearner:
    """Learner j, which has pulled `center` [d] and made no update."""

    def __init__(self, j: int, center: Array) -> None:
        self.j, self.t = j, 0
        self.since, self.losses = 0, 0.0  # updates since the last push, and the sum of their losses
        self.w = center.copy()  # [d] the point of the gradient, and this learner's statistics
        self.message = np.zeros_like(center)  # [d] what it sends; not changed until the reply comes
        self.reply = np.zeros_like(center)  # [d] what it gets
        self.v = np.zeros(0, center.dtype)  # [n] velocity, where the rule has one


class CenterRule(ABC):
    """What a learner and a server do, for P learners that exchange every K updates.

    n: the number of trained parameters, set by `lay_out`.
    """

    def __init__(self, K: int, P: int) -> None:
        at_least("K", K, 1)
        self.K, self.P = K, P

    def lay_out(self, n: int) -> None:
        """Set how many of the d numbers are trained."""
        self.n = n

    def learner(self, j: int, center: Array) -> CenterLearner:
        """Return learner j, which starts at `center` [d]."""
        return CenterLearner(j, center)

    @abstractmethod
    def step_(
        self, learner: CenterLearner, problem: Problem, batch: Batch, g: Array, gamma: float
    ) -> float:
        """Make one local update with step size γ. Return the loss. g [d] is scratch memory."""

    def push_(self, learner: CenterLearner) -> None:
        """Add the statistics to the learner's message [d], which has the trained part already."""
        learner.message[self.n :] = learner.w[self.n :]

    @abstractmethod
    def pull_(self, learner: CenterLearner) -> None:
        """Use the reply [d]: set the learner's weights for its next update."""

    def answer_(self, center: Array, message: Array, reply: Array, n: int) -> None:
        """Serve one exchange for a part x̃ [m] with n trained numbers; write the reply [m]."""
        self.serve_(center[:n], message[:n], reply[:n])
        center[n:] += (message[n:] - center[n:]) / self.P

    @abstractmethod
    def serve_(self, center: Array, message: Array, reply: Array) -> None:
        """Serve the trained part of one exchange: update x̃ in place and write the reply."""
