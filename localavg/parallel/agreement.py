"""The ranks agree on what comes next, before a meeting that would hang or mix where they differ.

A collective call that one rank never makes hangs without a word. If ranks make different ones, MPI
may average the numbers of different updates. So every meeting begins with one reduction of four
integers, which costs about a microsecond within a node.
"""

from __future__ import annotations

import atexit
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from itertools import count

import numpy as np
from mpi4py import MPI

from localavg.errors import FINISHED, MISTAKE, SharedError, UserError
from localavg.parallel import survive
from localavg.parallel.abort import end_job
from localavg.parallel.fleet import Fleet
from localavg.parallel.places import NOBODY, TEXTS, Place, Taking, What, differ
from localavg.parallel.watchdog import Watchdog
from localavg.scope import Scope, sizes

AGAIN = "start the program again from its own checkpoint"
LAST_S = 60.0  # how long a rank whose program ends waits for the others
NUMBERS = count()  # of the agreements of this process


class Agreement:
    """What all ranks do next, and at which update.

    t: the number of updates so far, which its owner counts here. finished: t at the last `finish`.
    detached: whether the model was attached again, so that this agreement is no longer used.
    ended(status, why): called on this rank when the ranks differ, or the program ends too early.
    clusters: learners in a cluster of each level, innermost first. outlives: whether this rank goes
    on when others die.

    A rank whose program ends meets the others too: they may end alike, but a rank that waits
    elsewhere gets the error. Only without `finish` does this meeting have a time limit.
    """

    def __init__(
        self,
        fleet: Fleet,
        clusters: Sequence[int],
        warn_after: float,
        hang_limit: float | None,
        outlives: bool = False,
    ) -> None:
        self.outlives = outlives
        self.world, self.t, self.finished = fleet.world, 0, -1
        self.saved = 0  # t of the last state that was taken or loaded
        self.failed = self.detached = False
        # by which an averager differs from others of the same ranks: the same number on all ranks
        self._number = fleet.world.bcast(next(NUMBERS) % 16)
        self.ended: Callable[[str, str], None] = lambda status, why: None
        self.watchdog = Watchdog(fleet.world, warn_after, hang_limit)
        # two numbers and their negatives: the minima show the least and the most of each
        self._both = np.zeros(4, np.int64)
        self._buffer = [self._both, 4, MPI.INT64_T]
        # A cluster meets before the larger ones and all meet: then its members cannot wait for each
        # other elsewhere.
        self._comms: dict[Scope, list[MPI.Comm]] = {}
        inner: list[MPI.Comm] = []
        for scope, S in sizes(clusters, fleet.P).items():
            groups = fleet.groups(S) if S < fleet.P else []
            mine: list[MPI.Comm] = [group.comm for group in groups if group.comm is not None]
            everyone: list[MPI.Comm] = [fleet.world] if S == fleet.P and fleet.ranks > 1 else []
            self._comms[scope] = inner + mine + everyone
            inner = inner + mine
        self._comms[Scope.NEIGHBOURS] = self._comms[Scope.WORLD]

    @property
    def at_work(self) -> bool:
        """Whether its averager is used, and has not finished."""
        return not self.detached and self.finished != self.t

    def guard(self, owner: object) -> None:
        """Start the watchdog for as long as `owner` exists, and meet at the end of the program."""
        atexit.register(self._end)
        if self.world.size > 1:
            self.watchdog.start(owner)

    def detach(self) -> None:
        """Note that the model was attached again: all that follows here is refused."""
        if not self.detached and self.finished != self.t:
            self.ended("interrupted", f"the model was attached again after update {self.t}")
        self.detached = True

    def abandon(self) -> None:
        """Note that ranks died: nobody meets here any more, nor at the end of the program."""
        self.detached = True
        atexit.unregister(self._end)

    def refuse_detached(self) -> None:
        """Raise UserError if the model was attached again. All ranks do, where all attached it."""
        if self.detached:
            raise SharedError(
                "attach: this model was attached again; use the averager of the last attach alone"
            )

    def meet(
        self,
        what: What,
        t: int,
        scope: Scope = Scope.WORLD,
        mark: int = 0,
        fault: str = "",
        taking: Taking = NOBODY,
    ) -> None:
        """Return when all ranks of `scope` are about to do the same at the same t.

        Otherwise every rank that meets raises UserError. mark: a number below 2^16 that must be the
        same too. fault: what is wrong on this rank. taking: whose gradients travel, the same on all
        ranks. Call `leave` after the meeting.
        """
        self.refuse_detached()
        mark |= self._number << 16
        self.watchdog.here = TEXTS[what], t
        code = -1 if fault else t << 28 | mark << 8 | what
        both, mine = self._both, (self.world.rank, what, t, mark, fault, taking.names)
        for comm in self._comms[scope]:
            both[:] = code, -code, taking.number, -taking.number
            comm.Allreduce(MPI.IN_PLACE, self._buffer, MPI.MIN)
            least, most, first, last = both.tolist()
            if least != -most or least < 0 or first != -last:
                self._fail(mine, comm)
        if fault:
            self._fail(mine, MPI.COMM_SELF)

    def leave(self) -> None:
        """Note that the meeting is over."""
        self.watchdog.here = None

    def _fail(self, mine: Place, comm: MPI.Comm) -> None:
        """Raise the error that the ranks of `comm` share."""
        places = comm.allgather(mine)
        self.leave()
        self.failed, message = True, differ(places)
        self.ended("failed", message)
        everyone = comm.size == self.world.size
        raise SharedError(message) if everyone else UserError(message)

    def _end(self) -> None:
        """Meet the others at the end of the program; end the job if they are elsewhere."""
        if self.failed or self.detached or MPI.Is_finalized() or not self.world:
            return
        over = self.finished == self.t
        if not over and self.world.size > 1:
            limit_s = self.watchdog.limit_s
            self.watchdog.limit_s = LAST_S if limit_s is None else min(LAST_S, limit_s)
            self.watchdog.start(self)
        try:
            with survive.noticing(self.world) if self.outlives else nullcontext():
                self.meet(What.OVER if over else What.END, self.t)
        except UserError as e:
            end_job(self.world, f"localavg: {e}", MISTAKE, isinstance(e, SharedError))
        except survive.Lost:
            if not over:
                why = "ranks died, and this program ended without averager.finish()"
                survive.give_up(self.world, why, remedy=AGAIN)
            survive.leave(FINISHED)
        self.leave()
        if not over:
            self.ended("interrupted", "the program ended without averager.finish()")
            if self.saved != self.t and self.world.rank == 0:
                print(
                    f"localavg: the program ended after update {self.t} without averager.finish(), "
                    "so the models may not be the average; call it after the last update, or save "
                    "state_dict() to go on later",
                    file=sys.stderr,
                    flush=True,
                )
        if len(survive.survivors) > 1:
            survive.leave(FINISHED)
