"""Means in the node's shared memory. Every rank reduces a slice of all rows in place.

The rows of all learners of a node are one matrix that its ranks share. An average cuts the columns
into lanes, one for each rank (`lanes.py`). Within a node nothing is packed and nothing is sent.
Between nodes every rank sends its lane, in full duplex, while it reduces the next chunks. Short
rows within a node take a shorter way (`slots.py`). All ways sum in the order of the learners and
divide once, so the bits do not depend on the way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from mpi4py import MPI
from numpy.typing import DTypeLike

from localavg.interfaces import Step
from localavg.parallel.fleet import Fleet
from localavg.parallel.transport.lanes import CHUNK, DEPTH, Lanes, Weights
from localavg.parallel.transport.mixing import Mix, Mixing, lanes, route
from localavg.parallel.transport.mpi import HostMPI
from localavg.parallel.transport.slots import Slots
from localavg.scope import Scope

Work = Callable[..., float]
"""(variance=False): set one group's rows to their mean; return Σ ‖w̄ − w_j‖² if asked, else NaN

Where there is a step, or learners count by weights, these two are the other arguments.
"""


@dataclass(frozen=True)
class Part:
    """This rank's work in the mean of one group of learners."""

    rows: slice  # of the node's matrix: the group's learners on this node
    here: MPI.Comm | None  # the group's ranks on this node, if several
    lanes: int  # pieces that the columns are cut into
    # the lanes that this rank reduces, each with the communicators of its ranks on all nodes
    handled: tuple[tuple[int, tuple[MPI.Comm, ...]], ...]
    mine: slice  # of this rank's matrix: the group's learners here
    learners: int
    slots: Slots | None  # for short rows, where all of the group is on this node


