"""What happens between local updates: gradients are exchanged and weights are averaged.

The training loop and `attach` share this file.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

from localavg.algorithms.base import Algorithm, Due, Gradients
from localavg.interfaces import UNTIMED, Array, Laps, Settings, Transport
from localavg.learner.flat import Flat
from localavg.scope import Scope
from localavg.training.losses import Losses
from localavg.training.pace import Pace
from localavg.training.wiring import wired


class State(Protocol):
    """The optimiser's state, as an average sees it."""

    @property
    def averaged(self) -> int:
        """The number of matrices [L, n] that are averaged with the weights."""

    def at_average_(self, average_: Callable[[Array], None]) -> None:
        """Keep, average or reset the state when the weights average; average_ does it to rows."""


class Averaging:
    """The exchanges and averages of an algorithm, on this rank's rows flat.w [L, d].

    All rows of all ranks must be equal at the start. state: the state of the local optimiser.
    statistics: whether an average includes the columns that are not trained. variance: whether to
    compute S at every average. objective(t, w̄): returns F, for the schedules that need it. losses:
    those of the updates, for the schedules that need them. pace: the times, for those that need it.
    before(t, scope): called before every exchange or average. after(t, scope, S): called right
    after it; after one that was delayed with the update after which it began, and the seconds that
    it was on its way.
    laps: the clock of all other work in which computing and communication take turns.
    holds: whether averages that are delayed begin in `depart_` alone.
    """

    holds = False

    def __init__(
        self,
        algorithm: Algorithm,
        transport: Transport,
        flat: Flat,
        state: State,
        *,
        statistics: bool = True,
        variance: bool = False,
        objective: Callable[[int, Array], float],
        losses: Losses | None = None,
        pace: Pace | None = None,
        before: Callable[[int, Scope], None],
        after: Callable[..., None],
        laps: Laps = UNTIMED,
    ) -> None:
        self.algorithm, self.transport, self.flat, self.state = algorithm, transport, flat, state
        self.objective, self.losses = objective, losses
        self.pace = pace if algorithm.schedule.needs == "pace" else None
        if self.pace is not None:
            before, after = self.pace.timed(before, after)
        self.before, self.after = before, after
        self.laps = transport.laps = laps
        self.schedule, self.exchange = algorithm.schedule, algorithm.exchange
        self.average, self.participants = algorithm.average, algorithm.participants
        self.variance = variance or self.schedule.spread
        n = flat.d_trained
        self.columns = flat.w[:, :n], flat.w[:, n:]  # parameters, statistics
        self.w = flat.w if statistics else self.columns[0]  # what an average covers
        self.equal_after = 0  # the last update after which everyone averaged or exchanged
        self.round_after = 0  # the last update after which a round ended: see `_ends_round`
        self.steered = -1  # the last update after which the schedule got its feedback
        self.average.start(self.w, n, transport)
        transport.weights = self.participants.weights
        self.wired = wired(transport)
        if self.wired is not None:
            self.wired.watch(self.w, self.average.pieces)

    def begin(self, t: int, gamma: float) -> None:
        """Begin the schedule after update t, if it begins there.

        The learners are equal. A schedule that needs the objective gets it, and one that needs
        losses gets the time. gamma: the step size of update t, of update 1 at the start.
        """
        if t == self.schedule.begins:
            self.average.begin(self.w)
            if self.wired is not None:
                self.wired.begin(self.w)
            if self.pace is not None:
                self.pace.begin(t)
                self._heard.ends()  # of updates before it begins: they do not count
            elif self.schedule.needs != "variance":
                self._steer(t, math.nan, gamma)

    def gradients_at(self, gradients_: Gradients) -> Gradients:
        """Return the function that computes the gradients where the algorithm wants them."""
        return self.average.gradients_at(gradients_)

    def exchange_(self, g: Array, t: int, gamma: float = math.nan, last: bool = False) -> None:
        """Do what comes between the gradients g [L, n] of update t and the update.

        Exchange the gradients in place, if the algorithm does that, or average the weights, if its
        average comes first. gamma, last: as in `average_`.
        """
        if scope := self.exchange.at(t):
            self.before(t, scope)
            self.exchange.exchange_(g, t, self.transport)
            self.equal_after = t
            self.after(t, scope, math.nan)
        if self.average.before_update and not last:
            self._average_(self.schedule.after(t), t, gamma)

    def average_(self, t: int, gamma: float, last: bool = False) -> Scope:
        """Average the weights after local update t if the schedule asks for it. Return over whom.

        The schedule decides over whom. Then the weights are averaged, the optimiser's state is
        kept, averaged or reset, the average is recorded, and a schedule that learns from averages
        gets its feedback. gamma: the step size of update t. last: t is T. The scope is then the
        schedule's `final`.
        """
        if self.average.before_update and not last:
            return Scope.NONE
        schedule = self.schedule
        scope = schedule.final if last else schedule.after(t)
        return self._average_(scope, t, gamma, last)

    def _average_(self, scope: Scope, t: int, gamma: float, last: bool = False) -> Scope:
        """Average the weights and the state over `scope`, record it, and return the scope."""
        schedule = self.schedule
        if scope:
            self.before(t, scope)
            if last and self.wired is not None:  # sends all that its codes have lost, in float32
                self.wired.plain, self.wired.plain_at = True, t
            S = self._mean_(Due(scope, t, gamma, self.variance, last))
            if self.wired is not None:
                self.wired.plain = False
            self._average_state_(scope, t)
            self.after(t, scope, S)
            if not (last and t == self.steered):  # else no update since a merge gave the feedback
                self._steer(t, S, gamma)
            if scope is Scope.WORLD:
                self.equal_after = t
                self._ends_round(t, t, last)
            if scope is Scope.WORLD and not last:
                self.participants.next_()
                self.transport.weights = self.participants.weights
        elif t == schedule.begins:
            self.begin(t, gamma)
        return scope

    def _mean_(self, due: Due) -> float:
        """Average the weights at once. Return S if it is wanted, else NaN."""
        return self.average.average_(self.w, due, self.transport)

    def _average_state_(self, scope: Scope, t: int) -> None:
        """Keep, average or reset the optimiser's state as the weights average after update t."""
        average_ = self.average.average_state_
        self.state.at_average_(partial(average_, scope=scope, transport=self.transport, t=t))

    def learn(self, losses: Sequence[float | Array]) -> None:
        """Note the losses of an update, of this rank's learners, for a schedule that needs them."""
        if self.schedule.hears:
            self._heard.add(losses)

    @property
    def _heard(self) -> Losses:
        assert self.losses is not None, "whoever averages by losses gives them"
        return self.losses

    def _steer(self, t: int, S: float, gamma: float) -> None:
        """Give the schedule the feedback that it needs; S is that of the average at t."""
        schedule = self.schedule
        self.steered = t
        if schedule.needs == "losses":
            loss, wall_s = self._heard.take()
            schedule.observe(t, loss, gamma, wall_s)
        elif schedule.needs == "objective":
            schedule.observe(t, self.objective(t, self.mean()), gamma)
        elif schedule.needs == "variance":
            schedule.observe(t, S, gamma)
        elif self.pace is not None:
            self.pace.end(t, self._heard.ends())
            if not schedule.chooses:
                return
            schedule.observe(t, math.nan, gamma, costs=self.pace.take())
            self.pace.note(t, schedule.decision)

    def _ends_round(self, begun: int, t: int, last: bool = False) -> None:
        """Note that a round ends where all weights averaged, or the last piece of them."""
        if last or self.average.piece(begun) in (0, len(self.average.pieces) - 1):
            self.round_after = t

    def at_point(self, t: int, met: bool) -> bool:
        """Return whether the learners can go back to the end of update t when ranks die.

        met: whether all ranks have met after update t. The same on all ranks.
        """
        if not self.algorithm.apart:
            return self.equal_after == t
        if self.average.neighbours or self.exchange.at(t):
            return met
        return self.round_after == t

    def depart_(self) -> None:
        """Let an average begin that was held back to the end of the update; here there is none."""

    def abandon(self) -> None:
        """Wait until nobody works on averages that failed."""

    @property
    def at_work(self) -> list[int] | None:
        """The rows of this rank whose learners work in the present round; None: all."""
        return self.participants.at_work

    def state_dict(self) -> Settings:
        """Return which round it is, what the wire keeps, and what a choice of K will need."""
        kept = {} if self.wired is None else self.wired.state_dict()
        costs = {} if self.pace is None else self.pace.state_dict()
        return {**self.participants.state_dict(), **kept, **costs}

    def note(self) -> Settings:
        """Return what is small of the state, and the same on all ranks, with no mean on its way.

        `load_state_dict` takes it with the weights as z, and with what the wire keeps.
        """
        present = {} if self.pace is None else self.pace.present()
        return {**self.participants.state_dict(), **present}

    def load_state_dict(self, state: Settings) -> None:
        """Resume in the round of `state`."""
        self.participants.load_state_dict(state)
        if self.wired is not None:
            self.wired.load_state_dict(state)
        if self.pace is not None:
            self.pace.load_state_dict(state)
        self.transport.weights = self.participants.weights

    def finish_(self) -> Scope:
        """Set every row to w̄ after the last update, for any algorithm.

        Rows that are equal keep their bits. Return Scope.WORLD if the parameters had to be
        averaged. Collective.
        """
        apart = [not self.transport.equal(columns) for columns in self.columns]
        if self.wired is not None:
            self.wired.plain = True  # a code would leave them apart, or off w̄
        for columns, each_its_own in zip(self.columns, apart, strict=True):
            if each_its_own:
                self.transport.mean_(columns, Scope.WORLD)
                self.laps.met()
        if self.wired is not None:
            self.wired.plain = False
        return Scope.WORLD if apart[0] else Scope.NONE

    def mean(self) -> Array:
        """Return w̄ [d], to be read only; it is the first row if all are equal. Collective."""
        w = self.flat.w
        if self.transport.equal(w):
            return w[0]
        mean = self.transport.mean(w)
        self.laps.met()
        return mean
