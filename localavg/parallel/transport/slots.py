"""The mean of short rows on one node: one barrier, and every rank adds everyone's rows up for
itself.

For rows of a few thousand floats an average costs what its synchronisation costs. Lanes need two
barriers, before and after the rows are overwritten; copies that are used in turn need one.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from mpi4py import MPI
from numpy import add, divide, nan

from localavg.parallel.transport.lanes import sum_of_squares


class Slots:
    """Copies of a group's rows in memory [2, learners of the group, width] that its ranks `here`
    share.

    Averages use the two halves in turn: every rank copies its rows to this turn's half, and after
    the barrier all sum all of them, in the order of the learners. Nobody can be two averages ahead
    of another, since every average has a barrier; so nobody still reads a half when it is written
    again. mine: my rows of the group.
    """

    def __init__(self, here: MPI.Comm, memory: np.ndarray, mine: slice) -> None:
        self.here, self.memory, self.mine = here, memory, mine
        self.turn = 0

    def way(self, w: np.ndarray) -> Callable[..., float]:
        """The function that turns my rows w [l, n] of the group into its mean; collective over the
        group.

        It returns Σ ‖w̄ − w_j‖² over my rows if asked for, else NaN. All that it needs lies
        together: between other work every object is cold, and a dozen of them cost more than the
        sum.
        """
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
            return sum_of_squares(copies, mean) if variance else nan

        return mean_
