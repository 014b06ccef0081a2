"""Sequential SGD and synchronous SGD (FULLSGD): the baselines of all papers."""

from __future__ import annotations

from typing import Any

from localavg.algorithms.base import Algorithm, Mean, Never, Nothing
from localavg.scope import Scope

Array = Any


def sgd() -> Algorithm:
    """Sequential mini-batch SGD, P = 1."""
    return Algorithm(Never(), Mean(), Nothing())


def sync() -> Algorithm:
    """Synchronous SGD (FULLSGD): the mean gradient at every step."""
    return Algorithm(Never(), Mean(), MeanGradient())


class MeanGradient(Nothing):
    """g_j ← (1/P) Σ g_j: synchronous SGD (FULLSGD), one learner of batch P·B in effect."""

    scope = Scope.WORLD

    def exchange_(self, g: Array, t: int, transport: Any) -> None:
        transport.mean_(g, Scope.WORLD)
