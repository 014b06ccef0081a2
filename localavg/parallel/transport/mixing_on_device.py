"""A mix of rows in a GPU's memory. What travels passes through host memory."""

from __future__ import annotations

import numpy as np
from mpi4py import MPI

from localavg.interfaces import Array
from localavg.parallel import kernels
from localavg.parallel.device import Cuda, on_host, put_
from localavg.parallel.transport.mixing import Route

PIECE = 1 << 22  # columns mixed at a time


class MixOnDevice:
    """One mix of this rank's rows [L, n] by its route; see `mixing.Mix`.

    comm: all ranks, for these messages alone.
    """

    def __init__(self, rows: Array, route: Route, comm: MPI.Comm, device: Cuda) -> None:
        self.rows, self.route, self.comm, self.device = rows, route, comm, device
        terms = {row: ((row, 1.0),) for row in range(len(rows))} | dict(route.sums)
        flat = [term for row in sorted(terms) for term in terms[row]]
        ends = np.cumsum([0, *(len(terms[row]) for row in sorted(terms))])
        # numbers of rows too, which float32 holds up to 2^24
        lists = ends, [source for source, _ in flat], [weight for _, weight in flat]
        self.terms = [device.xp.asarray(np.array(each, np.float32)) for each in lists]
        self._travels: list[object] = []  # MPI may read and write it after a failure

    def mix_(self) -> None:
        """Mix the rows in place. Collective over all ranks."""
        for a in range(0, self.rows.shape[1], PIECE) if self.route.sums or self.route.gives else ():
            rows = self.rows[:, a : a + PIECE]
            come = self._come(rows)
            mixed = self.device.zeros(rows.shape)
            kernels.mix_(self.device.xp, rows, rows if come is None else come, self.terms, mixed)
            rows[...] = mixed

    def _come(self, rows: Array) -> Array | None:
        """Send these columns of the rows that others take, and return those that come [m, n]."""
        gives, takes = self.route.gives, self.route.takes
        if not (gives or takes):
            return None
        come = np.empty((self.route.come, rows.shape[1]), np.float32)
        ranks = [rank for rank, learners in takes.items() for _ in learners]
        requests = [self.comm.Irecv(row, rank) for row, rank in zip(come, ranks, strict=True)]
        given = sorted({row for each in gives.values() for row in each})
        host = {row: on_host(rows[row]) for row in given}  # waits for the stream
        self._travels = [come, host]
        requests += [self.comm.Isend(host[row], rank) for rank in gives for row in gives[rank]]
        MPI.Request.Waitall(requests)
        if not self.route.come:
            return None
        device = self.device.zeros(come.shape)
        put_(device, come)
        return device
