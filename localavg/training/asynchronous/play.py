"""Learners and servers at work, each rank in its role, and what happens when ranks die.

    play until all learners are done; evaluate the copies of the center     or a call fails
    revoke, agree                                                    has anybody seen a rank die?
    no one:  end
    a server: end with status 75, as its part of the center is lost
    others:  shrink; their learners go to other ranks, from the center; play on

No learner is needed to go on: the center has all that it pushed. The servers have the same
exchanges then, as the first one has ordered them, and every learner that waits pushes again.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import nullcontext
from time import perf_counter
from typing import NamedTuple

import numpy as np
from mpi4py import MPI

from localavg.errors import SharedError, UserError
from localavg.interfaces import Array
from localavg.parallel import survive
from localavg.parallel.device import on_host, put_
from localavg.training.asynchronous.client import Client
from localavg.training.asynchronous.first_server import FirstServer
from localavg.training.asynchronous.learners import Local
from localavg.training.asynchronous.log import Log
from localavg.training.asynchronous.messages import Roles, span
from localavg.training.asynchronous.server import Server
from localavg.training.build import Task
from localavg.training.ending import Diverged, Interrupted
from localavg.training.evaluate import Evaluator, by_rank
from localavg.training.keeper import Listener


class Plan(NamedTuple):
    """How the ranks that live go on.

    served: by learner, the updates that the center has. center: x̃ [d]. clients: what the numbers of
    the ranks with learners were. moved: the learners of the dead. anew: these, and those whose
    reply was lost, which start from the center. names: who died.
    """

    roles: Roles
    served: Sequence[int]
    center: Array
    clients: Sequence[int]
    moved: Sequence[int]
    anew: Sequence[int]
    names: str


class Play:
    """A run between learners and servers, over MPI.

    role: what this rank does. outlives: whether the others go on when ranks die. evaluated: the
    model that was evaluated last, [d].
    """

    def __init__(
        self,
        task: Task,
        local: Local,
        center: Array,
        roles: Roles,
        log: Log,
        role: Client | Server,
        listener: Listener,
    ) -> None:
        self.task, self.local, self.center, self.log = task, local, center, log
        self.roles, self.role, self.listener = roles, role, listener
        self.outlives = task.config.on_failure == survive.CONTINUE
        self.losses, self.repeated, self.seconds = 0, 0, 0.0
        # [d] a network keeps the address of the weights that it evaluates, so always give it these
        self.evaluated, self._at = np.empty(center.shape, np.float32), center.copy()
        self._first = role if isinstance(role, FirstServer) else None

    def run(self) -> None:
        """Train until all learners are done. Every living rank raises Diverged or Interrupted."""
        replays = bool(self.task.config.replay)
        with nullcontext() if replays else self.listener.listening():  # the first server stops it
            self._run()

    @property
    def summary(self) -> str:
        """What the losses of ranks cost, "" if there were none."""
        return survive.summary(self.losses, f"at most {self.repeated}", self.seconds)

    def _run(self) -> None:
        if not self.outlives:
            self._play()
            self._end()
            return
        survive.survivors[:] = [self.roles.world]
        while True:
            done = False
            try:
                with survive.noticing(self.roles.world, (Diverged, UserError)):
                    self._play()
                    done = True
            except survive.Lost:
                survive.revoke(self.roles.made)
            if survive.agreed(self.roles.world, done):
                self._end()
                return
            self._recover()

    def _play(self) -> None:
        """Let this rank play its role until all learners are done; then evaluate the copies."""
        self._evaluate()
        self.roles.meet()
        self.role.begin()
        if isinstance(self.role, Client):
            self.role.play()
        elif self._first is not None:
            self._first.lead()
        else:
            self.role.follow()
        self.roles.meet()
        self._evaluate()

    def _end(self) -> None:
        first = self._first
        told = None if first is None else (first.why, first.stopped)
        why, stopped = self.roles.world.bcast(told, self.roles.servers[0])
        if why:
            raise Interrupted(why) if stopped else Diverged(why)

    def _evaluate(self) -> None:
        """Evaluate the copies of the center, all ranks together; those that are done are gone."""
        world, source = self.roles.world, self.roles.servers[0]
        c, problem, first = self.task.config, self.task.problem, self._first
        shares = by_rank(world, self.roles.clients if c.device == "cuda" else world.size)
        evaluator = Evaluator(
            problem, world, shares, examples=c.eval_examples, grad_norm=c.grad_norm
        )
        for _ in range(world.bcast(len(first.copies) if first is not None else 0, source)):
            U, wall_s, w = first.copies[0] if first is not None else (0, 0.0, np.array([]))
            U, wall_s = world.bcast((U, wall_s), source)
            self.evaluated[:] = on_host(w) if first is not None else 0
            world.Bcast(self.evaluated, source)
            put_(self._at, self.evaluated)
            row = evaluator.row(self._at)
            if self.outlives and not survive.agreed(world, True):  # the row may be wrong
                raise survive.Lost
            if first is not None:
                del first.copies[0]
            self.log.evaluated(U, wall_s, row)

    # -------------------------------------------------------------------------------- recovery

    def _recover(self) -> None:
        """Go on with the ranks that live. Collective over them."""
        at_s, before = perf_counter(), self.roles
        plan = survive.without_lost(before.world, before.made, self._planned)
        self.roles = roles = plan.roles
        local, task = self.local, self.task
        if isinstance(self.role, Client):
            mine = span(roles.learners)
            local.feed = task.problem.feed(task.sampler, mine, local.T, in_step=False)
            self.role.rejoin(roles, plan.served, plan.center)
        else:
            self.role.rejoin(roles)
        if self._first is not None:
            self._first.lead_again(plan.clients, plan.anew)
        self._tell(plan, before, perf_counter() - at_s)

    def _planned(self, world: MPI.Intracomm, made: list[survive.Revocable]) -> Plan:
        """Return how the ranks of `world` go on. Nothing but x̃ changes. Collective."""
        before, role = self.roles, self.role
        gone = survive.lost(before.world, world)
        hosts = self.task.fleet.hosts
        origin = before.world.group.Translate_ranks(gone, survive.survivors[0].group)
        names = ", ".join(f"rank {r} on {hosts[o]}" for r, o in zip(gone, origin, strict=True))
        if any(r >= before.clients for r in gone):
            raise SharedError(f"{names} died, a server, and its part of the center is lost")
        servers = len(before.servers)
        if (clients := [r for r in range(before.clients) if r not in gone]) == []:
            raise SharedError(f"{names} died, and no rank is left for the learners")
        source = world.size - servers
        settled = self._first.settle() if self._first is not None else None
        settled = world.bcast(settled, source)
        if isinstance(role, Server):
            role.catch_up(*settled)
        served, over = world.bcast(
            None if self._first is None else (self._first.t, bool(self._first.why)), source
        )
        reports = world.allgather(role.report() if isinstance(role, Client) else {})[:source]
        T = self.local.T
        held = [[j for j in report if served[j] < T] for report in reports]
        known = {j for report in reports for j in report}
        moved = [j for j, t in enumerate(served) if t < T and j not in known and not over]
        for j in moved:
            min(held, key=len).append(j)
        late = [
            j
            for report in reports
            for j, (t, waits) in report.items()
            if waits and t <= served[j] < T
        ]
        roles = Roles(world, before.P, servers, self.task.config.algorithm, held, made)
        center = np.array(on_host(self.center), np.float32)
        for server, part in zip(roles.servers, roles.parts(len(center)), strict=True):
            world.Bcast(center[part], server)
        return Plan(roles, served, center, clients, moved, [*moved, *late], names)

    def _tell(self, plan: Plan, before: Roles, seconds: float) -> None:
        """Count the loss. Write a row of /events, and print it, on the first server."""
        updates = len(plan.moved) * self.local.rule.K
        self.losses, self.repeated = self.losses + 1, self.repeated + updates
        self.seconds += seconds
        if self._first is None or self.log.file is None:
            return
        ranks = before.world.size, plan.roles.world.size
        self.log.file.append(
            "events",
            t=self.log.t,
            repeated=updates,
            lost=plan.names,
            ranks_before=ranks[0],
            ranks_after=ranks[1],
            seconds=seconds,
        )
        moved = ", ".join(map(str, plan.moved)) or "none"
        print(
            f"localavg: {plan.names} died; its learners ({moved}) go on from the center on other "
            f"ranks after step {self.log.t}, with {updates} updates to make again at most; the "
            f"recovery took {seconds:.2f} s",
            file=sys.stderr,
            flush=True,
        )
