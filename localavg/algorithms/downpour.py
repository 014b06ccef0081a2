"""Asynchronous SGD around a center variable x̃: what a learner does, and what a server does, in
Downpour and EAMSGD.

The arithmetic is here once; `asynchronous` carries the messages, over MPI or in simulated time. A
vector [d] holds the n trained parameters, then BatchNorm's running statistics. A server may hold
any part of x̃: all it does is elementwise.

    learner j                                               server
    for t in 1..T:
        step_(learner, …)         local update
        if t mod K = 0 or t = T:
            push_(learner)        message  ─────────────►   answer_(x̃, message, reply)
            pull_(learner)                 ◄─────────────   reply

Statistics are not steps that add up, so for both rules the center's move 1/P of the way to those of
the learner that pushes, s̃ ← s̃ + (s_j − s̃)/P, and learners keep their own. The papers do not say.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from localavg.errors import at_least

Array = Any


@dataclass(frozen=True)
class Asynchronous:
    """One row of the asynchronous table: what learners and servers do, and how many ranks share the
    center variable.
    """

    rule: Downpour
    servers: int

    def __post_init__(self) -> None:
        at_least("servers", self.servers, 1)


def downpour(P: int, K: int = 16, servers: int = 1) -> Asynchronous:
    """Downpour (Dean et al. 2012; kavg §4.1): learners add their changes to a center and fetch it,
    every K updates.
    """
    return Asynchronous(Downpour(K, P), servers)


class Learner:
    """Learner j, who has pulled `center` [d] and made no update."""

    def __init__(self, j: int, center: Array) -> None:
        self.j, self.t = j, 0
        self.since, self.losses = 0, 0.0  # updates since the last push, and the sum of their losses
        self.w = center.copy()  # [d] where gradients are taken, and this learner's statistics
        self.message = np.zeros_like(
            center
        )  # [d] what it sends: to be left alone until the reply is there
        self.reply = np.zeros_like(center)  # [d] what it gets
        self.v = np.zeros(0, center.dtype)  # [n] velocity, where the rule has one


class Downpour:
    """Downpour SGD (Dean et al. 2012; kavg §4.1). Every K updates Δ, the sum of x_j's changes, is
    added to x̃; x_j ← x̃.

    n: trained parameters; set by `lay_out`. The learner's message is Δ, its reply x̃.
    """

    def __init__(self, K: int, P: int) -> None:
        at_least("K", K, 1)
        self.K, self.P = K, P

    def lay_out(self, n: int) -> None:
        """Say how many of the d numbers are trained."""
        self.n = n

    def learner(self, j: int, center: Array) -> Learner:
        """Learner j, started at `center` [d]."""
        return Learner(j, center)

    def step_(self, learner: Learner, problem: Any, batch: Any, g: Array, gamma: float) -> float:
        """x_j ← x_j − γ ∇f(x_j); Δ ← Δ − γ ∇f(x_j). Returns the loss; g [d] is scratch."""
        x, change, g_n = learner.w[: self.n], learner.message[: self.n], g[: self.n]
        loss = problem.gradient_(learner.w, batch, out=g)
        g_n *= gamma
        x -= g_n
        change -= g_n
        return float(loss)

    def push_(self, learner: Learner) -> None:
        """Complete the learner's message."""
        learner.message[self.n :] = learner.w[self.n :]

    def pull_(self, learner: Learner) -> None:
        """Go on from the reply: x_j ← x̃, Δ ← 0."""
        learner.w[: self.n] = learner.reply[: self.n]
        learner.message[: self.n] = 0

    def answer_(self, center: Array, message: Array, reply: Array, n: int) -> None:
        """A server's side of one exchange, for its part of x̃ [m] of which n are trained; the reply
        [m] is written.
        """
        self.serve_(center[:n], message[:n], reply[:n])
        center[n:] += (message[n:] - center[n:]) / self.P

    def serve_(self, center: Array, change: Array, reply: Array) -> None:
        """x̃ ← x̃ + Δ; the reply is x̃."""
        center += change
        reply[...] = center
