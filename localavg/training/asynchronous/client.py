"""A rank that holds learners: some make local updates while others wait for their replies."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np
from mpi4py import MPI

from localavg.algorithms.center import CenterLearner
from localavg.interfaces import Array
from localavg.training.asynchronous.learners import Local
from localavg.training.asynchronous.mail import Mail
from localavg.training.asynchronous.messages import APPLY, NOTE, Nap, Roles
from localavg.training.stopwatch import Stopwatch


class Pending:
    """The messages of one learner. MPI sends and receives them in the host's memory, its `mail`."""

    def __init__(self, learner: CenterLearner, roles: Roles, mail: Mail) -> None:
        self.learner, self.mail = learner, mail
        self.note, self.verdict = np.zeros(len(NOTE)), np.zeros(1, np.int64)
        self.requests: list[MPI.Request] = []
        self.sends: list[MPI.Request] = []
        self.use(roles)

    def use(self, roles: Roles) -> None:
        """Send to the servers of `roles` from now on."""
        self.roles, self.parts = roles, roles.parts(len(self.learner.message))

    def begin(self, steps: int, losses: float, seconds: dict[str, float]) -> None:
        """Send what the learner pushes, and start to receive what it pulls.

        steps: the number of updates that it pushes; losses: the sum of their losses.
        """
        self.note[:] = (
            self.learner.t,
            steps,
            losses,
            seconds["compute"],
            seconds["communicate"],
            seconds["wait"],
            seconds["data"],
        )
        self.send()

    def send(self) -> None:
        """Send the note and the message, and start to receive the reply."""
        j, first = self.learner.j, self.roles.servers[0]
        notes, vectors = self.roles.notes, self.roles.vectors
        self.requests = [notes.Irecv(self.verdict, first, j)]
        self.requests += [
            vectors.Irecv(self.mail.reply[part], server, j)
            for server, part in zip(self.roles.servers, self.parts, strict=True)
        ]
        self.sends = [notes.Isend(self.note, first, j)]
        self.sends += [
            vectors.Isend(self.mail.message[part], server, j)
            for server, part in zip(self.roles.servers, self.parts, strict=True)
        ]
        self.requests += self.sends

    def sent(self) -> bool:
        """Return whether the whole message is on its way."""
        return MPI.Request.Testall(self.sends)

    def done(self) -> bool:
        """Return whether the whole reply has come."""
        return MPI.Request.Testall(self.requests)


class Client:
    """The learners of this rank: those that are `ready` to make updates, and those that are `away`.

    A learner that has pushed waits for its reply, as in the papers. Meanwhile the rank's other
    learners make updates, or a single learner fetches its next mini-batch. A learner that has made
    T updates, or was told to stop, is in neither list.
    """

    def __init__(self, local: Local, roles: Roles, clock: Stopwatch) -> None:
        self.local, self.roles, self.clock, self.nap = local, roles, clock, Nap()
        self.ready = deque(x for x in local.learners if x.t < local.T)
        self.away: list[CenterLearner] = []
        self.exchanges = {x.j: self._exchange(x) for x in local.learners}
        self._began = False
        self._old: list[object] = []  # a message that failed may still read its memory

    def _exchange(self, learner: CenterLearner) -> Pending:
        return Pending(learner, self.roles, Mail(learner.message, self.local.device))

    def begin(self) -> None:
        """Start the clock, if it has not been started."""
        if not self._began:
            self._began = True
            self.clock.start()

    def report(self) -> dict[int, tuple[int, bool]]:
        """Return the t of the learners that are not at their end, and whether each one waits."""
        ready = {learner.j: (learner.t, False) for learner in self.ready}
        return ready | {learner.j: (learner.t, True) for learner in self.away}

    def play(self) -> None:
        """Make all updates. Return when the servers have answered every learner's last message."""
        while self.ready or self.away:
            if self.ready:
                self._step_(self.ready.popleft())
            self._pull_()

    def _step_(self, learner: CenterLearner) -> None:
        """Make an update of a learner, and push if it is time."""
        local, clock = self.local, self.clock
        if not local.step_(learner):
            self.ready.append(learner)
            return
        self.away.append(learner)
        local.rule.push_(learner)
        pushed = local.take_losses(learner)  # a GPU has computed all of it then
        clock.lap("compute")
        self.exchanges[learner.j].mail.fetch_()
        self.exchanges[learner.j].begin(*pushed, clock.seconds)
        clock.lap("communicate")
        if len(self.roles.learners) == 1 and learner.t < local.T:
            local.fetch(learner)

    def _pull_(self) -> None:
        """Let the learners whose replies have come go on, and sleep if nobody can."""
        local, clock = self.local, self.clock
        back = [learner for learner in self.away if self.exchanges[learner.j].done()]
        clock.lap("communicate" if self.ready else "wait")
        for learner in back:
            self.away.remove(learner)
            exchange = self.exchanges[learner.j]
            if exchange.verdict[0] == APPLY:
                local.rule.pull_(learner, exchange.mail.delivered(local.g))
                if learner.t < local.T:
                    self.ready.append(learner)
            clock.lap("compute")
        if back:
            self.nap.woken()
        elif not self.ready:
            if not all(self.exchanges[learner.j].sent() for learner in self.away):
                self.nap.woken()  # MPI sends only while it is called
            self.nap.sleep()
            clock.lap("wait")

    def rejoin(self, roles: Roles, served: Sequence[int], center: Array) -> None:
        """Go on with other servers' or learners' ranks, after ranks died.

        served: by learner, the updates that have reached the center [d]. A learner that waits for
        its reply pushes again, if its push has not been served. If it has been, the learner starts
        from the center, and so do those that this rank takes over.
        """
        self.roles, waiting = roles, self.away
        self._old += self.exchanges.values()
        self.away = [learner for learner in waiting if served[learner.j] < learner.t]
        mine = {learner.j for learner in (*self.ready, *self.away)}
        for learner in self.away:
            self.exchanges[learner.j].use(roles)
        for j in set(roles.learners) - mine:
            learner = self.local.rule.learner(j, center, self.local.device.zeros)
            learner.t = served[j]
            self.exchanges[j] = self._exchange(learner)
            self.ready.append(learner)
        for learner in self.ready:
            self.exchanges[learner.j].use(roles)
        for learner in self.away:
            self.exchanges[learner.j].send()
