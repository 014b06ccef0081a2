"""The mean of rows that a node shares. Each rank sums its lane of the columns over all rows.

A lane is summed chunk by chunk in cache, in the order of the learners. Where other nodes hold rows
of the lane, its chunks travel while the next chunks are summed. A rank with several lanes sends
their chunks in turn, so that all lanes travel at once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from itertools import zip_longest

import numpy as np
from mpi4py import MPI
from numpy import nan

from localavg.interfaces import Rows

CHUNK = 1 << 15  # elements summed at a time: with its rows it stays in a core's cache
SENT = 1 << 17  # elements sent at a time between nodes
DEPTH = 8  # chunks on their way at once, over all lanes of a rank
LINE = 16  # elements: lanes begin at cache lines, so that two ranks never write to one

# rows [l, n] of some columns, the same rows one by one, their sum [n]
Chunk = tuple[np.ndarray, list[np.ndarray], np.ndarray]


class Lanes:
    """This rank's lanes of `rows` [learners of a group on this node, n], of `lanes` in all.

    here: the group's ranks on this node, if there are several. mine: the numbers of this rank's
    lanes, each with the communicators of its ranks on all nodes, which the chunks use in turn (no
    communicator where the whole group is on this node). P: learners of the group on all nodes.
    scratch [DEPTH or 1, SENT or CHUNK]: memory for sums. spread(rows, mean): Σ ‖w̄ − w_j‖².
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
        self.here, self.P, self.scratch, self.spread = here, P, scratch, spread
        self.summed: list[Chunk] = []
        sent: list[list[tuple[MPI.Comm, np.ndarray]]] = []
        for lane, comms in mine if P > 1 else ():  # one learner is its own mean
            size = SENT if comms else CHUNK
            lo, hi = (
                min(rows.shape[1], -(-rows.shape[1] // LINE) * i // lanes * LINE)
                for i in (lane, lane + 1)
            )
            cut = [rows[:, a : min(a + size, hi)] for a in range(lo, hi, size)]
            if comms:
                sent.append([(comms[k % len(comms)], piece) for k, piece in enumerate(cut)])
            else:
                self.summed += [(piece, list(piece), scratch[0, : piece.shape[1]]) for piece in cut]
        # Everyone posts chunk k of lane i in the order of (k, i) and waits for the oldest, so
        # nobody waits in a ring.
        turns = enumerate(each for turn in zip_longest(*sent) for each in turn if each is not None)
        self.sent = [
            (comm, (piece, list(piece), scratch[i % DEPTH, : piece.shape[1]]))
            for i, (comm, piece) in turns
        ]

    def mean_(self, variance: bool = False) -> float:
        """Set every row to the mean. Collective.

        Return Σ ‖w̄ − w_j‖² over this rank's lanes if `variance`, else NaN.
        """
        spread = 0.0 if variance else nan
        flying: deque[tuple[Chunk, MPI.Request]] = deque()
        if self.here is not None:
            self.here.Barrier()  # everyone's rows are ready
        for chunk in self.summed:
            add_up(chunk[1], chunk[2])
            spread += self._finish(chunk, variance)
        for comm, chunk in self.sent:
            if len(flying) == DEPTH:
                spread += self._land(flying.popleft(), variance)
            add_up(chunk[1], chunk[2])
            flying.append((chunk, comm.Iallreduce(MPI.IN_PLACE, chunk[2])))
        while flying:
            spread += self._land(flying.popleft(), variance)
        if self.here is not None:
            self.here.Barrier()  # nobody goes on before all lanes are written
        return spread

    def _land(self, sent: tuple[Chunk, MPI.Request], variance: bool) -> float:
        chunk, request = sent
        request.Wait()
        return self._finish(chunk, variance)

    def _finish(self, chunk: Chunk, variance: bool) -> float:
        """Divide a chunk's sum and write it to every row; return Σ ‖w̄ − w_j‖² if `variance`."""
        rows, parts, mean = chunk
        mean /= self.P
        spread = self.spread(parts, mean) if variance else 0.0
        rows[...] = mean
        return spread


def add_up(rows: Sequence[np.ndarray], total: np.ndarray) -> None:
    """Write the sum of rows [n] into total [n], in the order of the rows."""
    if len(rows) == 1:
        total[...] = rows[0]
        return
    np.add(rows[0], rows[1], total)
    for row in rows[2:]:
        np.add(total, row, total)
