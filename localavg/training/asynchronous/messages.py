"""Who is who among the ranks, what travels between them, and how to wait without burning a core.

The last ranks are the servers, the others hold the learners. An exchange of learner j is: a note to
the first server, the part of its message that each server holds to that server, each server's part
of the reply, and a note from the first server that says whether to go on. Everything is two-sided
and nonblocking, but for messages known to be on their way.

MPI waits by spinning. Here everyone who has nothing to do polls (Iprobe, Testall) and sleeps
between polls, from FIRST_S on twice as long each time up to LONGEST_S: an idle rank leaves its core
to others, at the price of noticing a message at most LONGEST_S late after a long silence.
"""

from __future__ import annotations

import time

import numpy as np
from mpi4py import MPI

from localavg.errors import UserError, bad
from localavg.parallel.layout import Layout

FIRST_S, LONGEST_S = 2e-5, 1e-3
NOTE = (
    "t",
    "steps",
    "losses",
    "compute_s",
    "communicate_s",
    "wait_s",
    "data_s",
)  # float64, from a learner's rank
APPLY, REFUSE, KEEP, END = (
    1,
    0,
    2,
    3,
)  # what the first server says: exchange, do not, keep x̃ for evaluation, go home


class Nap:
    """Sleeps that grow until something happens."""

    def __init__(self) -> None:
        self.woken()

    def woken(self) -> None:
        """Something happened."""
        self._next_s = FIRST_S

    def sleep(self) -> None:
        """Nothing happened."""
        time.sleep(self._next_s)
        self._next_s = min(2 * self._next_s, LONGEST_S)


class Roles:
    """P learners on the first ranks of `world`, the center variable of d numbers on the last
    `servers` ranks. Collective.

    notes, vectors: communicators of their own, so that nothing mixes. Raises UserError where the
    numbers do not fit.
    """

    def __init__(self, world: MPI.Intracomm, P: int | None, servers: int, name: str) -> None:
        self.clients = clients = world.size - servers
        if clients < 1:
            ranks = f"{world.size} rank{'s' * (world.size > 1)}"
            raise bad(
                "servers",
                servers,
                f"of {ranks} none is left for the learners of {name}; use mpirun -n {servers + 1} "
                "or "
                f"more, fewer servers, or `simulate`",
            )
        self.P = clients if P is None else P
        if self.P < clients:
            raise UserError(
                f"{P} learner{'s' * (P != 1)} on {clients} ranks, servers not counted: "
                f"every rank must hold one at least; use {clients} learners or more, "
                f"or mpirun -n {self.P + servers}"
            )
        self.world, self.layout = world, Layout(self.P, (0,) * clients)
        self.servers = range(clients, world.size)
        self.first = world.rank == clients
        self.learners = self.layout.learners(world.rank) if world.rank < clients else range(0)
        self.notes, self.vectors = world.Dup(), world.Dup()

    def parts(self, d: int) -> list[slice]:
        """Which part of a vector [d] each server holds."""
        ends = np.linspace(0, d, len(self.servers) + 1).astype(int).tolist()
        return [slice(a, b) for a, b in zip(ends, ends[1:], strict=False)]

    def meet(self) -> None:
        """Wait for all ranks, asleep."""
        request, nap = self.world.Ibarrier(), Nap()
        while not request.Test():
            nap.sleep()

    def free(self) -> None:
        """Give the communicators back. Collective."""
        self.notes.Free()
        self.vectors.Free()
