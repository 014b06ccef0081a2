"""Asynchronous algorithms: rules for learners and servers of a center variable x̃.

The arithmetic is in the rules. `training/asynchronous` carries the messages, over MPI or in
simulated time. A vector [d] holds the n trained parameters, then BatchNorm's running statistics. A
server may hold any part of x̃, because it works elementwise.

    learner j                                               server
    for t in 1..T:
        step_(learner, …)         local update
        if t mod K = 0 or t = T:
            push_(learner)        message  ─────────────►   answer_(x̃, message, reply)
            pull_(learner, reply)          ◄─────────────   reply

A learner's vectors lie where it computes, on the host or on a GPU. Where the center lies is the
business of whoever calls `answer_`: its three vectors lie in one memory.

Statistics are no sums of steps, so every rule treats them alike: the center's statistics move 1/P
of the way to those of the learner that pushes, s̃ ← s̃ + (s_j − s̃)/P, and learners keep their own.
The papers do not specify this.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from localavg.errors import at_least
from localavg.interfaces import Array, Batch, Problem

Zeros: TypeAlias = Callable[[tuple[int, ...]], Array]  # of a shape, float32


@dataclass(frozen=True)
class Asynchronous:
    """One row of the asynchronous table: a rule, and the number of ranks that share the center."""

    rule: CenterRule
    servers: int

    def __post_init__(self) -> None:
        at_least("servers", self.servers, 1)


class CenterLearner:
    """Learner j, which has pulled `center` [d] and made no update.

    zeros: makes the learner's vectors; `center` lies in the same memory.
    """

    def __init__(self, j: int, center: Array, zeros: Zeros) -> None:
        self.j, self.t = j, 0
        self.losses: list[float | Array] = []  # of the updates since the last push
        self.w = zeros(center.shape)  # [d] the point of the gradient, and the learner's statistics
        self.w[...] = center
        self.message = zeros(center.shape)  # [d] what it sends; not changed until the reply comes
        self.v = zeros((0,))  # [n] velocity, where the rule has one


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

    def learner(self, j: int, center: Array, zeros: Zeros) -> CenterLearner:
        """Return learner j, which starts at `center` [d], with vectors made by `zeros`."""
        return CenterLearner(j, center, zeros)

    @abstractmethod
    def step_(
        self, learner: CenterLearner, problem: Problem, batch: Batch, g: Array, gamma: float
    ) -> float | Array:
        """Make one local update with step size γ. Return the loss. g [d] is scratch memory.

        The loss is a scalar of the memory in which the learner computes.
        """

    def push_(self, learner: CenterLearner) -> None:
        """Add the statistics to the learner's message [d], which has the trained part already."""
        learner.message[self.n :] = learner.w[self.n :]

    @abstractmethod
    def pull_(self, learner: CenterLearner, reply: Array) -> None:
        """Use the reply [d]: set the learner's weights for its next update."""

    def answer_(self, center: Array, message: Array, reply: Array, n: int) -> None:
        """Serve one exchange for a part x̃ [m] with n trained numbers; write the reply [m]."""
        self.serve_(center[:n], message[:n], reply[:n])
        center[n:] += (message[n:] - center[n:]) / self.P

    @abstractmethod
    def serve_(self, center: Array, message: Array, reply: Array) -> None:
        """Serve the trained part of one exchange: update x̃ in place and write the reply."""
