"""Means in the node's shared memory: every rank reduces a slice of everyone's rows where they lie.

The rows of all learners of a node are one matrix that its ranks share. An average cuts the columns into lanes, one a rank;
each rank sums its lane over the rows in the order of the learners, chunk by chunk in cache, adds the lanes of the other
nodes, divides by the number of learners and writes the mean back to all rows. Nothing is packed and nothing sent within a
node; between nodes every rank sends its lane at once, in full duplex, while it reduces the next chunks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from mpi4py import MPI

from localavg.fleet import Fleet
from localavg.schedules import Scope
from localavg.transport.mpi import HostMPI

CHUNK = 1 << 15  # elements summed at a time: with its rows it stays in a core's cache
SENT = 1 << 18  # elements sent at a time between nodes
DEPTH = 4  # chunks on their way at once
LINE = 16  # elements: lanes begin at cache lines, so that two ranks never write to one


@dataclass(frozen=True)
class Part:
    """This rank's work in the mean of one group of learners."""

    rows: slice  # of the node's matrix: the group's learners on this node
    here: MPI.Comm | None  # the group's ranks on this node, if several
    lanes: int  # pieces that the columns are cut into
    mine: tuple[tuple[int, MPI.Comm | None], ...]  # the lanes that this rank reduces, and their ranks on the other nodes
    learners: int


class SharedMemory(HostMPI):
    """Means of rows that `zeros` made; other arrays go the way of HostMPI. Bits do not depend on the ranks of a node."""

    name = "shared"
    why = "ranks of a node share its memory"

    def __init__(self, fleet: Fleet, S: int | None = None) -> None:
        super().__init__(fleet, S)
        self.fleet = fleet
        self.parts = {Scope.WORLD: self._parts(fleet.P), Scope.CLUSTER: self._parts(S) if S else []}
        self._matrices: list[tuple[int, int, np.ndarray]] = []  # address and bytes of my rows, the node's matrix
        self._scratch = np.empty((DEPTH, SENT if fleet.nodes > 1 else CHUNK), np.float32)

    def zeros(self, shape: tuple[int, int]) -> np.ndarray:
        """My rows [L, n], all zero, of a new matrix that the node shares. Collective."""
        L, n = shape
        node = self.fleet.node
        matrix = self.fleet.node_array((L * node.size, n))  # [learners of the node, n]
        rows = matrix[L * node.rank : L * (node.rank + 1)]
        rows[...] = 0
        self._matrices.append((_address(rows), rows.nbytes, matrix))
        node.Barrier()
        return rows

    def mean_(self, w: np.ndarray, scope: Scope, variance: bool = False) -> float:
        matrix = self._shared(w)
        if matrix is None:
            return super().mean_(w, scope, variance)
        spread = 0.0
        for part in self.parts[scope]:
            spread += self._reduce(matrix[part.rows], part, matrix[part.rows], variance)
        return self.world.allreduce(spread) / self.P if variance else np.nan

    def _reduce(self, rows: np.ndarray, part: Part, out: np.ndarray, variance: bool) -> float:
        """The mean of rows [learners here, n] into every row of out; returns this rank's share of Σ ‖w̄ − w_j‖²."""
        if part.here is not None:
            part.here.Barrier()  # everyone's rows are ready
        spread = 0.0
        for lane, comm in part.mine:
            lo, hi = _cut(rows.shape[1], lane, part.lanes), _cut(rows.shape[1], lane + 1, part.lanes)
            if comm is None:
                for a in range(lo, hi, CHUNK):
                    b = min(a + CHUNK, hi)
                    mean = np.add.reduce(rows[:, a:b], axis=0, out=self._scratch[0, : b - a])
                    spread += _finish(mean, part.learners, rows[:, a:b], out[:, a:b], variance)
            else:
                spread += self._reduce_across(rows[:, lo:hi], comm, part.learners, out[:, lo:hi], variance)
        if part.here is not None:
            part.here.Barrier()  # nobody goes on before all lanes are written
        return spread

    def _reduce_across(self, rows: np.ndarray, comm: MPI.Comm, P: int, out: np.ndarray, variance: bool) -> float:
        """`_reduce` of a lane [learners here, n] whose other rows are on other nodes: DEPTH chunks travel while the next is summed."""
        spread, flying = 0.0, []
        for k, a in enumerate(range(0, rows.shape[1], SENT)):
            if len(flying) == DEPTH:
                spread += _land(flying.pop(0), P, rows, out, variance)
            b = min(a + SENT, rows.shape[1])
            total = np.add.reduce(rows[:, a:b], axis=0, out=self._scratch[k % DEPTH, : b - a])
            flying.append((a, b, total, comm.Iallreduce(MPI.IN_PLACE, total)))
        return spread + sum(_land(chunk, P, rows, out, variance) for chunk in flying)

    def _shared(self, w: np.ndarray) -> np.ndarray | None:
        """The columns of the node's matrix that w [L, n] is rows of, or None."""
        address = _address(w)
        for start, nbytes, matrix in self._matrices:
            if start <= address < start + nbytes:
                first = (address - start) // w.itemsize
                return matrix[:, first : first + w.shape[1]]
        return None

    def _parts(self, S: int) -> list[Part]:
        """This rank's parts of the clusters of S learners. Collective over their members, in the order of the clusters."""
        return [self._part(c, S) for c in range(self.P // S) if self.fleet.rank in self._members(c, S)]

    def _members(self, c: int, S: int) -> range:
        return range(c * S // self.fleet.L, ((c + 1) * S - 1) // self.fleet.L + 1)

    def _part(self, c: int, S: int) -> Part:
        fleet, members = self.fleet, self._members(c, S)
        by_node: dict[int, list[int]] = {}
        for r in members:
            by_node.setdefault(fleet.node_of[r], []).append(r)
        here = by_node[fleet.node_of[fleet.rank]]
        L, offset = fleet.L, fleet.node.rank - here.index(fleet.rank)  # node rank of here[0]
        start = offset * L + max(0, c * S - here[0] * L)
        stop = (offset + len(here)) * L - max(0, (here[-1] + 1) * L - (c + 1) * S)
        lanes = max(len(ranks) for ranks in by_node.values())
        together = self._communicator(here)
        mine = []
        for lane in range(lanes):
            handlers = [ranks[lane % len(ranks)] for ranks in by_node.values()]
            if fleet.rank in handlers:
                mine.append((lane, self._communicator(handlers)))
        return Part(slice(start, stop), together, lanes, tuple(mine), S)

    def _communicator(self, ranks: list[int]) -> MPI.Comm | None:
        return self.world.Create_group(self.world.group.Incl(ranks)) if len(ranks) > 1 else None


def _land(chunk: tuple, P: int, rows: np.ndarray, out: np.ndarray, variance: bool) -> float:
    a, b, total, request = chunk
    request.Wait()
    return _finish(total, P, rows[:, a:b], out[:, a:b], variance)


def _finish(total: np.ndarray, P: int, rows: np.ndarray, out: np.ndarray, variance: bool) -> float:
    """Divide a chunk's sum [n] by P and write it to every row of out [rows, n]; returns Σ ‖mean − row‖² if asked for."""
    total /= np.float32(P)
    spread = 0.0
    if variance:
        for row in rows:
            off = total - row
            spread += float(off @ off)
    out[...] = total
    return spread


def _cut(n: int, lane: int, lanes: int) -> int:
    return min(n, -(-n // LINE) * lane // lanes * LINE)


def _address(x: np.ndarray) -> int:
    return x.__array_interface__["data"][0]
