"""Means of rows in a GPU's memory: the base of the three transports between GPUs.

One kernel sums the rank's own rows, then the sum travels over the ranks, and one kernel divides it
and writes the rows. Learners of one rank take one kernel in all. A subclass implements the travel,
`_sum_over_ranks_`, and waits there for the stream before every MPI call; no other code does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from localavg.interfaces import Array, Code, Rows, Step
from localavg.parallel import kernels
from localavg.parallel.device import Cuda, on_host, put_
from localavg.parallel.fleet import Fleet, Group
from localavg.parallel.transport.mpi import HostMPI
from localavg.scope import Scope


class OnDevice(HostMPI):
    """Means of rows on `device`, with the methods of HostMPI; complete for a job of one rank."""

    name = "device"

    def __init__(
        self, fleet: Fleet, device: Cuda, clusters: Sequence[int] = (), why: str = "asked for"
    ) -> None:
        super().__init__(fleet, clusters, why)
        self.device, self.xp = device, device.xp
        self._memory = device.zeros((0,))  # [≥ n] the sum over a group's rows

    def zeros(self, shape: tuple[int, int]) -> Array:
        """Make zero rows [L, n] on the device."""
        return self.device.zeros(shape)

    ordinary = zeros

    def settle(self) -> None:
        """Wait until all queued work of the device is done."""
        self.device.settle()

    def mean_(
        self, w: Array, scope: Scope, variance: bool = False, step: Step | None = None
    ) -> float:
        """Set every row of w [L, n] to the mean of its group, in place; see `Transport.mean_`."""
        self._check(w)
        spread = 0.0
        for group in self.groups[scope]:
            rows = w[group.rows]  # [l, n]
            if variance or step is not None:
                mean = self._mean(rows, group, in_place=not variance)
                if variance:
                    spread += self._spread(rows, mean)
                rows[...] = mean if step is None else step(mean, slice(0, len(mean)))
                continue
            if group.comm is None and len(rows) > 1:
                kernels.mean_(self.xp, rows)
                continue
            total = self._total(rows, group, in_place=True)
            kernels.finish_(self.xp, total, group.learners, rows)
        return self.world.allreduce(spread) / self.P if variance else np.nan

    def coded_mean_(
        self,
        w: Array,
        code: Code,
        draws: Callable[[int, int, int], np.ndarray],
        again: Callable[[int, int], np.ndarray],
    ) -> None:
        """Set every row of w [L, n] to the mean of all, coded on the host."""
        host = on_host(w)
        super().coded_mean_(host, code, draws, again)
        put_(w, host)

    def _total(self, rows: Array, group: Group, in_place: bool = False) -> Array:
        """Return the sum [n] over a group's rows; `in_place`: over a single row in its place."""
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

    def _mean(self, rows: Array, group: Group, in_place: bool = False) -> Array:
        """Return the mean [n] over a group's rows, valid until the next call; see `_total`."""
        mean = self._total(rows, group, in_place)
        mean /= group.learners
        return mean

    def _spread(self, rows: Rows, mean: Array) -> float:
        self.settle()  # the time of work that is queued already is not that of S
        return super()._spread(rows, mean)

    def _sum_of_squares(self, rows: Rows, mean: Array) -> float:
        return kernels.spread(self.xp, rows, mean)

    def _sum_over_ranks_(self, x: Array, group: Group) -> None:
        """Set x [n] to its sum over the group's ranks."""
        assert group.comm is None, "only for a job of one rank"
