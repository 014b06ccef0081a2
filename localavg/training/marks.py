"""Which of the last two copies of a run are whole, as the ranks of a node mark it in shared memory.

A rank that dies leaves its marks, so the others know what it had finished.
"""

from __future__ import annotations

import numpy as np
from mpi4py import MPI

from localavg.parallel import survive
from localavg.parallel.fleet import Fleet

NEVER = -1
"""the update of a copy that is not there"""


class Marks:
    """Marks [2, ranks of the node] of the node's copies in two slots.

    The mark of a copy after update t is t, and while it is made -2 - t.
    """

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.marks = np.full((2, 1), NEVER)

    def share(self) -> None:
        """Take memory that the node shares. Collective."""
        node = self.fleet.node
        marks = self.fleet.node_array((2, node.size), np.int64)
        marks[:, node.rank] = NEVER
        node.Barrier()
        self.marks = marks

    def begin(self, slot: int, t: int) -> None:
        """Mark that this rank makes its copy after update t."""
        self.marks[slot, self.fleet.node.rank] = -2 - t

    def finish(self, slot: int, t: int) -> None:
        """Mark that this rank has made it."""
        self.marks[slot, self.fleet.node.rank] = t

    def slot(self, t: int) -> int:
        """Return the slot of the copy after update t, which all ranks of the node have made."""
        (slot,) = (i for i in (0, 1) if set(self.marks[i].tolist()) == {t})
        return slot

    def last(self, world: MPI.Intracomm) -> int:
        """Return t of the copy to go on from, NEVER if there is none. Collective over `world`.

        world: the living ranks. It is the last copy that all ranks have made, dead ones too: an
        average that a rank did not live to finish may be wrong on the others. What a node without a
        living rank has made is not known; but all had made those before anyone's last average.
        """
        fleet = self.fleet
        living = set(range(fleet.ranks)) - {*survive.lost(fleet.world, world)}
        known = {fleet.node_of[r] for r in living} == {*fleet.node_of}
        begun = max(world.allgather(max(np.maximum(self.marks, -2 - self.marks).flat)))
        both = (set(marks.tolist()) for marks in self.marks)
        whole = [ts.pop() for ts in both if len(ts) == 1]
        good = [t for t in whole if t > NEVER and (known or t < begun)]
        return int(min(world.allgather(max(good, default=NEVER))))
