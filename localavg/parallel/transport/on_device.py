"""Means of rows in a GPU's memory: the base of the three transports between GPUs.

One kernel sums the rank's own rows, then the sum travels over the ranks, and one kernel divides it
and writes the rows. Learners of one rank take one kernel in all. A subclass implements the travel,
`_sum_over_ranks_`, and waits there for the stream before every MPI call; no other code does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import numpy as np

from localavg.interfaces import Array, Code, Rows, Step
from localavg.parallel import kernels
from localavg.parallel.device import Cuda, Stream, on_host, put_
from localavg.parallel.fleet import Fleet, Group
from localavg.parallel.transport.lanes import Weights, add_up, counted
from localavg.parallel.transport.mixing_on_device import MixOnDevice
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
        self._side: Stream | None = None  # of another thread's work

    def zeros(self, shape: tuple[int, int]) -> Array:
        """Make zero rows [L, n] on the device."""
        return self.device.zeros(shape)

    ordinary = zeros

    def settle(self) -> None:
        """Wait until all queued work of the device is done."""
        self.device.settle()

    def aside(self) -> AbstractContextManager[None]:
        """Return a context for another thread, whose work is queued in a stream of its own."""
        if self._side is None:
            self._side = self.device.side_stream()
        return self.device.behind(self._side)

    def again(self, fleet: Fleet) -> OnDevice:
        return type(self)(fleet, self.device, self.clusters, "in the background")

    def mean_(
        self, w: Array, scope: Scope, variance: bool = False, step: Step | None = None
    ) -> float:
        """Set every row of w [L, n] to the mean of its group, in place; see `Transport.mean_`."""
        self._check(w)
        spread, weights = 0.0, self._weights(scope)
        for group in self.groups[scope]:
            rows = w[group.rows]  # [l, n]
            if variance or step is not None or weights is not None:
                mean = self._mean(rows, group, weights, in_place=not variance)
                if variance:
                    spread += self._spread(counted(rows, weights), mean)
                rows[...] = mean if step is None else step(mean, slice(0, len(mean)))
                continue
            if group.comm is None and len(rows) > 1:
                kernels.mean_(self.xp, rows)
                continue
            total = self._total(rows, group, in_place=True)
            kernels.finish_(self.xp, total, group.learners, rows)
        return self._over_learners(spread, weights) if variance else np.nan

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

    def _mix(self, w: Array, W: np.ndarray) -> MixOnDevice:
        return MixOnDevice(w, self._route(W), self._messages(), self.device)

    def _total(
        self, rows: Array, group: Group, weights: Weights | None = None, in_place: bool = False
    ) -> Array:
        """Return the sum [n] over a group's rows; `in_place`: over a single row in its place."""
        n = rows.shape[1]
        if in_place and len(rows) == 1 and weights is None:
            total = rows[0]
        else:
            if len(self._memory) < n:
                self._memory = self.device.zeros((n,))
            total = self._memory[:n]
            if weights is None:
                kernels.sum_rows_(self.xp, rows, total)
            else:
                add_up(rows, total, weights)
        self._sum_over_ranks_(total, group)
        return total

    def _mean(
        self, rows: Array, group: Group, weights: Weights | None, in_place: bool = False
    ) -> Array:
        """Return the mean [n] over a group's rows, valid until the next call; see `_total`."""
        mean = self._total(rows, group, weights, in_place)
        mean /= group.learners if weights is None else weights.total
        return mean

    def _spread(self, rows: Rows, mean: Array) -> float:
        self.settle()  # the time of work that is queued already is not that of S
        return super()._spread(rows, mean)

    def _sum_of_squares(self, rows: Rows, mean: Array) -> float:
        parts = [row[None] for row in rows] if isinstance(rows, list) else [rows]  # [l, n] each
        return sum(kernels.spread(self.xp, part, mean) for part in parts)

    def _sum_over_ranks_(self, x: Array, group: Group) -> None:
        """Set x [n] to its sum over the group's ranks."""
        assert group.comm is None, "only for a job of one rank"
