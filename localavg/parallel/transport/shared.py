"""Means in the node's shared memory: every rank reduces a slice of everyone's rows where they lie.

The rows of all learners of a node are one matrix that its ranks share. An average cuts the columns
into lanes, one a rank (`lanes.py`): nothing is packed and nothing sent within a node; between nodes
every rank sends its lane at once, in full duplex, while it reduces the next chunks. Short rows
within a node take a shorter way (`slots.py`). All ways sum in the order of the learners and divide
once, so the bits do not depend on which was taken.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from mpi4py import MPI

from localavg.parallel.fleet import Fleet
from localavg.parallel.transport.lanes import CHUNK, DEPTH, SENT, Lanes
from localavg.parallel.transport.mpi import HostMPI
from localavg.parallel.transport.slots import Slots
from localavg.scope import Scope

Work = Callable[
    ..., float
]  # (variance=False): the mean of one group; returns its sum of squares if asked for, else NaN


@dataclass(frozen=True)
class Part:
    """This rank's work in the mean of one group of learners."""

    rows: slice  # of the node's matrix: the group's learners on this node
    here: MPI.Comm | None  # the group's ranks on this node, if several
    lanes: int  # pieces that the columns are cut into
    handled: tuple[
        tuple[int, tuple[MPI.Comm, ...]], ...
    ]  # the lanes that this rank reduces, and their ranks on all nodes
    mine: slice  # of this rank's matrix: the group's learners here
    learners: int
    slots: Slots | None  # for short rows, where all of the group is on this node


