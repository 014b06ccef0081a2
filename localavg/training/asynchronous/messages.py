"""The roles of the ranks, the messages between them, and waiting that leaves the core free.

The last ranks are the servers, the others hold the learners. An exchange of learner j has four
kinds of messages: a note to the first server, a part of its message to every server, a part of the
reply from every server, and a note from the first server that tells it to continue or to stop. All
messages are two-sided, and nonblocking unless they are known to be on their way.

MPI keeps a core busy while it waits. Here a rank that has nothing to do polls (Iprobe, Testall) and
sleeps between polls. The first sleep takes FIRST_S; each sleep is twice as long as the one before,
up to LONGEST_S. So an idle rank leaves its core to others, and notices a message at most LONGEST_S
late.
"""

from __future__ import annotations

import time

import numpy as np
from mpi4py import MPI

from localavg.errors import UserError, bad
from localavg.parallel.layout import Layout

FIRST_S, LONGEST_S = 2e-5, 1e-3
# the numbers of a learner's note, float64
NOTE = ("t", "steps", "losses", "compute_s", "communicate_s", "wait_s", "data_s")
# the first server's orders: exchange, do not exchange, send x̃ for evaluation, end
APPLY, REFUSE, KEEP, END = 1, 0, 2, 3


class Nap:
    """Sleeps that become longer until a message comes."""

    def __init__(self) -> None:
        self.woken()

    def woken(self) -> None:
        """Start again with the shortest sleep, because a message came."""
        self._next_s = FIRST_S

    def sleep(self) -> None:
        """Sleep, and make the next sleep longer."""
        time.sleep(self._next_s)
        self._next_s = min(2 * self._next_s, LONGEST_S)


class Roles:
    """P learners on the first ranks of `world`, the center variable on the last `servers` ranks.

    notes, vectors: two separate communicators, so that messages do not mix. The constructor is
    collective. Raises UserError if there are too few ranks or learners.
    """

    def __init__(self, world: MPI.Intracomm, P: int | None, servers: int, name: str) -> None:
        self.clients = clients = world.size - servers
        if clients < 1:
            ranks = f"{world.size} rank{'s' * (world.size > 1)}"
            raise bad(
                "servers",
                servers,
                f"of {ranks} none is left for the learners of {name}; use mpirun -n {servers + 1} "
                "or more, fewer servers, or `simulate`",
            )
        self.P = clients if P is None else P
        if self.P < clients:
            raise UserError(
                f"{P} learner{'s' * (P != 1)} on {clients} ranks, servers not counted: every rank "
                f"must hold one at least; use {clients} learners or more, or mpirun -n "
                f"{self.P + servers}"
            )
        self.world, self.layout = world, Layout(self.P, (0,) * clients)
        self.servers = range(clients, world.size)
        self.first = world.rank == clients
        self.learners = self.layout.learners(world.rank) if world.rank < clients else range(0)
        self.notes, self.vectors = world.Dup(), world.Dup()

    def parts(self, d: int) -> list[slice]:
        """Return the part of a vector [d] that each server holds."""
        ends = np.linspace(0, d, len(self.servers) + 1).astype(int).tolist()
        return [slice(a, b) for a, b in zip(ends, ends[1:], strict=False)]

    def meet(self) -> None:
        """Wait until all ranks have called this, and sleep meanwhile. Collective."""
        request, nap = self.world.Ibarrier(), Nap()
        while not request.Test():
            nap.sleep()

    def free(self) -> None:
        """Free the communicators. Collective."""
        self.notes.Free()
        self.vectors.Free()
