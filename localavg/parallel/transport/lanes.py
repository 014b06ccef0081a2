"""The mean of rows that a node shares. Each rank sums its lane of the columns over all rows.

A lane is summed chunk by chunk in cache, in the order of the learners. Where other nodes hold rows
of the lane, its chunks travel while the next chunks are summed. A rank with several lanes sends
their chunks in turn, so that all lanes travel at once, but for lanes of a single piece.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from itertools import zip_longest
from typing import NamedTuple

import numpy as np
from mpi4py import MPI
from numpy import nan

from localavg.interfaces import Rows, Step
from localavg.scope import Scope

CHUNK = 1 << 15  # elements summed at a time: with its rows it stays in a core's cache
# Bytes sent at a time between nodes. Open MPI's TCP sends up to 64 KiB at once. For more it asks
# the receiver first, and then both directions of a link together are little faster than one
# (BENCHMARKS.md, between hosts); with a higher limit for what goes at once they are not.
SENT = 60 << 10
DEPTH = 8  # chunks on their way at once, over all lanes of a rank
LINE = 16  # elements: lanes begin at cache lines, so that two ranks never write to one

# rows [l, n] of some columns, the same rows one by one, their sum [n], these columns
Chunk = tuple[np.ndarray, list[np.ndarray], np.ndarray, slice]


class Weights(NamedTuple):
    """How much learners count in a mean."""

    of_rows: Sequence[float]
    """[l] of the learners of some rows"""
    total: float
    """the sum over all learners"""
    learners: int
    """how many learners count at all"""

    @classmethod
    def of(
        cls, weights: Sequence[float] | None, scope: Scope, learners: Sequence[int]
    ) -> Weights | None:
        """Return the weights of these learners in a mean over `scope`; None: all count alike."""
        if weights is None or scope is not Scope.WORLD:
            return None
        count = sum(weight != 0 for weight in weights)
        return cls([weights[j] for j in learners], sum(weights), count)


class Lanes:
    """This rank's lanes of `rows` [learners of a group on this node, n], of `lanes` in all.

    here: the group's ranks on this node, if there are several. mine: the numbers of this rank's
    lanes, each with the communicators of its ranks on all nodes, which the chunks use in turn (no
    communicator where the whole group is on this node). P: learners of the group on all nodes.
    scratch [DEPTH or 1, at least CHUNK]: memory for sums. spread(rows, mean): Σ ‖w̄ − w_j‖².
    """

    def __init__(
        self,
        rows: np.ndarray,
        here: MPI.Comm | None,
        lanes: int,
        mine: Sequence[tuple[int, Sequence[MPI.Comm]]],
        P: int,
        scratch: np.ndarray,
        spread: Callable[[Rows, np.ndarray], float],
    ) -> None:
        self.here, self.P, self.spread = here, P, spread
        self.summed: list[Chunk] = []
        sent: list[list[tuple[MPI.Comm, slice, bool]]] = []
        for i, comms in mine:
            size = SENT // rows.itemsize if comms else CHUNK
            columns = lane(rows.shape[1], i, lanes)
            lo, hi = columns.start, columns.stop
            cut = [slice(a, min(a + size, hi)) for a in range(lo, hi, size)]
            if comms:
                # One rank after the other is the first of a communicator, over pieces and lanes.
                turns = [comms[(i + k) % len(comms)] for k in range(len(cut))]
                sent.append([(*turn, len(cut) == 1) for turn in zip(turns, cut, strict=True)])
            else:
                self.summed += [_chunk(rows, piece, scratch[0]) for piece in cut]
        # Everyone posts chunk k of lane i in the order of (k, i) and waits for the oldest, so
        # nobody waits in a ring.
        in_turn = [each for turn in zip_longest(*sent) for each in turn if each is not None]
        self.sent = [
            (comm, _chunk(rows, piece, scratch[k % DEPTH]), whole)
            for k, (comm, piece, whole) in enumerate(in_turn)
        ]

    def mean_(
        self, variance: bool = False, step: Step | None = None, weights: Weights | None = None
    ) -> float:
        """Set every row to the mean, or to what the step makes of it. Collective.

        weights: how much each row counts, and the sum over all learners; None: all alike. Return
        Σ ‖w̄ − w_j‖² of the rows that count over this rank's lanes if `variance`, else NaN.
        """
        spread = 0.0 if variance else nan
        flying: deque[tuple[Chunk, MPI.Request]] = deque()
        if self.here is not None:
            self.here.Barrier()  # everyone's rows are ready
        alone = self.P == 1 and step is None  # one learner is its own mean
        for chunk in () if alone else self.summed:
            add_up(chunk[1], chunk[2], weights)
            spread += self._finish(chunk, variance, step, weights)
        for comm, chunk, whole in self.sent:
            if len(flying) == DEPTH:
                spread += self._land(flying.popleft(), variance, step, weights)
            add_up(chunk[1], chunk[2], weights)
            flying.append((chunk, _over_nodes(comm, chunk[2], whole)))
        while flying:
            spread += self._land(flying.popleft(), variance, step, weights)
        if self.here is not None:
            self.here.Barrier()  # nobody goes on before all lanes are written
        return spread

    def _land(
        self,
        sent: tuple[Chunk, MPI.Request],
        variance: bool,
        step: Step | None,
        weights: Weights | None,
    ) -> float:
        chunk, request = sent
        request.Wait()
        return self._finish(chunk, variance, step, weights)

    def _finish(
        self, chunk: Chunk, variance: bool, step: Step | None, weights: Weights | None
    ) -> float:
        """Divide a chunk's sum, take the step, and write the result to every row.

        Return Σ ‖w̄ − w_j‖² if `variance`.
        """
        rows, parts, mean, columns = chunk
        mean /= self.P if weights is None else weights.total
        spread = self.spread(counted(parts, weights), mean) if variance else 0.0
        rows[...] = mean if step is None else step(mean, columns)
        return spread


def _over_nodes(comm: MPI.Comm, total: np.ndarray, whole: bool) -> MPI.Request:
    """Sum `total` over the nodes, in place. whole: it is all of its lane.

    Then MPI's blocking sum is twice as fast: Open MPI's other one in place (coll/libnbc) reduces to
    the first rank and afterwards broadcasts from it, so one direction of the link is always idle.
    """
    if not whole:
        return comm.Iallreduce(MPI.IN_PLACE, total)
    comm.Allreduce(MPI.IN_PLACE, total)
    return MPI.REQUEST_NULL


def lane(n: int, i: int, lanes: int) -> slice:
    """Return the columns of lane i of some lanes, of n columns."""
    lo, hi = (min(n, -(-n // LINE) * k // lanes * LINE) for k in (i, i + 1))
    return slice(lo, hi)


def _chunk(rows: np.ndarray, columns: slice, scratch: np.ndarray) -> Chunk:
    piece = rows[:, columns]
    return piece, list(piece), scratch[: piece.shape[1]], columns


def add_up(rows: Rows, total: np.ndarray, weights: Weights | None = None) -> None:
    """Write the sum of rows [n] into total [n], in the order of the rows, each by its weight.

    A row of weight 0 is not read.
    """
    if weights is not None:
        total[...] = 0
        for row, weight in zip(rows, weights.of_rows, strict=True):
            if weight:
                total += row if weight == 1 else weight * row
        return
    if len(rows) == 1:
        total[...] = rows[0]
        return
    np.add(rows[0], rows[1], total)
    for row in rows[2:]:
        np.add(total, row, total)


def counted(rows: Rows, weights: Weights | None) -> Rows:
    """Return the rows whose weights are not 0."""
    if weights is None:
        return rows
    return [row for row, weight in zip(rows, weights.of_rows, strict=True) if weight]
