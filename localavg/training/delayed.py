"""Averages that begin with a copy of the weights and are merged some updates later.

The rules are in `algorithms/delay.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from localavg.algorithms.base import Due
from localavg.interfaces import Array, Settings, Transport
from localavg.parallel.device import put_
from localavg.scope import Scope
from localavg.training.averaging import Averaging
from localavg.training.flights import Flights
from localavg.training.wiring import wired


class Delayed(Averaging):
    """The averages of an algorithm with a delay.

    background: a transport that nobody else uses. T: the updates of the run, if they are known; a
    mean that would not arrive before T does not begin. begun(t, scope): called after the copies
    were made, as `before` was before. Others: as of Averaging.
    """

    def __init__(
        self,
        *pieces: Any,
        background: Transport,
        T: float = math.inf,
        begun: Callable[[int, Scope], None],
        **how: Any,
    ) -> None:
        super().__init__(*pieces, **how)
        delay = self.algorithm.delay
        assert delay is not None, "this algorithm has no delay"
        self.delay, self.T = delay, T
        self.begun = self.pace.timed_after(begun) if self.pace else begun
        self.flights = Flights(self.average, self.w, background, delay.keeps_copies)
        self.wired = wired(background)
        if self.wired is not None:
            self.wired.watch(self.flights.z, self.average.pieces)
        self.held: Due | None = None  # an average that begins in `depart_`
        self.waiting = Scope.NONE  # an average that fell due while a mean was on its way
        self.anchored = delay.anchored  # the next copies are pulled to the weights that z holds

    def begin(self, t: int, gamma: float) -> None:
        super().begin(t, gamma)
        if t == self.schedule.begins and self.anchored:
            self.flights.z[...] = self.w

    def average_(self, t: int, gamma: float, last: bool = False) -> Scope:
        """Merge the mean that is due after update t, and begin the next one. Return whose arrived.

        A mean takes the place of the one that it is merged into: an average that falls due before
        begins right after the merge. After the last update everyone averages without a delay.
        """
        arrived = Scope.NONE
        flight = self.flights.now
        if flight is not None and t == flight.t + self.delay.tau:
            arrived = self._merge_(t)
        if last:
            self._drop_(t)
            return super().average_(t, gamma, last=True) or arrived
        scope = max(self.schedule.after(t), self.waiting)  # the wider one covers the other
        if scope and self.flights.now is not None:
            self.waiting = scope
        elif scope:
            self.waiting = Scope.NONE
            self.held = Due(scope, t, gamma, self.variance)
            if not self.holds:
                self.depart_()
        elif t == self.schedule.begins:
            self.begin(t, gamma)
        return arrived

    def depart_(self) -> None:
        """Copy the weights, and let their mean begin, if one is held back."""
        due, self.held = self.held, None
        if due is None or due.t + self.delay.tau > self.T:
            return
        self.before(due.t, due.scope)
        if self.anchored:
            self.delay.pull_(self.w, self.flights.z)
            self.anchored = False
        self.flights.begin(self.w, due)
        self.begun(due.t, due.scope)

    def _merge_(self, t: int) -> Scope:
        """Merge the mean that has arrived into the weights after update t."""
        before = self.flights.now
        assert before is not None
        self.before(t, before.scope)
        flight, (S, seconds) = self.flights.end()
        self.laps.met()
        learners = self.flights.transport.sizes[flight.scope]
        columns, own = self.flights.columns(flight.t), self.flights.own
        copies = None if own is None else own[:, columns]
        self.delay.merge_(self.w[:, columns], self.flights.z[:, columns], copies, learners)
        self._average_state_(flight.scope, t)
        self.laps.computed()
        self.after(t, flight.scope, S, flight.t, seconds)
        self._steer(t, S, flight.gamma)
        if flight.scope is Scope.WORLD:
            self._ends_round(flight.t, t)
        return flight.scope

    def _mean_(self, due: Due) -> float:
        """Average the weights at once; with a wire those copies that it watches."""
        if self.wired is None:
            return super()._mean_(due)
        z = self.flights.z
        z[...] = self.w
        S = self.average.average_(z, due, self.wired)
        self.w[...] = z
        return S

    def _drop_(self, t: int) -> None:
        """Forget the mean that is on its way at the end of a run whose length was not known.

        An outer optimiser has stepped with it already, or a wire has kept what it lost: it is
        merged.
        """
        if self.flights.now is None:
            return
        if self.average.kept or self.wired is not None:
            self._merge_(t)
        else:
            flight, _ = self.flights.end()
            self.average.drop(flight.t)

    def abandon(self) -> None:
        self.flights.abandon()

    def note(self) -> Settings:
        assert self.flights.now is None, "no mean is on its way"
        return {**super().note(), "about": self._about()}

    def _about(self) -> Array:
        held = self.held or Due(Scope.NONE)
        return np.array([self.waiting, self.anchored, held.scope, held.t, held.gamma], np.float64)

    def state_dict(self) -> Settings:
        """Return what a resumed run needs: the mean on its way, and what waits for it."""
        on_its_way = self.flights.state_dict()  # waits until the average has done its work
        anchor = {"z": self.flights.z} if self.anchored else {}
        return {**super().state_dict(), **anchor, **on_its_way, "about": self._about()}

    def load_state_dict(self, state: Settings) -> None:
        """Resume from `state`."""
        super().load_state_dict(state)
        # earlier versions held nothing back
        waiting, anchored, *held = np.asarray(state["about"]).tolist()
        self.waiting, self.anchored = Scope(int(waiting)), bool(anchored)
        scope, t, gamma = held or (0, 0, 0)
        self.held = Due(Scope(int(scope)), int(t), gamma, self.variance) if scope else None
        if self.anchored:
            put_(self.flights.z, state["z"])
        self.flights.load_state_dict(state)
