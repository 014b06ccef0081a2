"""Means that travel in the background while the learners go on, one at a time.

A mean is that of copies of the weights, on a transport with communicators of its own, in a thread:
MPI libraries send nothing while nobody calls them, and the thread is always in a call. On a GPU the
thread's work is queued in a stream of its own, behind the copies. A mean has arrived when that work
is done, so the learners' stream need not wait.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager
from dataclasses import dataclass
from time import perf_counter
from typing import NamedTuple

import numpy as np

from localavg.algorithms.base import Average, Due
from localavg.interfaces import Array, Transport
from localavg.parallel.device import put_
from localavg.scope import Scope


class Arrived(NamedTuple):
    """What a mean in the background brought."""

    S: float
    """the variance of the copies, NaN if nobody asked"""
    seconds: float
    """how long it was on its way on this rank"""


@dataclass
class Flight:
    """A mean on its way. t: the update of its copies. gamma: the step size of that update."""

    t: int
    scope: Scope
    gamma: float
    result: Future[Arrived] | Arrived

    def arrived(self) -> Arrived:
        """Wait for the mean."""
        return self.result if isinstance(self.result, Arrived) else self.result.result()


class Flights:
    """The means in the background of some rows w [L, n], and the copies that they are of.

    average: what is done with the copies, as with the weights of a plain average. transport: one
    that nobody else uses. own: whether to keep a second copy, which the mean leaves as it is.

    z [L, n]: the copies, and what arrived when the mean is there. own [L, n]: the second copy. now:
    the mean that is on its way, None between two.
    """

    def __init__(self, average: Average, w: Array, transport: Transport, own: bool) -> None:
        self.average, self.transport = average, transport
        self.z = transport.zeros(w.shape)
        self.own = transport.ordinary(w.shape) if own else None
        self.now: Flight | None = None
        self._thread = ThreadPoolExecutor(1, "localavg-average")

    def begin(self, w: Array, due: Due) -> None:
        """Copy the weights w [L, n], and let the mean of the copies begin.

        Where pieces average in turn, all this is of the piece whose turn it is.
        """
        columns = self.columns(due.t)
        self.z[:, columns] = w[:, columns]
        if self.own is not None:
            self.own[:, columns] = w[:, columns]
        work = self._thread.submit(self._travel, due, self.transport.aside())
        self.now = Flight(due.t, due.scope, due.gamma, work)

    def end(self) -> tuple[Flight, Arrived]:
        """Wait for the mean, and return what it was of and what it brought."""
        assert self.now is not None, "a mean is on its way"
        flight, self.now = self.now, None
        return flight, flight.arrived()

    def abandon(self) -> None:
        """Wait until the thread is done with a mean that failed, and forget it."""
        if self.now is not None and isinstance(self.now.result, Future):
            wait([self.now.result])
        self.now = None

    def columns(self, t: int) -> slice:
        """Return the columns that average after update t."""
        return self.average.pieces[self.average.piece(t)]

    def _travel(self, due: Due, aside: AbstractContextManager[None]) -> Arrived:
        start = perf_counter()
        with aside:  # after the copies
            S = self.average.average_(self.z, due, self.transport)
            self.transport.settle()
        return Arrived(S, perf_counter() - start)

    def state_dict(self) -> dict[str, Array]:
        """Return the mean on its way, once it has arrived; nothing between two means."""
        if self.now is None:
            return {}
        arrived = self.now.arrived()
        numbers = [self.now.t, int(self.now.scope), self.now.gamma, *arrived]
        copies = {} if self.own is None else {"own": self.own}
        return {"flight": np.array(numbers, np.float64), "z": self.z, **copies}

    def load_state_dict(self, state: Mapping[str, Array]) -> None:
        """Resume from `state`."""
        if "flight" not in state:
            return
        t, scope, gamma, S, seconds = np.asarray(state["flight"]).tolist()
        self.now = Flight(int(t), Scope(int(scope)), gamma, Arrived(S, seconds))
        put_(self.z, state["z"])
        if self.own is not None:
            put_(self.own, state["own"])
