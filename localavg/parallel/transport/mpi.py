"""Means over host memory: sum the rank's rows, Allreduce over the ranks, divide once."""

from __future__ import annotations

from hashlib import blake2b

import numpy as np
from mpi4py import MPI
from numpy.typing import DTypeLike

from localavg.parallel.device import on_host
from localavg.parallel.fleet import Fleet, Group
from localavg.scope import Scope

CHUNK = 1 << 28  # elements a call: MPI counts to 2^31 − 1


class HostMPI:
    """Means of learners' rows, as `interfaces.Transport` defines them.

    The rank's own rows are summed in their order, MPI sums over the ranks, and the sum is divided
    once. S: the cluster size that Scope.CLUSTER stands for. dtype: the type of the rows, float32 or
    float64. Every method is collective over the ranks of its scope.
    """

    name = "mpi"

    def __init__(
        self,
        fleet: Fleet,
        S: int | None = None,
        why: str = "asked for",
        dtype: DTypeLike = np.float32,
    ) -> None:
        self.world, self.layout, self.why = fleet.world, fleet.layout, why
        self.P, self.dtype = fleet.P, np.dtype(dtype)
        self.groups = {
            Scope.WORLD: fleet.groups(fleet.P),
            Scope.CLUSTER: fleet.groups(S) if S else [],
        }
        self._memory = np.empty(0, dtype)  # [≥ n] the sum over a group's rows

    def zeros(self, shape: tuple[int, int]) -> np.ndarray:
        """Make zero rows [L, n] that will be averaged. Collective."""
        return np.zeros(shape, self.dtype)

    def ordinary(self, shape: tuple[int, int]) -> np.ndarray:
        """Make zero rows [L, n] in ordinary memory, for state that is never averaged."""
        return np.zeros(shape, self.dtype)

    def settle(self) -> None:
        """Wait until all queued work is done; on a host nothing is queued."""

    def mean_(self, w: np.ndarray, scope: Scope, variance: bool = False) -> float:
        """Set every row of w [L, n] to the mean of its group, in place.

        Return S = (1/P) Σ_j ‖w̄ − w_j‖² (adpsgd Alg. 2, line 11) if `variance`, else NaN. Raises
        TypeError where w is not of dtype.
        """
        self._check(w)
        spread = 0.0
        for group in self.groups[scope]:
            rows = w[group.rows]  # [l, n]
            if len(rows) == 1 and not variance:
                self._sum_over_ranks_(rows[0], group)
                rows[0] /= group.learners
                continue
            mean = self._mean(rows, group)  # [n]
            if variance:
                spread += self._spread(rows, mean)
            rows[:] = mean
        return self.world.allreduce(spread) / self.P if variance else np.nan

    def mean(self, w: np.ndarray) -> np.ndarray:
        """Return w̄ [n] over all rows of w [L, n], which stay as they are, until the next call."""
        return self._mean(w, self.groups[Scope.WORLD][0])

    def variance(self, w: np.ndarray) -> float:
        """Return Var[W] = (1/P) Σ_j ‖w̄ − w_j‖² of the rows w [L, n], which stay (adpsgd eq. 7)."""
        return self.world.allreduce(self._spread(w, self.mean(w))) / self.P

    def equal(self, w: np.ndarray) -> bool:
        """Return whether the rows w [L, n] of all learners are equal to the bit. Collective.

        The rows are read once, and one digest of each rank travels.
        """
        if self.P == 1:
            return True
        first = np.ascontiguousarray(on_host(w[0]))
        alike = all(np.array_equal(on_host(row), first) for row in w[1:])
        digest = blake2b(first.data, digest_size=16).digest() if alike else None
        digests = set(self.world.allgather(digest))
        return len(digests) == 1 and None not in digests

    def gather(self, x: np.ndarray) -> np.ndarray:
        """Return the rows x [L, n] of all learners, [P, n] in their order, on every rank."""
        if self.world.size == 1:
            return x
        everyone = np.empty((self.P, x.shape[1]), x.dtype)
        row = MPI.BYTE.Create_contiguous(everyone[0].nbytes).Commit()  # MPI counts rows, not bytes
        mine = [np.ascontiguousarray(x), len(x), row]
        self.world.Allgatherv(mine, [everyone, self.layout.counts, None, row])
        row.Free()
        return everyone

    def payload_bytes(self, nbytes: int, scope: Scope) -> tuple[int, int]:
        """Return the bytes that this rank hands over when each of its groups exchanges nbytes.

        The first number is within the node, the second across nodes.
        """
        spans = [group.nodes > 1 for group in self.groups[scope] if group.comm is not None]
        return nbytes * (len(spans) - sum(spans)), nbytes * sum(spans)

    def gather_bytes(self, nbytes: int) -> tuple[int, int]:
        """Return the same for a `gather` of nbytes a rank."""
        return HostMPI.payload_bytes(self, nbytes, Scope.WORLD)

    def _mean(self, rows: np.ndarray, group: Group) -> np.ndarray:
        n = rows.shape[1]
        if len(self._memory) < n:
            self._memory = np.empty(n, self.dtype)
        mean = np.sum(rows, axis=0, out=self._memory[:n])  # [n]
        self._sum_over_ranks_(mean, group)
        mean /= group.learners
        return mean

    def _spread(self, rows: np.ndarray, mean: np.ndarray) -> float:
        return sum(float(off @ off) for off in (row - mean for row in rows))

    def _sum_over_ranks_(self, x: np.ndarray, group: Group) -> None:
        if group.comm is not None:
            for i in range(0, len(x), CHUNK):
                group.comm.Allreduce(MPI.IN_PLACE, x[i : i + CHUNK])

    def _check(self, w: np.ndarray) -> None:
        """Raise TypeError for rows of another type: MPI sums some types as bytes, silently."""
        if w.dtype != self.dtype:
            raise TypeError(f"rows of {w.dtype}: {self.dtype} travels, nothing else")
