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
from collections.abc import Sequence

import numpy as np
from mpi4py import MPI

from localavg.errors import UserError, bad
from localavg.parallel.layout import Layout
from localavg.parallel.survive import Revocable

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

    notes, vectors: two separate communicators, so that messages do not mix. held: the learners of
    each of the first ranks, if they are not all P as evenly as possible. made: all communicators.
    The constructor is collective. Raises UserError if there are too few ranks or learners.
    """

    def __init__(
        self,
        world: MPI.Intracomm,
        P: int | None,
        servers: int,
        name: str,
        held: Sequence[Sequence[int]] | None = None,
        made: list[Revocable] | None = None,
    ) -> None:
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
        self.world, self.servers = world, range(clients, world.size)
        self.first = world.rank == clients
        if held is None:
            layout = Layout(self.P, (0,) * clients)
            held = [layout.learners(r) for r in range(clients)]
        self.held = held
        self.rank_of = {j: r for r, learners in enumerate(held) for j in learners}
        self.learners = held[world.rank] if world.rank < clients else range(0)
        self.serves = world.rank >= clients
        self.notes = world.Dup()
        self.made: list[Revocable] = [] if made is None else made
        self.made += [world, self.notes]
        self.vectors = world.Dup()
        self.made.append(self.vectors)

    @property
    def per_rank(self) -> int | list[int]:
        """How many learners a rank holds; where ranks differ, the fewest and the most."""
        few, many = min(map(len, self.held)), max(map(len, self.held))
        return few if few == many else [few, many]

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


def span(learners: Sequence[int]) -> range:
    """Return a range that has these learners; range(1) for none."""
    return range(min(learners), max(learners) + 1) if learners else range(1)
