"""The losses of the updates since the last average, for a schedule that they steer.

A GPU's losses stay on the GPU until the average, so no update waits for them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from localavg.interfaces import Array, Laps
from localavg.parallel.device import numbers
from localavg.parallel.fleet import Fleet


class Round(NamedTuple):
    """Mean losses of all learners between two averages, NaN without an update; and the time.

    mean: over all updates. first, last: in the first update and in the last one. wall_s: the
    seconds of the run so far.
    """

    mean: float
    first: float
    last: float
    wall_s: float


class Losses:
    """The mean loss of all learners between two averages, and the time of the run.

    now_s: returns the seconds of the run so far; those of rank 0 count. laps: the clock.
    """

    def __init__(self, fleet: Fleet, now_s: Callable[[], float], laps: Laps) -> None:
        self.fleet, self.now_s, self.laps = fleet, now_s, laps
        self.found: list[float | Array] = []

    def add(self, losses: Sequence[float | Array]) -> None:
        """Add the losses of an update, of this rank's learners in their order."""
        self.found += losses

    def take(self) -> Round:
        """Return the losses since the last call: the same bits on all ranks, on any layout.

        Collective.
        """
        rows = self._rows()  # [L, updates]
        updates, P = rows.shape[1], self.fleet.P
        mine = [(sum(row), row[0], row[-1]) for row in rows.tolist()] if updates else []
        self.found.clear()
        self.laps.computed()
        found = self.fleet.world.allgather((mine, self.now_s()))
        self.laps.met()
        sums = [sum(of) for of in zip(*(each for rank, _ in found for each in rank), strict=True)]
        mean, first, last = (s / P for s in sums) if updates else [math.nan] * 3
        return Round(mean / max(1, updates), first, last, found[0][1])

    def state_dict(self) -> dict[str, Array]:
        """Return the losses since the last average, a row [updates] a learner."""
        return {"losses": self._rows()}

    def load_state_dict(self, state: Mapping[str, Array]) -> None:
        """Resume from `state`."""
        if state:  # checkpoints of earlier versions have none
            self.found[:] = state["losses"].T.ravel().tolist()

    def _rows(self) -> Array:
        """Return the losses [L, updates]."""
        return numbers(self.found).reshape(-1, self.fleet.L).T
