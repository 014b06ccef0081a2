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


Chunk = tuple[np.ndarray, list[np.ndarray], np.ndarray]  # rows [l, n] of some columns, one by one, their sum [n]
Work = tuple[MPI.Comm | None, np.float32, list[Chunk], list[tuple[MPI.Comm, list[Chunk]]]]  # of Part: here, learners, mine


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

    def __init__(self, fleet: Fleet, S: int | None = None, why: str = "asked for") -> None:
        super().__init__(fleet, S, why)
        self.fleet = fleet
        self.parts = {Scope.WORLD: self._parts(fleet.P), Scope.CLUSTER: self._parts(S) if S else []}
        self._matrices: list[tuple[int, int, np.ndarray]] = []  # address and bytes of my rows, the node's matrix
        self._works: dict[tuple[int, int, Scope], list[Work]] = {}
        self._scratch = np.empty((DEPTH, SENT) if fleet.nodes > 1 else (1, CHUNK), np.float32)

    def zeros(self, shape: tuple[int, int]) -> np.ndarray:
        """My rows [L, n], all zero, of a new matrix that the node shares. Collective."""
        L, n = shape
        node = self.fleet.node
        matrix = self.fleet.node_array((L * node.size, n))  # [learners of the node, n]
        rows = matrix[L * node.rank : L * (node.rank + 1)]
        rows[...] = 0
        self._matrices.append((rows.__array_interface__["data"][0], rows.nbytes, matrix))
        node.Barrier()
        return rows

    def mean_(self, w: np.ndarray, scope: Scope, variance: bool = False) -> float:
        work = self._work(w, scope)
        if work is None:
            return super().mean_(w, scope, variance)
        spread = 0.0
        for here, P, chunks, lanes in work:
            if here is not None:
                here.Barrier()  # everyone's rows are ready
            for chunk in chunks:
                _sum(chunk)
                spread += _finish(chunk, P, variance)
            for comm, sent in lanes:
                spread += _across(comm, sent, P, variance)
            if here is not None:
                here.Barrier()  # nobody goes on before all lanes are written
        return self.world.allreduce(spread) / self.P if variance else np.nan

    def payload_bytes(self, nbytes: int, scope: Scope) -> tuple[int, int]:
        """A rank contributes nbytes within its node; across nodes its lanes of them."""
        within = sum(nbytes for part in self.parts[scope] if part.here is not None)
        lanes = [(lane, part.lanes) for part in self.parts[scope] for lane, comm in part.mine if comm is not None]
        return within, sum(nbytes * (lane + 1) // of - nbytes * lane // of for lane, of in lanes)

    def _work(self, w: np.ndarray, scope: Scope) -> list[Work] | None:
        """What this rank does for a mean of w [L, n], made at the first one; None for rows that `zeros` did not make."""
        address, n = w.__array_interface__["data"][0], w.shape[1]
        if (key := (address, n, scope)) not in self._works:
            found = [(start, matrix) for start, size, matrix in self._matrices if start <= address < start + size]
            if not found:
                return None
            start, matrix = found[0]
            first = (address - start) // w.itemsize
            columns = matrix[:, first : first + n]  # [learners of the node, n]
            self._works[key] = [self._cut(columns[part.rows], part) for part in self.parts[scope]]
        return self._works[key]

    def _cut(self, rows: np.ndarray, part: Part) -> Work:
        """This rank's lanes of rows [learners of the group here, n], in chunks."""
        chunks, lanes = [], []
        for lane, comm in part.mine if part.learners > 1 else ():  # one learner is its own mean
            size = CHUNK if comm is None else SENT
            lo, hi = (min(rows.shape[1], -(-rows.shape[1] // LINE) * i // part.lanes * LINE) for i in (lane, lane + 1))
            cut = [rows[:, a : min(a + size, hi)] for a in range(lo, hi, size)]
            cut = [(piece, list(piece), self._scratch[k % len(self._scratch), : piece.shape[1]]) for k, piece in enumerate(cut)]
            if comm is None:
                chunks += cut
            else:
                lanes.append((comm, cut))
        return part.here, np.float32(part.learners), chunks, lanes

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


def _across(comm: MPI.Comm, chunks: list[Chunk], P: np.float32, variance: bool) -> float:
    """The chunks of a lane that other nodes have rows of too: some travel while the next is summed."""
    spread, flying = 0.0, []
    for chunk in chunks:
        if len(flying) == DEPTH:
            spread += _land(*flying.pop(0), P, variance)
        _sum(chunk)
        flying.append((chunk, comm.Iallreduce(MPI.IN_PLACE, chunk[2])))
    return spread + sum(_land(*sent, P, variance) for sent in flying)


def _land(chunk: Chunk, request: MPI.Request, P: np.float32, variance: bool) -> float:
    request.Wait()
    return _finish(chunk, P, variance)


def _sum(chunk: Chunk) -> None:
    """Add the rows up in their order."""
    _, parts, total = chunk
    if len(parts) == 1:
        total[...] = parts[0]
    else:
        np.add(parts[0], parts[1], total)
        for part in parts[2:]:
            total += part


def _finish(chunk: Chunk, P: np.float32, variance: bool) -> float:
    """Divide a chunk's sum by P and write it to every row; returns Σ ‖w̄ − w_j‖² if asked for."""
    rows, parts, mean = chunk
    mean /= P
    spread = 0.0
    if variance:
        for part in parts:
            off = part - mean
            spread += float(off @ off)
    rows[...] = mean
    return spread