class SharedMemory(HostMPI):
    """Means of rows that `zeros` made; other arrays go the way of HostMPI. Bits do not depend on
    the ranks of a node.
    """

    name = "shared"

    def __init__(
        self, fleet: Fleet, S: int | None = None, why: str = "asked for", dtype: Any = np.float32
    ) -> None:
        super().__init__(fleet, S, why, dtype)
        self.fleet = fleet
        scopes = [Scope.WORLD] + [Scope.CLUSTER] * bool(S)
        # Copies of short rows take 2 CHUNK elements a node at most: one a rank. Up to this width
        # they are twice as fast as lanes (2 and 4 ranks, 2 000 to 20 000 floats, caches cold: 14 µs
        # against 47, 32 against 74).
        rows = fleet.layout.node_learners(fleet.rank)
        self.width = CHUNK // (len(scopes) * rows) if fleet.node.size > 1 else 0
        copies = fleet.node_array((len(scopes), 2, rows, self.width), dtype)
        self.parts: dict[Scope, list[Part]] = {Scope.CLUSTER: []}
        for scope, size, pair in zip(scopes, (fleet.P, S), copies, strict=False):
            self.parts[scope] = self._parts(size, pair)
        self._matrices: list[
            tuple[int, int, np.ndarray]
        ] = []  # address and bytes of my rows, the node's matrix
        self._works: dict[tuple[int, int, Scope], list[Work]] = {}
        # By scope the rows averaged last, most often the same again: their mean without the
        # variance, and what it consists of.
        self._last: list[tuple[np.ndarray | None, Work | None, list[Work]]] = [
            (None, None, [])
        ] * len(Scope)
        self._scratch = np.empty((DEPTH, SENT) if fleet.nodes > 1 else (1, CHUNK), dtype)

    def zeros(self, shape: tuple[int, int]) -> np.ndarray:
        """My rows [L, n], all zero, of a new matrix that the node shares. Collective."""
        L, n = shape
        layout, rank = self.layout, self.fleet.rank
        matrix = self.fleet.node_array((layout.node_learners(rank), n), self.dtype)
        first = layout.first_row(rank)
        rows = matrix[first : first + L]
        rows[...] = 0
        self._matrices.append((rows.__array_interface__["data"][0], rows.nbytes, matrix))
        self.fleet.node.Barrier()
        return rows

    def mean_(self, w: np.ndarray, scope: Scope, variance: bool = False) -> float:
        last, way, works = self._last[scope]
        if last is w and not variance:
            return way()
        if last is not w:
            works = self._work(w, scope)
            if works is None:
                return super().mean_(w, scope, variance)
            self._last[scope] = w, works[0] if len(works) == 1 else partial(_in_turn, works), works
        spread = sum(work(variance) for work in works)
        return self.world.allreduce(spread) / self.P if variance else np.nan

    def payload_bytes(self, nbytes: int, scope: Scope) -> tuple[int, int]:
        """A rank contributes nbytes within its node; across nodes its lanes of them."""
        within = sum(nbytes for part in self.parts[scope] if part.here is not None)
        lanes = [
            (lane, part.lanes)
            for part in self.parts[scope]
            for lane, comms in part.handled
            if comms
        ]
        return within, sum(nbytes * (lane + 1) // of - nbytes * lane // of for lane, of in lanes)

    def _work(self, w: np.ndarray, scope: Scope) -> list[Work] | None:
        """What this rank does for a mean of w [L, n], made at the first one; None for rows that
        `zeros` did not make.
        """
        address, n = w.__array_interface__["data"][0], w.shape[1]
        if (key := (address, n, scope)) not in self._works:
            found = [
                (start, matrix)
                for start, size, matrix in self._matrices
                if start <= address < start + size
            ]
            if not found:
                return None
            start, matrix = found[0]
            first = (address - start) // w.itemsize
            columns = matrix[:, first : first + n]  # [learners of the node, n]
            self._works[key] = [
                self._way(w, columns[part.rows], part) for part in self.parts[scope]
            ]
        return self._works[key]

    def _way(self, w: np.ndarray, rows: np.ndarray, part: Part) -> Work:
        """How the mean of a group is taken: w [L, n] are my rows, `rows` [learners of the group
        here, n] the group's.
        """
        if part.slots is not None and rows.shape[1] <= self.width:
            return part.slots.way(w[part.mine])
        return Lanes(rows, part.here, part.lanes, part.handled, part.learners, self._scratch).mean_

    def _parts(self, S: int, copies: np.ndarray) -> list[Part]:
        """This rank's parts of the clusters of S learners; copies [2, learners of the node, width]:
        for their short rows.

        Collective over their members, in the order of the clusters.
        """
        layout = self.layout
        return [
            self._part(cluster, copies)
            for cluster in layout.clusters(S)
            if self.fleet.rank in layout.ranks_of(cluster)
        ]

    def _part(self, cluster: range, copies: np.ndarray) -> Part:
        layout, rank = self.layout, self.fleet.rank
        by_node = layout.by_node(layout.ranks_of(cluster))
        together = self._communicator(by_node[layout.node_of[rank]])
        handled, lanes = [], layout.handlers(cluster)
        for lane, handlers in enumerate(lanes):
            if rank in handlers:
                # MPI may reduce to the first rank and broadcast from it: each in turn, so that no
                # link carries it all
                turns = range(min(len(handlers), DEPTH)) if len(handlers) > 1 else ()
                handled.append(
                    (lane, tuple(self._communicator(handlers[i:] + handlers[:i]) for i in turns))
                )
        rows, mine = layout.node_rows(rank, cluster), layout.rows(rank, cluster)
        slots = None
        if together is not None and len(by_node) == 1:
            first = layout.first_row(rank) - rows.start  # row of the group that my matrix begins at
            slots = Slots(together, copies[:, rows], slice(first + mine.start, first + mine.stop))
        return Part(rows, together, len(lanes), tuple(handled), mine, len(cluster), slots)

    def _communicator(self, ranks: list[int]) -> MPI.Comm | None:
        if ranks == list(range(self.world.size)) and len(ranks) > 1:
            return self.world  # which others use too, so its data may still be in cache
        return self.world.Create_group(self.world.group.Incl(ranks)) if len(ranks) > 1 else None


def _in_turn(works: list[Work]) -> float:
    for work in works:
        work()
    return np.nan
