"""Sequential SGD and synchronous SGD (FULLSGD, SyncSGD): the baselines of all papers.

Synchronous SGD takes the mean gradient of P learners at every update. This is the same as one
learner with a mini-batch P times as large. It equals `kavg` with K = 1 for SGD with or without
momentum.
"""

from __future__ import annotations

import math

from localavg.algorithms.about import about
from localavg.algorithms.base import Algorithm, Exchange, Mean, Never, NoExchange
from localavg.algorithms.parameters import algorithm
from localavg.interfaces import Array, Transport
from localavg.scope import Scope


@about(
    take_if="you need the reference: one learner, which averages with nobody",
    rounds="0",
    source="all papers",
    sent="0",
)
@algorithm
def sgd() -> Algorithm:
    """Sequential mini-batch SGD, P = 1."""
    return Algorithm(Never(), Mean(), NoExchange())


@about(take_if="rounds are cheap, or you need the baseline", rounds="T", source="all papers")
@algorithm
def sync() -> Algorithm:
    """Synchronous SGD (FULLSGD): the mean gradient at every update."""
    return Algorithm(Never(), Mean(), MeanGradient())


class MeanGradient(Exchange):
    """g_j ← (1/P) Σ g_j, up to update t = `until`."""

    scope = Scope.WORLD

    def __init__(self, until: float = math.inf) -> None:
        self.until = until

    def exchange_(self, g: Array, t: int, transport: Transport) -> None:
        transport.mean_(g, Scope.WORLD)
