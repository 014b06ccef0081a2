"""The ranks that hold the center variable x̃, each a part of it.

The first server decides the order of the exchanges, which is the order in which notes reach it, and
sends it to the other servers. So every part of x̃ has the same exchanges in the same order. The log
of a run is one list, and replaying it gives the same bits.

A learner's message may take long to arrive: where the link is no shared memory, a rank that
computes does not send on. So a server receives all messages at once, and only those that have
arrived whole, at every server, are served. They wait in a queue, and the first server serves the
whole queue before it looks for new ones. A learner has one message at a time, so no learner is
served twice while another one waits.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator

import numpy as np
from mpi4py import MPI

from localavg.algorithms.center import CenterRule
from localavg.interfaces import Array
from localavg.training.asynchronous.log import Log
from localavg.training.asynchronous.messages import APPLY, END, KEEP, NOTE, REFUSE, Nap, Roles
from localavg.training.ending import Diverged

COMPUTE, WAIT = (NOTE[3:].index(name) for name in ("compute_s", "wait_s"))


class Server:
    """One server: its part x̃ [m] of the center [d], updated in place."""

    def __init__(self, rule: CenterRule, center: Array, roles: Roles) -> None:
        self.rule, self.center, self.roles = rule, center, roles
        self.part = part = roles.parts(len(center))[roles.world.rank - roles.clients]
        self.x = center[part]  # [m]
        self.n = min(max(rule.n - part.start, 0), part.stop - part.start)  # trained numbers in x
        self.nap = Nap()
        self._coming: dict[int, MPI.Request] = {}  # by learner
        self._messages: dict[int, Array] = {}  # by learner; [m] each, whole if not in _coming
        self._idle: list[Array] = []  # buffers [m] of messages and replies
        self._sent: list[tuple[MPI.Request, Array]] = []

    def arrived(self) -> list[int]:
        """Receive what comes; return the learners whose messages are whole since the last call."""
        vectors, status = self.roles.vectors, MPI.Status()
        while vectors.Iprobe(MPI.ANY_SOURCE, MPI.ANY_TAG, status) and status.tag < self.roles.P:
            j = status.tag
            self._messages[j] = self._idle.pop() if self._idle else np.empty_like(self.x)
            self._coming[j] = vectors.Irecv(self._messages[j], status.source, j)
        whole = [j for j, request in self._coming.items() if request.Test()]
        for j in whole:
            del self._coming[j]
        return whole

    def exchange(self, j: int, what: int) -> None:
        """Serve learner j, whose message is here, and send the reply without waiting."""
        vectors, rank = self.roles.vectors, self.roles.layout.rank_of(j)
        message = self._messages.pop(j)
        self._idle += [buffer for request, buffer in self._sent if request.Test()]
        # A request is false when it is complete.
        self._sent = [(request, buffer) for request, buffer in self._sent if request]
        reply = self._idle.pop() if self._idle else np.empty_like(self.x)  # [m]
        if what == APPLY:
            self.rule.answer_(self.x, message, reply, self.n)
        else:
            reply[...] = self.x
        self._idle.append(message)
        self._sent.append((vectors.Isend(reply, rank, j), reply))

    def follow(self) -> None:
        """Tell the first server what has arrived, and follow its orders until the order END."""
        notes, vectors, first = self.roles.notes, self.roles.vectors, self.roles.servers[0]
        order = np.zeros(2, np.int64)
        while True:
            for j in self.arrived():
                notes.Send(np.zeros(0), first, j)
            if not notes.Iprobe(first):
                if self._coming:
                    self.nap.woken()
                self.nap.sleep()
                continue
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
        # the seconds of NOTE, a row per rank with learners
        self._split = np.zeros((roles.clients, 4))
        self._left = np.array(roles.layout.counts)  # [clients] learners that are not at the end
        self._notes: dict[int, Array] = {}  # of learners whose message is not whole everywhere
        self._parts: Counter[int] = Counter()  # servers at which a learner's message has arrived

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
            self._left[rank] -= t == T
            due = False
            if what == APPLY:
                wall_s = self.clock()
                try:
                    due = self.log.exchanged(
                        j, int(t), int(steps), losses, self.x, wall_s, self._so_far(wall_s)
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

    def _so_far(self, wall_s: float) -> dict[str, float]:
        """Return the seconds by purpose, means over the learners' ranks.

        A rank's note tells them up to the push. Since then it computes; a rank whose learners have
        made all their updates waits for the others.
        """
        split = self._split.copy()
        since = np.maximum(0.0, wall_s - split.sum(axis=1))  # [clients]
        busy = self._left > 0
        split[busy, COMPUTE] += since[busy]
        split[~busy, WAIT] += since[~busy]
        return dict(zip(NOTE[3:], split.mean(axis=0).tolist(), strict=True))

    def _in_order(self) -> Iterator[tuple[int, Array]]:
        """Yield learners and their notes, in the order of arrival or of the run to replay."""
        whole: dict[int, Array] = {}  # notes of the learners that can be served
        wanted = iter(self.replay or ())
        following = next(wanted, None)
        while True:
            whole.update(self._whole())
            if not whole or (following is not None and following not in whole):
                if self._coming:
                    self.nap.woken()
                self.nap.sleep()
                continue
            self.nap.woken()
            if following is not None:
                yield following, whole.pop(following)
                following = next(wanted, None)
                continue
            while whole:
                j = next(iter(whole))
                yield j, whole.pop(j)

    def _whole(self) -> dict[int, Array]:
        """Return the notes of the learners whose messages have arrived since, in their order."""
        notes, status, servers = self.roles.notes, MPI.Status(), self.roles.servers
        self._parts.update(self.arrived())
        while notes.Iprobe(MPI.ANY_SOURCE, MPI.ANY_TAG, status):
            j = status.tag
            if status.source in servers:  # the learner's message has arrived there
                notes.Recv(np.empty(0), status.source, j)
                self._parts[j] += 1
            else:
                self._notes[j] = np.empty(len(NOTE))
                notes.Recv(self._notes[j], status.source, j)
        found = {j: note for j, note in self._notes.items() if self._parts[j] == len(servers)}
        for j in found:
            del self._notes[j], self._parts[j]
        return found

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
