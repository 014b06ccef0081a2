"""Means over host memory: sum the rank's rows, Allreduce over the ranks, divide once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from hashlib import blake2b
from time import perf_counter

import numpy as np
from mpi4py import MPI
from numpy.typing import DTypeLike

from localavg.interfaces import UNTIMED, Code, Laps, Rows, Step
from localavg.parallel.aligned import host_zeros
from localavg.parallel.device import on_host
from localavg.parallel.fleet import Fleet, Group
from localavg.parallel.transport.lanes import Weights, add_up, counted
from localavg.parallel.transport.mixes import Mixes
from localavg.scope import Scope, sizes

CHUNK = 1 << 28  # elements a call: MPI counts to 2^31 − 1
CACHED = 1 << 15  # elements of a step, and of squares added up, at a time: in a core's cache
MOST_BYTES = 1 << 31  # that MPI counts in a call


def digest(row: np.ndarray) -> bytes:
    """Return 16 bytes that differ where the bits of two rows [n] differ."""
    return blake2b(np.ascontiguousarray(row).data, digest_size=16).digest()


class HostMPI(Mixes):
    """Means of learners' rows, as `interfaces.Transport` defines them.

    The rank's own rows are summed in their order, MPI sums over the ranks, and the sum is divided
    once. clusters: learners in a cluster of each level, innermost first. dtype: the type of the
    rows, float32 or float64. Every method is collective over the ranks of its scope.
    """

    name = "mpi"

    def __init__(
        self,
        fleet: Fleet,
        clusters: Sequence[int] = (),
        why: str = "asked for",
        dtype: DTypeLike = np.float32,
    ) -> None:
        super().__init__(fleet)
        self.why, self.dtype = why, np.dtype(dtype)
        self.clusters, self.sizes = clusters, sizes(clusters, fleet.P)
        self.groups = {scope: fleet.groups(S) for scope, S in self.sizes.items()}
        self._memory = np.empty(0, dtype)  # [≥ n] the sum over a group's rows
        self.laps: Laps = UNTIMED
        self.weights: Sequence[float] | None = None
        self._spread_s = 0.0  # seconds in which S was computed, not yet taken

    def zeros(self, shape: tuple[int, int]) -> np.ndarray:
        """Make zero rows [L, n] that will be averaged. Collective."""
        return host_zeros(shape, self.dtype)

    def ordinary(self, shape: tuple[int, int]) -> np.ndarray:
        """Make zero rows [L, n] in ordinary memory, for state that is never averaged."""
        return host_zeros(shape, self.dtype)

    def common(self, shape: tuple[int, int]) -> np.ndarray:
        """Make zero rows [k, n] of state that all learners have in common: each rank its own."""
        return self.ordinary(shape)

    def settle(self) -> None:
        """Wait until all queued work is done; on a host nothing is queued."""

    def aside(self) -> AbstractContextManager[None]:
        """Return a context for another thread; on a host nothing is queued."""
        return nullcontext()

    def again(self, fleet: Fleet) -> HostMPI:
        """Return a transport like this one on another fleet of the same learners. Collective."""
        return type(self)(fleet, self.clusters, "in the background", self.dtype)

    def mean_(
        self, w: np.ndarray, scope: Scope, variance: bool = False, step: Step | None = None
    ) -> float:
        """Set every row of w [L, n] to the mean of its group, in place; see `Transport.mean_`.

        Raises TypeError where w is not of dtype.
        """
        self._check(w)
        spread, weights = 0.0, self._weights(scope)
        for group in self.groups[scope]:
            rows = w[group.rows]  # [l, n]
            if len(rows) == 1 and not variance and weights is None:
                mean = rows[0]  # [n]
                self._sum_over_ranks_(mean, group)
                mean /= group.learners
            else:
                mean = self._mean(rows, group, weights)
            if variance:
                spread += self._spread(counted(rows, weights), mean)
            if step is not None:
                for i in range(0, len(mean), CACHED):
                    columns = slice(i, i + CACHED)
                    rows[:, columns] = step(mean[columns], columns)
            elif len(rows) > 1 or variance or weights is not None:
                rows[:] = mean
        return self._over_learners(spread, weights) if variance else np.nan

    def mean(self, w: np.ndarray) -> np.ndarray:
        """Return w̄ [n] over all rows of w [L, n], which stay as they are, until the next call."""
        return self._mean(w, self.groups[Scope.WORLD][0], self._weights(Scope.WORLD))

    def variance(self, w: np.ndarray) -> float:
        """Return Var[W] = (1/P) Σ_j ‖w̄ − w_j‖² of the rows w [L, n], which stay (adpsgd eq. 7)."""
        weights = self._weights(Scope.WORLD)
        return self._over_learners(self._spread(counted(w, weights), self.mean(w)), weights)

    def equal(self, w: np.ndarray) -> bool:
        """Return whether the rows w [L, n] of all learners are equal to the bit. Collective.

        The rows are read once, and one digest of each rank travels.
        """
        if self.P == 1:
            return True
        first = np.ascontiguousarray(on_host(w[0]))
        alike = all(np.array_equal(on_host(row), first) for row in w[1:])
        mine = digest(first) if alike else None
        self.laps.computed()
        digests = set(self.world.allgather(mine))
        self.laps.met()
        return len(digests) == 1 and None not in digests

    def take_spread_s(self) -> float:
        """Return the seconds that this rank computed S since the last call."""
        seconds, self._spread_s = self._spread_s, 0.0
        return seconds

    def coded_mean_(
        self,
        w: np.ndarray,
        code: Code,
        draws: Callable[[int, int, int], np.ndarray],
        again: Callable[[int, int], np.ndarray],
    ) -> None:
        """Set every row of w [L, n] to the mean of all, in `code`; see `Transport.coded_mean_`."""
        for lo, hi in self._pieces(w.shape[1], code):
            ends = [lo + end for end in self._slices(hi - lo, code)]
            slices = list(zip(ends, ends[1:], strict=False))  # of every rank
            sizes = [code.nbytes(b - a) for a, b in slices]
            sent = np.empty(len(w) * sum(sizes), np.uint8)  # [ranks][L] coded slices
            place = 0
            for (a, b), size in zip(slices, sizes, strict=True):
                for l, row in enumerate(w):
                    code.encode_(row[a:b], draws(l, a, b), sent[place : place + size])
                    place += size
            self.laps.computed()
            a, b = slices[self.world.rank]
            size = sizes[self.world.rank]
            coded = self._exchange_slices(sent, [len(w) * s for s in sizes], size)  # [P, size]
            self.laps.met()
            mean = np.zeros(b - a, np.float32)
            for each in coded:  # in the order of the learners
                mean += code.decode(each, b - a)
            mean /= np.float32(self.P)
            mine = np.empty(size, np.uint8)
            code.encode_(mean, again(a, b), mine)
            self.laps.computed()
            everyone = self._gather_slices(mine, sizes)
            self.laps.met()
            place = 0
            for (a, b), size in zip(slices, sizes, strict=True):
                w[:, a:b] = code.decode(everyone[place : place + size], b - a)
                place += size
            self.laps.computed()

    def _pieces(self, n: int, code: Code) -> Iterator[tuple[int, int]]:
        """Yield pieces lo, hi of n columns, of which MPI can count the bytes of all learners."""
        most = max(1, MOST_BYTES // (2 * self.P) // code.bucket) * code.bucket
        return ((lo, min(lo + most, n)) for lo in range(0, n, most))

    def _slices(self, n: int, code: Code) -> list[int]:
        """Return where the ranks' slices of n columns begin, and n; all begin with a bucket."""
        buckets, R = -(-n // code.bucket), self.world.size
        return [min(n, buckets * r // R * code.bucket) for r in range(R + 1)]

    def _exchange_slices(self, sent: np.ndarray, sizes: list[int], size: int) -> np.ndarray:
        """Send each rank its coded slices, and return the own slice of all learners [P, size].

        sizes: the bytes for every rank. size: the bytes of one learner's own slice.
        """
        if self.world.size == 1:
            return sent.reshape(self.P, size)
        coded = np.empty((self.P, size), np.uint8)
        counts = [size * L for L in self.layout.counts]
        self.world.Alltoallv([sent, sizes], [coded, counts])
        return coded

    def _gather_slices(self, mine: np.ndarray, sizes: list[int]) -> np.ndarray:
        """Return the coded slices of all ranks, one after the other."""
        if self.world.size == 1:
            return mine
        everyone = np.empty(sum(sizes), np.uint8)
        self.world.Allgatherv(mine, [everyone, sizes])
        return everyone

    def payload_bytes(self, nbytes: int, scope: Scope) -> tuple[int, int]:
        """Return the bytes that this rank hands over when each of its groups exchanges nbytes.

        The first number is within the node, the second across nodes.
        """
        spans = [group.nodes > 1 for group in self.groups[scope] if group.comm is not None]
        return nbytes * (len(spans) - sum(spans)), nbytes * sum(spans)

    def coded_bytes(self, n: int, code: Code) -> tuple[int, int]:
        """Return the same for one coded mean of rows of n entries."""
        rank, layout = self.world.rank, self.layout
        sent = [0, 0]  # within the node, across nodes
        for lo, hi in self._pieces(n, code) if layout.ranks > 1 else ():
            ends = self._slices(hi - lo, code)
            sizes = [code.nbytes(b - a) for a, b in zip(ends, ends[1:], strict=False)]
            for other, size in enumerate(sizes):
                if other != rank:
                    across = layout.node_of[other] != layout.node_of[rank]
                    sent[across] += layout.counts[rank] * size
            sent[layout.nodes > 1] += sizes[rank]  # the slice of the mean, to all
        return sent[0], sent[1]

    def _weights(self, scope: Scope) -> Weights | None:
        return Weights.of(self.weights, scope, self.layout.learners(self.world.rank))

    def _over_learners(self, spread: float, weights: Weights | None) -> float:
        """Return the mean over the learners that count of what ranks have added up. Collective."""
        return sum(self.world.allgather(spread)) / (weights.learners if weights else self.P)

    def _mean(self, rows: np.ndarray, group: Group, weights: Weights | None) -> np.ndarray:
        n = rows.shape[1]
        if len(self._memory) < n:
            self._memory = np.empty(n, self.dtype)
        mean = self._memory[:n]
        if weights is None:
            np.sum(rows, axis=0, out=mean)
        else:
            for i in range(0, n, CACHED):
                add_up(rows[:, i : i + CACHED], mean[i : i + CACHED], weights)
        self._sum_over_ranks_(mean, group)
        mean /= group.learners if weights is None else weights.total
        return mean

    def _spread(self, rows: Rows, mean: np.ndarray) -> float:
        """Return Σ ‖w̄ − w_j‖² over some rows [n], added up in float64, and count its time."""
        start = perf_counter()
        spread = self._sum_of_squares(rows, mean)
        self._spread_s += perf_counter() - start
        return spread

    def _sum_of_squares(self, rows: Rows, mean: np.ndarray) -> float:
        total = 0.0
        for row in rows:
            for i in range(0, len(mean), CACHED):
                off = (row[i : i + CACHED] - mean[i : i + CACHED]).astype(np.float64)
                total += float(off @ off)
        return total

    def _sum_over_ranks_(self, x: np.ndarray, group: Group) -> None:
        if group.comm is not None:
            for i in range(0, len(x), CHUNK):
                group.comm.Allreduce(MPI.IN_PLACE, x[i : i + CHUNK])
