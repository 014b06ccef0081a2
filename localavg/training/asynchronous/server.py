"""The ranks that hold the center variable x̃, each a part of it.

The first server decides the order of the exchanges, which is the order in which notes reach it, and
sends it to the other servers. So every part of x̃ has the same exchanges in the same order. The log
of a run is one list, and replaying it gives the same bits.

The first server puts all notes that have come into a queue, and serves the whole queue before it
looks for new notes. A learner has one note at a time, so no learner is served twice while another
one waits.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator

import numpy as np
from mpi4py import MPI

from localavg.algorithms.center import CenterRule
from localavg.interfaces import Array
from localavg.training.asynchronous.log import Log
from localavg.training.asynchronous.messages import APPLY, END, KEEP, NOTE, REFUSE, Nap, Roles
from localavg.training.ending import Diverged


class Server:
    """One server: its part x̃ [m] of the center [d], updated in place."""

    def __init__(self, rule: CenterRule, center: Array, roles: Roles) -> None:
        self.rule, self.center, self.roles = rule, center, roles
        self.part = part = roles.parts(len(center))[roles.world.rank - roles.clients]
        self.x = center[part]  # [m]
        self.n = min(max(rule.n - part.start, 0), part.stop - part.start)  # trained numbers in x
        self.message = np.empty_like(self.x)
        self.nap = Nap()
        self._idle: list[Array] = []  # buffers of replies
        self._sent: list[tuple[MPI.Request, Array]] = []

    def exchange(self, j: int, what: int) -> None:
        """Receive learner j's message, which is on its way, and send the reply without waiting."""
        vectors, rank = self.roles.vectors, self.roles.layout.rank_of(j)
        vectors.Recv(self.message, rank, j)
        self._idle += [buffer for request, buffer in self._sent if request.Test()]
        # A request is false when it is complete.
        self._sent = [(request, buffer) for request, buffer in self._sent if request]
        reply = self._idle.pop() if self._idle else np.empty_like(self.x)  # [m]
        if what == APPLY:
            self.rule.answer_(self.x, self.message, reply, self.n)
        else:
            reply[...] = self.x
        self._sent.append((vectors.Isend(reply, rank, j), reply))

    def follow(self) -> None:
        """Follow the first server's orders until the order END."""
        notes, vectors, first = self.roles.notes, self.roles.vectors, self.roles.servers[0]
        order = np.zeros(2, np.int64)
        while True:
            while not notes.Iprobe(first):
                self.nap.sleep()
            self.nap.woken()
            notes.Recv(order, first)
            j, what = order.tolist()
            if what == END:
                break
            if what == KEEP:
                vectors.Send(self.x, first, self.roles.P)
            else:
                self.exchange(j, what)
        self.finish()

    def finish(self) -> None:
        """Wait until all replies are sent."""
        for request, _ in self._sent:
            while not request.Test():
                self.nap.sleep()


class FirstServer(Server):
    """The server that decides the order, and keeps the log and copies of x̃.

    The copies are evaluated after the run: an evaluation during the run would delay the learners,
    or let them compute in time that is not counted. A copy takes d floats of this rank's memory.
    clock: returns the seconds since the start. replay: the learners in the order to repeat, None
    for the order of arrival.
    """

    def __init__(
        self,
        rule: CenterRule,
        center: Array,
        roles: Roles,
        log: Log,
        clock: Callable[[], float],
        replay: list[int] | None = None,
    ) -> None:
        super().__init__(rule, center, roles)
        self.log, self.clock, self.replay = log, clock, replay
        self.copies: list[tuple[int, float, Array]] = []  # (U, wall_s, x̃ [d])
        self._split = np.zeros(
            (roles.clients, 4)
        )  # the seconds of NOTE, a row per rank with learners

    def lead(self, T: int) -> str:
        """Serve all learners until each has made T updates or was stopped.

        Return why they were stopped, "" if they were not.
        """
        left, why = self.roles.P, ""
        for j, note in self._in_order():
            t, steps, losses, *seconds = note.tolist()
            rank = self.roles.layout.rank_of(j)
            self._split[rank] = seconds
            what = REFUSE if why else APPLY
            self._tell(j, what)
            self.exchange(j, what)
            left -= what == REFUSE or t == T
            due = False
            if what == APPLY:
                split = dict(zip(NOTE[3:], self._split.mean(axis=0).tolist(), strict=True))
                try:
                    due = self.log.exchanged(
                        j, int(t), int(steps), losses, self.x, self.clock(), split
                    )
                except Diverged as e:
                    why = str(e)
                    left -= t != T  # this learner is told to stop, too
            self.roles.notes.Send(np.array([REFUSE if why else APPLY], np.int64), rank, j)
            if due:
                self._keep()
            if not left:
                break
        self._tell(-1, END)
        self.finish()
        return why

    def _in_order(self) -> Iterator[tuple[int, Array]]:
        """Yield learners and their notes, in the order of arrival or of the run to replay."""
        notes, status = self.roles.notes, MPI.Status()
        here: dict[int, Array] = {}
        arrived: deque[int] = deque()
        wanted = iter(self.replay or ())
        following = next(wanted, None)
        while True:
            while notes.Iprobe(MPI.ANY_SOURCE, MPI.ANY_TAG, status):
                j = status.tag
                here[j] = np.empty(len(NOTE))
                notes.Recv(here[j], status.source, j)
                arrived.append(j)
            if not here or (following is not None and following not in here):
                self.nap.sleep()
                continue
            self.nap.woken()
            if following is not None:
                arrived.remove(following)
                yield following, here.pop(following)
                following = next(wanted, None)
                continue
            while arrived:
                j = arrived.popleft()
                yield j, here.pop(j)

    def _tell(self, j: int, what: int) -> None:
        for server in self.roles.servers[1:]:
            self.roles.notes.Send(np.array([j, what], np.int64), server)

    def _keep(self) -> None:
        """Add a copy of the present center to `copies`, with the other servers' parts."""
        copy = np.empty_like(self.center)  # [d]
        copy[self.part] = self.x
        self._tell(-1, KEEP)
        parts = self.roles.parts(len(copy))
        for server, part in zip(self.roles.servers[1:], parts[1:], strict=True):
            self.roles.vectors.Recv(copy[part], server, self.roles.P)
        self.copies.append((self.log.U, self.log.wall_s, copy))
