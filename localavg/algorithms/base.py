"""The three parts of a synchronous algorithm.

A schedule says when learners average, an average says what happens to their weights, and an
exchange says what travels at every update.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from localavg.algorithms.delay import Delay
from localavg.algorithms.participants import Participants
from localavg.algorithms.wire import Wire
from localavg.errors import UserError, bad, whole
from localavg.interfaces import Array, Code, Settings, Step, Transport
from localavg.scope import Scope

Gradients = Callable[..., Any]
"""(w [L, d], t, out=[L, d]) → the losses: `interfaces.Engine.gradients_`"""


@dataclass(frozen=True)
class Algorithm:
    """One row of the table, ready to run.

    clusters: learners in a cluster of each level, innermost first; none without clusters. P: the
    only number of learners it is for, None for any. participants: who works in a round. delay: how
    averages are delayed, None if they are not. wire: how they cross nodes, None for float32. name,
    options: the function that made it and the arguments of the function, which
    `parameters.algorithm` notes; "" and {} without it.
    """

    schedule: Schedule
    average: Average
    exchange: Exchange
    clusters: tuple[int, ...] = ()
    P: int | None = None
    participants: Participants = field(default_factory=Participants)
    delay: Delay | None = None
    wire: Wire | None = None
    name: str = ""
    options: Settings = field(default_factory=dict)

    @property
    def apart(self) -> bool:
        """Whether learners may differ at the end of an update in which everyone averaged."""
        return self.delay is not None or self.average.apart

    @property
    def scopes(self) -> tuple[Scope, ...]:
        """Over which learners weights are averaged: clusters of each level, and everyone."""
        return (*(Scope(level) for level, _ in enumerate(self.clusters, 1)), Scope.WORLD)

    def check_learners(self, P: int) -> None:
        """Raise UserError unless P learners can form the clusters."""
        if self.P not in (None, P):
            raise UserError(
                f"the last of `levels` has {self.P} learners, and the run has {P}; it must be "
                f"everyone: write {P} there, or the letter P, which stands for any number"
            )
        levels = self.options.get("levels")
        for S in self.clusters:
            asked = f"clusters of {S} (`levels`)" if levels else f"`S = {S}`"
            if P % S:
                raise UserError(f"{asked} with {P} learners: a cluster's size must divide P")
            if levels and S == P:
                raise UserError(
                    f"{asked} with {P} learners are everyone, which the last level is alone; leave "
                    "the levels above it out, or use more learners"
                )

    def __str__(self) -> str:
        named = ((name, value) for name, value in self.options.items() if value is not None)
        given = ", ".join(f"{name}={value!r}" for name, value in named)
        return f"{self.name or type(self.schedule).__name__}({given})"


class Costs(NamedTuple):
    """What a schedule that chooses K learns of a round, the updates from an average to the next.

    updates: how many. average_s, update_s: seconds of an average without waiting, and of an update.
    first, last: the mean loss of all learners in the first update, and in the last one. NaN is not
    known.
    """

    updates: int
    average_s: float = math.nan
    update_s: float = math.nan
    first: float = math.nan
    last: float = math.nan


class Schedule(ABC):
    """When learners average.

    Most schedules need no feedback. Every run ends with an average of everyone.
    """

    final = Scope.WORLD  # who averages after update T
    begins = 0  # the update t after which the schedule begins; learners are equal there
    needs: str | None = None  # the feedback that steers it: variance, objective, losses or pace
    remembers: tuple[str, ...] = ()  # the attributes that a checkpoint saves

    @property
    def shortest(self) -> int | None:
        """The shortest period, None if it is not known beforehand."""
        return None

    @property
    def fixed(self) -> int | None:
        """The period of averages of everyone, None if it is not always the same."""
        return None

    @property
    def steered_after(self) -> int:
        """The update t up to which feedback never changes the period."""
        return 0

    @property
    def unsteered(self) -> str:
        """Why feedback could not do what it is for; "" if it could, or if there is none."""
        return ""

    @property
    def spread(self) -> bool:
        """Whether it needs S of every average."""
        return self.needs == "variance"

    @property
    def hears(self) -> bool:
        """Whether it needs the losses of all updates."""
        return self.needs in ("losses", "pace")

    @property
    def decision(self) -> Mapping[str, float | str]:
        """What it chose at the last average, and why: a row of /periods but for t."""
        return {}

    @abstractmethod
    def after(self, t: int) -> Scope:
        """Return who averages after local update t, t = 1, 2, …"""

    @property
    def chooses(self) -> bool:
        """Whether a schedule that needs pace chooses at this average; else it waits for more."""
        return True

    def delayed(self, tau: int) -> None:  # noqa: B027
        """Take notice that a mean begins no earlier than τ updates after the last one."""

    def observe(  # noqa: B027
        self,
        t: int,
        value: float,
        gamma: float,
        wall_s: float = math.nan,
        costs: Sequence[Costs] = (),
    ) -> None:
        """Take the feedback after the average at t, and F(w̄) or the time where it begins.

        value: S, F(w̄), or the mean loss of all learners in the updates since the last average, as
        `needs` says; NaN for pace. gamma: the step size γ of update t. wall_s: the seconds of the
        run so far, for schedules that need losses. costs: for pace, the rounds since the last call.
        All are the same on all ranks.
        """

    def state_dict(self) -> dict[str, Any]:
        """Return the state of a steered schedule; empty for the other schedules."""
        return {name: getattr(self, name) for name in self.remembers}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume from `state`."""
        for name in self.remembers:
            setattr(self, name, state[name])


