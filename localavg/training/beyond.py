"""Copies of learners' rows on the next node, which outlive their own node."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import chain

import numpy as np
from mpi4py import MPI

from localavg.interfaces import Array
from localavg.parallel.fleet import Fleet

Memory = Callable[..., Array]
"""(shape, dtype=float32) → an array that the node shares; collective over all ranks"""


class Beyond:
    """What this node keeps of the learners of the node before it; the first follows the last.

    learners: those of the node before, in the order of their rows. rows: by name, the copies
    [2, learners, m]. losses: [2, learners, updates]. Every rank sends its learners' rows to one
    rank of the next node. Collective.
    """

    def __init__(
        self, fleet: Fleet, widths: Mapping[str, int], updates: int, memory: Memory
    ) -> None:
        layout, rank, k = fleet.layout, fleet.rank, fleet.layout.node_of[fleet.rank]
        nodes = layout.by_node(range(fleet.ranks))
        here, before, after = nodes[k], nodes[(k - 1) % fleet.nodes], nodes[(k + 1) % fleet.nodes]
        i = here.index(rank)
        self.to = after[i % len(after)]
        self.sources = [r for q, r in enumerate(before) if q % len(here) == i]
        self.learners = [j for r in before for j in layout.learners(r)]
        self.of_source = {
            r: slice(layout.first_row(r), layout.first_row(r) + layout.counts[r])
            for r in self.sources
        }
        n = len(self.learners)
        self.rows = {name: memory((2, n, m)) for name, m in widths.items()}
        self.losses = memory((2, n, updates), np.float64)
        self.comm = fleet.everyone()
        self._losses: list[Array] = []  # on their way: MPI may read them after a failure

    def exchange(
        self, slot: int, mine: Mapping[str, Array], half: int, new: Array, at: int
    ) -> None:
        """Send what this rank has just copied to the next node, and take that of the one before.

        slot, mine: the copies' turn, and by name those of the rank's learners [L, m]. half, new,
        at: the losses' turn, those [L, updates] that are new, and the number of those before.
        Collective.
        """
        got = [np.empty((s.stop - s.start, new.shape[1])) for s in self.of_source.values()]
        self._losses = [np.ascontiguousarray(new), *got]
        received = [
            self.comm.Irecv(row, source)
            for source, rows in self.of_source.items()
            for row in chain(*(self.rows[name][slot, rows] for name in mine))
        ]
        received += [self.comm.Irecv(x, r, 1) for x, r in zip(got, self.sources, strict=True)]
        sent = [self.comm.Isend(row, self.to) for row in chain(*mine.values())]
        sent.append(self.comm.Isend(self._losses[0], self.to, 1))
        MPI.Request.Waitall([*received, *sent])
        for x, rows in zip(got, self.of_source.values(), strict=True):
            self.losses[half, rows, at : at + x.shape[1]] = x
