"""The mean of short rows on one node: one barrier, then every rank sums all rows for itself.

An average of a few thousand floats costs as much as its synchronisation. Lanes need two barriers,
before and after the rows are overwritten. Copies that are used in turn need one.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from mpi4py import MPI
from numpy import add, divide, nan

from localavg.interfaces import Rows


class Slots:
    """Copies of a group's rows, in memory [2, learners of the group, width] of its ranks `here`.

    Averages use the two halves in turn. Every rank copies its rows to this turn's half; after the
    barrier every rank sums all copies, in the order of the learners. Every average has a barrier,
    so no rank is two averages ahead of another: no rank still reads a half when it is overwritten.
    mine: this rank's rows of the group. spread(rows, mean): Σ ‖w̄ − w_j‖².
    """

    def __init__(
        self,
        here: MPI.Comm,
        memory: np.ndarray,
        mine: slice,
        spread: Callable[[Rows, np.ndarray], float],
    ) -> None:
        self.here, self.memory, self.mine, self.spread = here, memory, mine, spread
        self.turn = 0

    def way(self, w: np.ndarray) -> Callable[..., float]:
        """Return the function that sets this rank's rows w [l, n] to the group's mean.

        The function is collective over the group. It returns Σ ‖w̄ − w_j‖² over this rank's rows if
        `variance`, else NaN. All objects that it uses lie together, because between averages every
        object leaves the cache, and fetching a dozen of them costs more than the sum.
        """
        spread = self.spread
        n, P, several = w.shape[1], self.memory.shape[1], len(w) > 1
        turns = [
            (
                half[self.mine, :n],
                w,
                self.here.Barrier,
                *half[:2, :n],
                w[0],
                half[2:, :n],
                w[1:],
                w.dtype.type(P),
            )
            for half in self.memory
        ]

        def mean_(variance: bool = False) -> float:
            self.turn = turn = 1 - self.turn
            copies, rows, barrier, first, second, mean, rest, others, P = turns[turn]
            copies[...] = rows
            barrier()
            add(first, second, mean)  # in the order of the learners
            if P > 2:
                for row in rest:
                    add(mean, row, mean)
            divide(mean, P, mean)
            if several:
                others[...] = mean
            return spread(copies, mean) if variance else nan

        return mean_
