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

from collections.abc import Sequence

import numpy as np
from mpi4py import MPI

from localavg.algorithms.center import CenterRule
from localavg.interfaces import Array
from localavg.training.asynchronous.messages import APPLY, END, KEEP, Nap, Roles


class Server:
    """One server: its part x̃ [m] of the center [d], updated in place.

    served: the number of exchanges that x̃ has had here.
    """

    def __init__(self, rule: CenterRule, center: Array, roles: Roles) -> None:
        self.rule, self.center, self.roles = rule, center, roles
        self.part = part = roles.parts(len(center))[roles.world.rank - roles.clients]
        self.x = center[part]  # [m]
        self.n = min(max(rule.n - part.start, 0), part.stop - part.start)  # trained numbers in x
        self.nap, self.served = Nap(), 0
        self._old: list[object] = []  # a message that failed may still use its memory
        self._empty()

    def begin(self) -> None:
        """Start the clock, if there is one and it has not been started."""

    def _empty(self) -> None:
        """Begin without messages."""
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

    def serve(self, j: int, what: int) -> Array:
        """Serve learner j, whose message is here. Return the reply [m]."""
        message = self._messages.pop(j)
        reply = self._idle.pop() if self._idle else np.empty_like(self.x)
        if what == APPLY:
            self.rule.answer_(self.x, message, reply, self.n)
            self.served += 1
        else:
            reply[...] = self.x
        self._idle.append(message)
        return reply

    def answer(self, j: int, reply: Array) -> None:
        """Send the reply [m] to learner j without waiting."""
        self._idle += [buffer for request, buffer in self._sent if request.Test()]
        # A request is false when it is complete.
        self._sent = [(request, buffer) for request, buffer in self._sent if request]
        request = self.roles.vectors.Isend(reply, self.roles.rank_of[j], j)
        self._sent.append((request, reply))

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
                self.answer(j, self.serve(j, what))
        self.finish()

    def finish(self) -> None:
        """Wait until all replies are sent."""
        for request, _ in self._sent:
            while not request.Test():
                self.nap.sleep()

    def catch_up(self, served: int, last: Sequence[int]) -> None:
        """Serve what the first server has served and this one has not, after ranks died.

        served: the number of its exchanges. last: the learners of the last ones. Their messages are
        here, since only messages that have arrived everywhere are served.
        """
        for j in last[len(last) - (served - self.served) :]:
            self.serve(j, APPLY)

    def rejoin(self, roles: Roles) -> None:
        """Go on with these ranks, after others died. All learners that wait push again."""
        self.roles = roles
        self._old += [self._messages, self._idle, self._sent, self._coming]
        self._empty()
