"""A rank that holds learners: local updates of whoever has pulled, exchanges of the others under
way meanwhile.
"""

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
    """The messages of one learner: what it pushes and what it pulls, straight from and to its
    vectors.
    """

    def __init__(self, learner: CenterLearner, roles: Roles) -> None:
        self.learner, self.roles, self.parts = learner, roles, roles.parts(len(learner.message))
        self.note, self.verdict = np.zeros(len(NOTE)), np.zeros(1, np.int64)
        self.requests: list[MPI.Request] = []

    def begin(self, seconds: dict[str, float]) -> None:
        """Push; the pull follows by itself."""
        j, (notes, vectors), first = (
            self.learner.j,
            (self.roles.notes, self.roles.vectors),
            self.roles.servers[0],
        )
        self.note[:] = (
            self.learner.t,
            self.learner.since,
            self.learner.losses,
            seconds["compute"],
            seconds["communicate"],
            seconds["rest"],
            seconds["data"],
        )
        self.requests = [notes.Irecv(self.verdict, first, j)]
        self.requests += [
            vectors.Irecv(self.learner.reply[part], server, j)
            for server, part in zip(self.roles.servers, self.parts, strict=True)
        ]
        self.requests += [notes.Isend(self.note, first, j)]
        self.requests += [
            vectors.Isend(self.learner.message[part], server, j)
            for server, part in zip(self.roles.servers, self.parts, strict=True)
        ]

    def done(self) -> bool:
        """Whether the reply is there."""
        return MPI.Request.Testall(self.requests)


def client(local: Local, center: Array, roles: Roles, clock: Stopwatch) -> None:
    """All T updates of this rank's learners, started at center [d]; returns when the servers have
    said so for each.

    A learner that has pushed waits for its reply, as the algorithms have it; what overlaps with the
    exchange is the updates of the rank's other learners, or the fetching of the next mini-batch
    where there is only one.
    """
    rule, T, nap = local.rule, local.T, Nap()
    ready = deque(rule.learner(j, center) for j in roles.learners)
    exchanges = {learner.j: Pending(learner, roles) for learner in ready}
    away: list[CenterLearner] = []  # they have pushed
    while ready or away:
        if ready:
            learner = ready.popleft()
            if local.step_(learner):
                rule.push_(learner)
                exchanges[learner.j].begin(clock.seconds)
                clock.lap("communicate")
                away.append(learner)
                learner.since, learner.losses = 0, 0.0
                if len(roles.learners) == 1 and learner.t < T:
                    local.fetch(learner)
            else:
                ready.append(learner)
        back = [learner for learner in away if exchanges[learner.j].done()]
        for learner in back:
            away.remove(learner)
            clock.lap("rest")
            if exchanges[learner.j].verdict[0] == APPLY:
                rule.pull_(learner)
                if learner.t < T:
                    ready.append(learner)
            clock.lap("communicate")
        if back:
            nap.woken()
        elif not ready:
            nap.sleep()
            clock.lap("rest")
