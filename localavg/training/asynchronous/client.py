"""A rank that holds learners: some make local updates while others wait for their replies."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np
from mpi4py import MPI

from localavg.algorithms.center import CenterLearner
from localavg.training.asynchronous.learners import Local
from localavg.training.asynchronous.mail import Mail
from localavg.training.asynchronous.messages import APPLY, NOTE, Nap, Roles
from localavg.training.stopwatch import Stopwatch


class Pending:
    """The messages of one learner. MPI sends and receives them in the host's memory, its `mail`."""

    def __init__(self, learner: CenterLearner, roles: Roles, mail: Mail) -> None:
        self.learner, self.roles, self.mail = learner, roles, mail
        self.parts = roles.parts(len(learner.message))
        self.note, self.verdict = np.zeros(len(NOTE)), np.zeros(1, np.int64)
        self.requests: list[MPI.Request] = []
        self.sends: list[MPI.Request] = []

    def begin(self, steps: int, losses: float, seconds: dict[str, float]) -> None:
        """Send what the learner pushes, and start to receive what it pulls.

        steps: the number of updates that it pushes; losses: the sum of their losses.
        """
        j, first = self.learner.j, self.roles.servers[0]
        notes, vectors = self.roles.notes, self.roles.vectors
        self.note[:] = (
            self.learner.t,
            steps,
            losses,
            seconds["compute"],
            seconds["communicate"],
            seconds["wait"],
            seconds["data"],
        )
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


def client(local: Local, mails: Sequence[Mail], roles: Roles, clock: Stopwatch) -> None:
    """Make all T updates of this rank's learners, whose `mails` are in their order.

    Return when the servers have answered every learner's last message. A learner that has pushed
    waits for its reply, as in the papers. Meanwhile the rank's other learners make updates, or a
    single learner fetches its next mini-batch.
    """
    rule, T, nap = local.rule, local.T, Nap()
    ready = deque(local.learners)
    exchanges = {
        learner.j: Pending(learner, roles, mail)
        for learner, mail in zip(local.learners, mails, strict=True)
    }
    away: list[CenterLearner] = []  # learners that have pushed and wait for the reply
    while ready or away:
        if ready:
            learner = ready.popleft()
            if local.step_(learner):
                rule.push_(learner)
                pushed = local.take_losses(learner)  # a GPU has computed all of it then
                clock.lap("compute")
                exchanges[learner.j].mail.fetch_()
                exchanges[learner.j].begin(*pushed, clock.seconds)
                clock.lap("communicate")
                away.append(learner)
                if len(roles.learners) == 1 and learner.t < T:
                    local.fetch(learner)
            else:
                ready.append(learner)
        back = [learner for learner in away if exchanges[learner.j].done()]
        clock.lap("communicate" if ready else "wait")
        for learner in back:
            away.remove(learner)
            if exchanges[learner.j].verdict[0] == APPLY:
                rule.pull_(learner, exchanges[learner.j].mail.delivered(local.g))
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
