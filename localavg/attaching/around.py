"""What comes before and after an average of the weights in a user's own loop."""

from __future__ import annotations

import math
from collections.abc import Callable

from localavg.algorithms.base import Algorithm
from localavg.attaching.log import Log
from localavg.attaching.meetings import Meetings
from localavg.interfaces import Array, Laps
from localavg.parallel.places import What
from localavg.scope import Scope


class Around:
    """Lets the ranks agree before an average, and moves the weights into the row and back.

    objective: returns F of this rank at the present weights, None if nobody asks for it. variance:
    S of the last average. began: the update after which it began.
    """

    def __init__(
        self, meetings: Meetings, log: Log | None, laps: Laps, objective: Callable[[], float] | None
    ) -> None:
        self.meetings, self.log, self.laps = meetings, log, laps
        self.fleet, self.flat, self._objective = meetings.fleet, meetings.flat, objective
        self.variance, self.began = math.nan, 0

    def before(self, t: int, scope: Scope) -> None:
        """Do what comes before an average over `scope` after update t."""
        if self.log is not None:
            self.log.begin_average(t, scope)
        self.meetings.meet(What.AVERAGE, scope)
        self.flat.load_()
        if scope in (Scope.WORLD, Scope.NEIGHBOURS):
            self.meetings.warn_equal(t)

    def begun(self, t: int, scope: Scope) -> None:
        """Do what comes after the copies of a delayed average."""
        self.flat.store_()
        self.meetings.leave()
        if self.log is not None:
            self.log.average_begun(t, scope)

    def after(
        self, t: int, scope: Scope, S: float, begun: int | None = None, travelled_s: float = 0.0
    ) -> None:
        """Do what comes after an average."""
        self.flat.store_()
        self.meetings.leave()
        self.variance, self.began = S, t if begun is None else begun
        if self.log is not None:
            self.log.averaged(t, scope, S, begun, travelled_s)

    def objective(self, t: int, w: Array) -> float:
        """Return F at the average, which every learner's model holds now."""
        assert self._objective is not None, "attach refuses such an algorithm without an objective"
        F = float(self._objective())
        self.laps.computed()
        total = sum(self.fleet.world.allgather(F))
        self.laps.met()
        return total / self.fleet.P


def unfinished(algorithm: Algorithm, scope: Scope, t: int) -> bool:
    """Return whether something may not have averaged, or arrived, when a loop ends after update t.

    scope: who averaged after update t. What a wire has lost comes too, but an outer optimiser must
    not make its step twice.
    """
    averaged = scope is algorithm.schedule.final
    lost = algorithm.wire is not None and not (averaged and algorithm.average.kept)
    late = algorithm.delay is not None or lost or len(algorithm.average.pieces) > 1
    return not algorithm.exchange.at(t) and (late or not averaged)