class Never(Schedule):
    """No average of weights: sequential SGD, and algorithms that exchange gradients instead."""

    final = Scope.NONE

    def after(self, t: int) -> Scope:
        return Scope.NONE


@dataclass(frozen=True)
class Due:
    """An average that is due.

    scope: over whom. t: the update after which it comes. gamma: the step size γ of update t.
    variance: whether S is wanted. last: whether the run ends with it.
    """

    scope: Scope
    t: int = 0
    gamma: float = math.nan
    variance: bool = False
    last: bool = False


class Average(ABC):
    """What an average does to the weights of the learners that meet.

    kept: how many rows of parameters it keeps for all learners together. before_update: whether it
    comes between the gradients and the update; the last one, at T, comes after the update. apart:
    whether learners may differ at the end of an update in which everyone averaged. neighbours:
    whether averages are of neighbours alone, the last one excepted.
    """

    kept = 0
    apart = neighbours = False
    needs_gamma = False  # whether it uses the step size
    before_update = False
    not_attached = ""  # why it cannot work in a loop of the user's, "" if it can
    pieces: Sequence[slice] = (slice(None),)
    """columns of a row that average at once: the first one is all of them"""

    def lay_out(self, learners: range, P: int, seed: int) -> None:  # noqa: B027
        """Take this rank's learners, their number in all and the run's seed; called once.

        Raises UserError on all ranks if the average is none of P learners.
        """

    def start(self, w: Array, trained: int, transport: Transport) -> None:  # noqa: B027
        """Take the equal initial weights w [L, d]; called once. Collective.

        The first `trained` columns are parameters, the others are statistics. transport: gives the
        memory for what is kept.
        """

    def begin(self, w: Array) -> None:  # noqa: B027
        """Take the equal weights w [L, d] as the last average, where the schedule begins."""

    def gradients_at(self, gradients_: Gradients) -> Gradients:
        """Return the function that computes the gradients where this average wants them."""
        return gradients_

    def cut(self, n: int) -> None:  # noqa: B027
        """Cut rows of n columns into the pieces. Raises UserError if they are too few."""

    def piece(self, t: float) -> int:
        """Return the number of the piece that averages, or that begins to, after update t."""
        return 0

    def averaged(self, t: float) -> tuple[int, ...]:
        """Return the numbers of the pieces that the last average after update t was of."""
        return (self.piece(t),)

    def drop(self, t: int) -> None:  # noqa: B027
        """Forget that a piece averaged after update t: what came of it is not used."""

    @abstractmethod
    def average_(self, w: Array, due: Due, transport: Transport) -> float:
        """Average w [L, d] in place, or the piece whose turn it is; at the end of a run all of it.

        Return S of the parameters if it is wanted, else NaN.
        """

    def average_state_(self, s: Array, scope: Scope, transport: Transport, t: int = 0) -> None:
        """Average s [L, n], state of the local optimiser, after the weights of update t."""
        transport.mean_(s, scope)

    def matrix(self, t: int) -> Array:
        """Return W [P, P] of Scope.NEIGHBOURS after update t: w_j ← Σ_i W_ji w_i."""
        raise TypeError(f"{type(self).__name__} averages no neighbours")

    def state_dict(self) -> dict[str, Array]:
        """Return what the average keeps from one call to the next.

        A matrix has a row a learner; all other values are the same on all ranks.
        """
        return {}

    def load_state_dict(self, state: dict[str, Array]) -> None:  # noqa: B027
        """Resume from `state`."""


class Mean(Average):
    """The plain mean, w_j ← w̄ (kavg Alg. 1; hieravg Alg. 1 at both levels)."""

    trained: int | None = None

    def start(self, w: Array, trained: int, transport: Transport) -> None:
        self.trained = trained

    def average_(self, w: Array, due: Due, transport: Transport) -> float:
        step = self.step_of(due.scope, due.gamma)
        # S and the step are of the parameters alone
        if (not due.variance and step is None) or self.trained in (None, w.shape[1]):
            return transport.mean_(w, due.scope, due.variance, step)
        S = transport.mean_(w[:, : self.trained], due.scope, due.variance, step)
        transport.mean_(w[:, self.trained :], due.scope)
        return S

    def step_of(self, scope: Scope, gamma: float) -> Step | None:
        """Return what is done with the mean over `scope` before the rows get it, None for nothing.

        gamma: the step size of the last update.
        """
        return None


class Exchange(ABC):
    """What learners exchange at every update, before the update is made."""

    scope = Scope.NONE  # which learners exchange
    until = math.inf  # the last update at which they do
    code: Code | None = None  # in which gradients travel; None: float32

    def start(self, learners: Sequence[int], seed: int) -> None:  # noqa: B027
        """Take the numbers of this rank's learners and the run's seed; called once."""

    def at(self, t: float) -> Scope:
        """Return which learners exchange at update t."""
        return self.scope if t <= self.until else Scope.NONE

    @abstractmethod
    def exchange_(self, g: Array, t: int, transport: Transport) -> None:
        """Exchange the gradients g [L, d] of update t in place."""


class NoExchange(Exchange):
    """Learners keep their gradients to themselves (every algorithm that averages weights)."""

    def exchange_(self, g: Array, t: int, transport: Transport) -> None:
        return


def check_period(name: str, value: int) -> None:
    """Raise UserError unless a period is a whole number of at least 1."""
    whole(name, value)
    if value < 1:
        raise bad(name, value, "a period must be at least 1")