class SharedMemory(HostMPI):
    """Means of rows that `zeros` made; other arrays are averaged as HostMPI does.

    On one node and on two, the bits do not depend on how many ranks a node has. On more, MPI
    chooses the order in which it sums the nodes, also by the length.
    """

    name = "shared"

    def __init__(
        self,
        fleet: Fleet,
        clusters: Sequence[int] = (),
        why: str = "asked for",
        dtype: DTypeLike = np.float32,
    ) -> None:
        super().__init__(fleet, clusters, why, dtype)
        self.fleet = fleet
        # Copies of short rows take 2 CHUNK elements a node at most: one a rank. Up to this width
        # they are twice as fast as lanes (2 and 4 ranks, 2 000 to 20 000 floats, caches cold: 14 µs
        # against 47, 32 against 74).
        rows = fleet.layout.node_learners(fleet.rank)
        self.width = CHUNK // (len(self.sizes) * rows) if fleet.node.size > 1 else 0
        copies = fleet.node_array((len(self.sizes), 2, rows, self.width), dtype)
        self.parts = {
            scope: self._parts(S, pair)
            for (scope, S), pair in zip(self.sizes.items(), copies, strict=True)
        }
        # address and bytes of this rank's rows, the node's matrix
        self._matrices: list[tuple[int, int, np.ndarray]] = []
        self._works: dict[tuple[int, int, Scope, bool], list[Work]] = {}
        # For each scope, by any way and in lanes, the rows averaged last, which are most often the
        # same again: the function that averages them, and its parts, which can return the variance.
        none: tuple[np.ndarray | None, Work, list[Work]] = None, _in_turn, []
        self._last = {(scope, in_lanes): none for scope in self.sizes for in_lanes in (False, True)}
        here = fleet.layout.by_node(range(fleet.ranks))[fleet.layout.node_of[fleet.rank]]
        self._learners = [j for r in here for j in fleet.layout.learners(r)]  # of the node's rows
        self._scratch = np.empty((DEPTH if fleet.nodes > 1 else 1, CHUNK), dtype)

    def zeros(self, shape: tuple[int, int]) -> np.ndarray:
        """Make this rank's zero rows [L, n] of a new matrix that the node shares. Collective."""
        L, n = shape
        layout, rank = self.layout, self.fleet.rank
        matrix = self.fleet.node_array((layout.node_learners(rank), n), self.dtype)
        first = layout.first_row(rank)
        rows = matrix[first : first + L]
        rows[...] = 0
        self._matrices.append((rows.__array_interface__["data"][0], rows.nbytes, matrix))
        self.fleet.node.Barrier()
        return rows

    def common(self, shape: tuple[int, int]) -> np.ndarray:
        """Make zero rows [k, n] that the node shares, for state of all learners. Collective."""
        return self.fleet.node_array(shape, self.dtype)

    def mean_(
        self, w: np.ndarray, scope: Scope, variance: bool = False, step: Step | None = None
    ) -> float:
        """Set every row of w [L, n] to the mean of its group, in place; see `Transport.mean_`.

        Raises TypeError for a step on rows that `zeros` did not make.
        """
        weights = Weights.of(self.weights, scope, self._learners)
        in_lanes = step is not None or weights is not None
        last, way, works = self._last[scope, in_lanes]
        if last is w and not variance:
            return way(False, step, weights) if in_lanes else way()
        if last is not w:
            found = self._work(w, scope, in_lanes)
            if found is None:
                if step is not None:
                    raise TypeError("a step needs rows that this transport made")
                return super().mean_(w, scope, variance)
            works = found
            way = works[0] if len(works) == 1 else partial(_in_turn, works)
            self._last[scope, in_lanes] = w, way, works
        spread = sum(work(variance, *((step, weights) if in_lanes else ())) for work in works)
        return self._over_learners(spread, weights) if variance else np.nan

    def _mix(self, w: np.ndarray, W: np.ndarray) -> Mixing:
        columns = self._columns(w)
        if columns is None:
            return super()._mix(w, W)
        layout, rank = self.layout, self.fleet.rank
        node_of = [layout.node_of[layout.rank_of(j)] for j in range(self.P)]
        (part,) = self.parts[Scope.WORLD]
        mine = lanes(layout, rank, w.shape[1])
        way = route(W, node_of, layout.node_of[rank])
        return Mix(columns, way, part.here, mine, self._messages())

    def mix_bytes(self, nbytes: int, W: np.ndarray) -> np.ndarray:
        """Return each rank's bytes [R, 2] in one mix by W, as if it sent its rows itself.

        A row counts once within its node if a learner of another rank there takes it, and once for
        every other node that it goes to.
        """
        layout = self.layout
        sent = np.zeros((layout.ranks, 2), np.int64)
        for own, takers in self._takers(W):
            nodes, home = {layout.node_of[rank] for rank in takers}, layout.node_of[own]
            sent[own] += [nbytes * (home in nodes), nbytes * len(nodes - {home})]
        return sent

    def payload_bytes(self, nbytes: int, scope: Scope) -> tuple[int, int]:
        """Return this rank's bytes in one mean: nbytes within its node, its lanes across nodes."""
        within = sum(nbytes for part in self.parts[scope] if part.here is not None)
        lanes = [
            (lane, part.lanes)
            for part in self.parts[scope]
            for lane, comms in part.handled
            if comms
        ]
        return within, sum(nbytes * (lane + 1) // of - nbytes * lane // of for lane, of in lanes)

    def _work(self, w: np.ndarray, scope: Scope, in_lanes: bool) -> list[Work] | None:
        """Return this rank's work in a mean of w [L, n], made at the first mean of these rows.

        None for rows that `zeros` did not make.
        """
        address, n = w.__array_interface__["data"][0], w.shape[1]
        if (key := (address, n, scope, in_lanes)) not in self._works:
            columns = self._columns(w)  # [learners of the node, n]
            if columns is None:
                return None
            self._works[key] = [
                self._way(w, columns[part.rows], part, in_lanes) for part in self.parts[scope]
            ]
        return self._works[key]

    def _columns(self, w: np.ndarray) -> np.ndarray | None:
        """Return the columns of w [L, n] in the matrix [learners of the node, …] that has them.

        None for rows that `zeros` did not make.
        """
        address = w.__array_interface__["data"][0]
        for start, size, matrix in self._matrices:
            if start <= address < start + size:
                first = (address - start) // w.itemsize
                return matrix[:, first : first + w.shape[1]]
        return None

    def _way(self, w: np.ndarray, rows: np.ndarray, part: Part, in_lanes: bool) -> Work:
        """Choose how the mean of a group is taken.

        w [L, n] are this rank's rows, `rows` [learners of the group on this node, n] the group's.
        in_lanes: whether lanes are asked for. A step needs them, as one rank makes it for a column,
        and so do weights of learners. For short rows they are as fast as slots after which each
        rank steps for itself (2 ranks, 2 000 and 15 000 floats: 16 and 37 µs against 16 and 48).
        """
        if part.slots is not None and rows.shape[1] <= self.width and not in_lanes:
            return part.slots.way(w[part.mine])
        return Lanes(
            rows, part.here, part.lanes, part.handled, part.learners, self._scratch, self._spread
        ).mean_

    def _parts(self, S: int, copies: np.ndarray) -> list[Part]:
        """Return this rank's parts of the clusters of S learners, in the order of the clusters.

        copies [2, learners of the node, width]: memory for their short rows. Collective over the
        members of each cluster.
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
                # MPI may reduce to the first rank and broadcast from it. Each rank is the first in
                # turn, so that no link carries everything (`lanes.py` takes the turns).
                turns = range(min(len(handlers), DEPTH)) if len(handlers) > 1 else ()
                rotated = (self._communicator(handlers[i:] + handlers[:i]) for i in turns)
                handled.append((lane, tuple(comm for comm in rotated if comm is not None)))
        rows, mine = layout.node_rows(rank, cluster), layout.rows(rank, cluster)
        slots = None
        if together is not None and len(by_node) == 1:
            first = layout.first_row(rank) - rows.start  # the group's row where my matrix begins
            slots = Slots(
                together,
                copies[:, rows],
                slice(first + mine.start, first + mine.stop),
                self._spread,
            )
        return Part(rows, together, len(lanes), tuple(handled), mine, len(cluster), slots)

    def _communicator(self, ranks: list[int]) -> MPI.Comm | None:
        if ranks == list(range(self.world.size)) and len(ranks) > 1:
            return self.world  # others use it too, so its data may still be in cache
        return self.fleet.communicator(ranks) if len(ranks) > 1 else None


def _in_turn(works: Sequence[Work] = (), *how: object) -> float:
    for work in works:
        work(*how)
    return np.nan
