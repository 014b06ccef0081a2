"""What every algorithm consists of: a schedule (when), an average (what it does) and an exchange
(what travels every step).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from localavg.errors import bad
from localavg.scope import Scope

Array = Any


@dataclass(frozen=True)
class Algorithm:
    """One row of the table, ready to run. S: learners in a cluster, where there are clusters."""

    schedule: Schedule
    combine: Mean
    exchange: Nothing
    S: int | None = None


class Schedule:
    """What all schedules share: they end in a global average and need no feedback."""

    final = Scope.WORLD
    needs: str | None = None
    remembers: tuple[str, ...] = ()  # the attributes that are state
    steered_after = 0  # t up to which feedback changes nothing

    def after(self, t: int) -> Scope:
        """Who averages after local update t, t = 1, 2, …"""
        raise TypeError(f"{type(self).__name__} must say when to average")

    def observe(self, t: int, value: float, gamma: float) -> None:
        """Feedback after the average at t: S or F(w̄) as `needs` says, and the step size γ of
        update t.
        """

    def state_dict(self) -> dict[str, float]:
        """What a feedback controller has learnt so far; empty for the static schedules."""
        return {name: getattr(self, name) for name in self.remembers}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Go on from `state`."""
        for name in self.remembers:
            setattr(self, name, state[name])


class Never(Schedule):
    """No weight averages at all (sequential SGD; algorithms that exchange gradients every step)."""

    final = Scope.NONE

    def after(self, t: int) -> Scope:
        return Scope.NONE


class Mean:
    """w_j ← w̄ (kavg Alg. 1; hieravg Alg. 1 at both levels)."""

    trained: int | None = None

    def start(self, w: Array, trained: int) -> None:
        """Called once with the equal initial weights w [L, d], of which the first `trained` columns
        are parameters.
        """
        self.trained = trained

    def state_dict(self) -> dict[str, Array]:
        """What an average remembers: nothing here."""
        return {}

    def load_state_dict(self, state: dict[str, Array]) -> None:
        """Go on from `state`."""

    def average_(self, w: Array, scope: Scope, transport: Any, variance: bool = False) -> float:
        """Average w [L, d] over `scope` in place; returns S of the parameters if asked for, else
        NaN.
        """
        if not variance or self.trained in (None, w.shape[1]):
            return transport.mean_(w, scope, variance)
        S = transport.mean_(w[:, : self.trained], scope, variance)
        transport.mean_(w[:, self.trained :], scope)
        return S


class Nothing:
    """Learners keep their gradients to themselves (every algorithm that averages weights)."""

    scope = Scope.NONE
    gathers = False  # whether rows travel as they are, not as a sum

    def start(self, learners: Sequence[int], seed: int) -> None:
        """Called once: the learners of this rank's rows, and the run's seed."""

    def exchange_(self, g: Array, t: int, transport: Any) -> None:
        """Exchange the gradients g [L, d] of update t in place."""

    def payload_bytes(self, d: int, L: int) -> int:
        """What a rank of L learners hands over in one exchange of gradients of d floats: here their
        sum.
        """
        return 4 * d


def _at_least_one(name: str, value: int) -> None:
    if value < 1:
        raise bad(name.replace("_", "-"), value, "a period must be at least 1")
