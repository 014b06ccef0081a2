"""Means of rows in a GPU's memory: what the three ways over the ranks have in common.

The sum over the rank's own rows and the division are one kernel each; in between the sum travels.
Subclasses say how, in `_sum_over_ranks_`, and wait there for the stream before every MPI call:
nobody else does.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from localavg.parallel import kernels
from localavg.parallel.device import Cuda, on_host
from localavg.parallel.fleet import Fleet, Group
from localavg.parallel.transport.mpi import HostMPI
from localavg.scope import Scope

Array = Any


class OnDevice(HostMPI):
    """Means of rows on `device`, with the methods of HostMPI; on one rank, all there is to it."""

    name = "device"

    def __init__(
        self, fleet: Fleet, device: Cuda, S: int | None = None, why: str = "asked for"
    ) -> None:
        super().__init__(fleet, S, why)
        self.device, self.xp = device, device.xp
        self._memory = device.zeros((0,))  # [≥ n] the sum over a group's rows

    def zeros(self, shape: tuple[int, int]) -> Array:
        return self.device.zeros(shape)

    ordinary = zeros

    def settle(self) -> None:
        self.device.settle()

    def mean_(self, w: Array, scope: Scope, variance: bool = False) -> float:
        self._check(w)
        spread = 0.0
        for group in self.groups[scope]:
            rows = w[group.rows]  # [l, n]
            if variance:
                mean = self._mean(rows, group)
                spread += self._spread(rows, mean)
                rows[...] = mean
                continue
            total = self._total(rows, group, in_place=True)
            kernels.finish_(self.xp, total, group.learners, rows)
        return self.world.allreduce(spread) / self.P if variance else np.nan

    def gather(self, x: Array) -> np.ndarray:
        """The rows of all learners [P, n] in their order, on the host of every rank."""
        return super().gather(on_host(x))

    def _total(self, rows: Array, group: Group, in_place: bool = False) -> Array:
        """The sum [n] over a group's rows; that of a single row here is taken where it lies if
        `in_place`.
        """
        n = rows.shape[1]
        if in_place and len(rows) == 1:
            total = rows[0]
        else:
            if len(self._memory) < n:
                self._memory = self.device.zeros((n,))
            total = self._memory[:n]
            kernels.sum_rows_(self.xp, rows, total)
        self._sum_over_ranks_(total, group)
        return total

    def _mean(self, rows: Array, group: Group) -> Array:
        mean = self._total(rows, group)
        mean /= group.learners
        return mean

    def _spread(self, rows: Array, mean: Array) -> float:
        return kernels.spread(self.xp, rows, mean)

    def _sum_over_ranks_(self, x: Array, group: Group) -> None:
        """x [n] ← its sum over the group's ranks."""
        assert group.comm is None, "one rank"
