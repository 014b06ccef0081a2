"""What the codes of a wire have lost, and later averages send: in copies that a node shares.

A rank keeps what was lost in its lanes. In memory of the node the copies outlive the rank.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import numpy as np
from mpi4py import MPI

from localavg.interfaces import Array
from localavg.parallel.fleet import Fleet
from localavg.parallel.transport.in_code import InCode

Memory = Callable[[tuple[int, ...]], Array]
"""shape → zeros that the node shares; collective over all ranks"""


class Owed:
    """Two copies, in turn, of what averages of everyone have lost on the ranks of a fleet.

    wired: the transport that codes averages, None if none does. copies: by name [2, n], by the
    columns that are coded. Collective.
    """

    def __init__(self, wired: InCode | None, fleet: Fleet, memory: Memory) -> None:
        self.wired, self.fleet = wired, fleet
        self.lost = [*wired.by_column()] if wired else []  # on this rank
        self.copies = {k: memory((2, wired.how.n)) for k in wired.keeps} if wired else {}

    def copy(self, slot: int) -> None:
        """Copy what this rank keeps."""
        for key, columns, x in self.lost:
            self.copies[key][slot, columns] = x

    def restored(
        self, world: MPI.Intracomm, node: MPI.Comm, slot: int, total: int | None = None
    ) -> dict[str, Array]:
        """Return a copy for a rank that lives, by column: what `InCode` takes on other ranks.

        What those of a node have lost goes where its first living rank goes. world: the living
        ranks. node: those of them on the node of this rank. total: by what sums are divided from
        now on, if by another number than before. Collective over `world`.
        """
        old = self.fleet.node_of
        nodes = world.allgather(old[self.fleet.rank])
        speaks = nodes.index(nodes[world.rank]) == world.rank
        self._say_dropped(world, dead=len(set(nodes)) < len(set(old)))
        found: dict[str, Array] = {}
        for key, copies in self.copies.items():
            found[f"wire_{key}"] = x = copies[slot].copy()
            if key == "Q":  # alike on all nodes
                continue
            x *= speaks
            if key == "e" and self.wired is not None:
                x *= np.float32((total or self.wired.total) / self.wired.total)
            # e is the node's; r is of all, in other columns on each node
            (node if key == "e" else world).Allreduce(MPI.IN_PLACE, x)
        return found

    def _say_dropped(self, world: MPI.Intracomm, dead: bool) -> None:
        """Print what of the codes' losses is not restored. dead: whether a whole node died."""
        wired = self.wired
        clusters = wired is not None and any(map(wired.crosses, [*wired.sizes][:-1]))
        whose = ["on a node that died"] * dead + ["in averages of clusters"] * clusters
        if whose and world.rank == 0:
            print(
                f"localavg: wire: what its codes have lost {' and '.join(whose)} is dropped, and "
                "not sent later",
                file=sys.stderr,
                flush=True,
            )
