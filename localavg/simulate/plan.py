"""The time that a run would take on a modelled machine."""

from __future__ import annotations

from collections.abc import Sequence

from localavg.algorithms.base import Schedule
from localavg.simulate.clock import Synchronous, averages
from localavg.simulate.timing import Timing


def modelled_s(
    timing: Timing,
    P: int,
    schedule: Schedule,
    T: int,
    seed: int,
    nbytes: float,
    clusters: Sequence[int] = (),
) -> float:
    """Return the wall clock of T updates of P learners that average by `schedule`.

    nbytes: of the weights of one learner. clusters: learners in a cluster of each level, innermost
    first.
    """
    clock = Synchronous(timing, P, seed, averages(timing, P, nbytes, clusters))
    for t in range(1, T + 1):
        if scope := schedule.final if t == T else schedule.after(t):
            clock.advance(t)
            clock.average(scope)
    clock.advance(T)
    return clock.wall_s
