"""A rank that holds learners: some make local updates while others wait for their replies."""

from __future__ import annotations

from collections import deque

import numpy as np
from mpi4py import MPI

from localavg.algorithms.center import CenterLearner
from localavg.interfaces import Array
from localavg.training.asynchronous.learners import Local
from localavg.training.asynchronous.messages import APPLY, NOTE, Nap, Roles
from localavg.training.stopwatch import Stopwatch


class Pending:
    """The messages of one learner. They are sent from, and received into, its own vectors."""

    def __init__(self, learner: CenterLearner, roles: Roles) -> None:
        self.learner, self.roles, self.parts = learner, roles, roles.parts(len(learner.message))
        self.note, self.verdict = np.zeros(len(NOTE)), np.zeros(1, np.int64)
        self.requests: list[MPI.Request] = []
        self.sends: list[MPI.Request] = []

    def begin(self, seconds: dict[str, float]) -> None:
        """Send what the learner pushes, and start to receive what it pulls."""
        j, first = self.learner.j, self.roles.servers[0]
        notes, vectors = self.roles.notes, self.roles.vectors
        self.note[:] = (
            self.learner.t,
            self.learner.since,
            self.learner.losses,
            seconds["compute"],
            seconds["communicate"],
            seconds["wait"],
            seconds["data"],
        )
        self.requests = [notes.Irecv(self.verdict, first, j)]
        self.requests += [
            vectors.Irecv(self.learner.reply[part], server, j)
            for server, part in zip(self.roles.servers, self.parts, strict=True)
        ]
        self.sends = [notes.Isend(self.note, first, j)]
        self.sends += [
            vectors.Isend(self.learner.message[part], server, j)
            for server, part in zip(self.roles.servers, self.parts, strict=True)
        ]
        self.requests += self.sends

    def sent(self) -> bool:
        """Return whether the whole message is on its way."""
        return MPI.Request.Testall(self.sends)

    def done(self) -> bool:
        """Return whether the whole reply has come."""
        return MPI.Request.Testall(self.requests)


def client(local: Local, center: Array, roles: Roles, clock: Stopwatch) -> None:
    """Make all T updates of this rank's learners, from center [d] on.

    Return when the servers have answered every learner's last message. A learner that has pushed
    waits for its reply, as in the papers. Meanwhile the rank's other learners make updates, or a
    single learner fetches its next mini-batch.
    """
    rule, T, nap = local.rule, local.T, Nap()
    ready = deque(rule.learner(j, center) for j in roles.learners)
    exchanges = {learner.j: Pending(learner, roles) for learner in ready}
    away: list[CenterLearner] = []  # learners that have pushed and wait for the reply
    while ready or away:
        if ready:
            learner = ready.popleft()
            if local.step_(learner):
                rule.push_(learner)
                clock.lap("compute")
                exchanges[learner.j].begin(clock.seconds)
                clock.lap("communicate")
                away.append(learner)
                learner.since, learner.losses = 0, 0.0
                if len(roles.learners) == 1 and learner.t < T:
                    local.fetch(learner)
            else:
                ready.append(learner)
        back = [learner for learner in away if exchanges[learner.j].done()]
        clock.lap("communicate" if ready else "wait")
        for learner in back:
            away.remove(learner)
            if exchanges[learner.j].verdict[0] == APPLY:
                rule.pull_(learner)
                if learner.t < T:
                    ready.append(learner)
            clock.lap("compute")
        if back:
            nap.woken()
        elif not ready:
            if not all(exchanges[learner.j].sent() for learner in away):
                nap.woken()  # MPI sends only while it is called
            nap.sleep()
            clock.lap("wait")
