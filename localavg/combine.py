"""What an average does to the weights: the plain mean, or block momentum at the global level.

`transport.mean_(w, scope, variance)` turns rows into their group's mean in place and returns the variance S.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from localavg import kernels
from localavg.config import bad
from localavg.device import put_
from localavg.schedules import Scope

Array = Any


class Mean:
    """w_j ← w̄ (kavg Alg. 1; hieravg Alg. 1 at both levels)."""

    trained: int | None = None

    def start(self, w: Array, trained: int) -> None:
        """Called once with the equal initial weights w [L, d], of which the first `trained` columns are parameters."""
        self.trained = trained

    def state_dict(self) -> dict[str, Array]:
        """What an average remembers: nothing here."""
        return {}

    def load_state_dict(self, state: dict[str, Array]) -> None:
        """Go on from `state`."""

    def average_(self, w: Array, scope: Scope, transport: Any, variance: bool = False) -> float:
        """Average w [L, d] over `scope` in place; returns S of the parameters if asked for, else NaN."""
        if not variance or self.trained in (None, w.shape[1]):
            return transport.mean_(w, scope, variance)
        S = transport.mean_(w[:, : self.trained], scope, variance)
        transport.mean_(w[:, self.trained :], scope)
        return S


@dataclass
class BlockMomentum(Mean):
    """M-AVG (mavg Alg. 1): the step of the global average carries momentum μ. Cluster averages stay plain means.

    Heavy ball as in the paper, or Nesterov's form, where the step is μv + d with the v just made. Statistics that are
    averaged but not trained take the plain mean. v is not rescaled when γ changes.
    """

    mu: float
    nesterov: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.mu < 1:
            raise bad("mu", self.mu, "block momentum must lie in [0, 1)")

    def start(self, w: Array, trained: int) -> None:
        super().start(w, trained)
        self.w_tilde = w[0, :trained].copy()  # [n] w̃_1
        self.v = w[0, :trained] * 0  # [n] v ← 0

    def state_dict(self) -> dict[str, Array]:
        return {"w_tilde": self.w_tilde, "v": self.v}

    def load_state_dict(self, state: dict[str, Array]) -> None:
        put_(self.w_tilde, state["w_tilde"])
        put_(self.v, state["v"])

    def average_(self, w: Array, scope: Scope, transport: Any, variance: bool = False) -> float:
        S = super().average_(w, scope, transport, variance)
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
        w[:, : len(v)] = w_tilde
        return S
