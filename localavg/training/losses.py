"""The losses of the updates since the last average, for a schedule that they steer.

A GPU's losses stay on the GPU until the average, so no update waits for them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from localavg.interfaces import Array, Laps
from localavg.parallel.device import numbers
from localavg.parallel.fleet import Fleet


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

    def ends(self) -> Array:
        """Return this rank's losses in the first and in the last update [L, 2], and forget them."""
        rows = self._taken()
        return rows[:, [0, -1]] if rows.size else np.zeros((self.fleet.L, 2))

    def take(self) -> tuple[float, float]:
        """Return the mean over all learners and the updates since the last call, and the seconds.

        The mean is NaN without an update. The same bits on all ranks, on any layout. Collective.
        """
        rows = self._taken()
        mine, updates = [sum(row) for row in rows.tolist()], rows.shape[1]
        self.laps.computed()
        found = self.fleet.world.allgather((mine, self.now_s()))
        self.laps.met()
        sums = [loss for losses, _ in found for loss in losses]  # [P]
        mean = sum(sums) / (updates * self.fleet.P) if updates else math.nan
        return mean, found[0][1]

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

    def _taken(self) -> Array:
        """Return the losses [L, updates], and forget them."""
        rows = self._rows()
        self.found.clear()
        return rows
