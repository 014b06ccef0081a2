"""The server that decides the order of the exchanges; see `server.py`."""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Collection, Iterator, Sequence
from time import perf_counter

import numpy as np
from mpi4py import MPI

from localavg.algorithms.center import CenterRule
from localavg.interfaces import Array
from localavg.training.asynchronous.log import Log
from localavg.training.asynchronous.messages import APPLY, END, KEEP, NOTE, REFUSE, Roles
from localavg.training.asynchronous.saver import Saver
from localavg.training.asynchronous.server import Server
from localavg.training.ending import Diverged

COMPUTE, WAIT = (NOTE[3:].index(name) for name in ("compute_s", "wait_s"))


class FirstServer(Server):
    """The server that decides the order, and keeps the log and copies of x̃.

    The copies are evaluated after the run: an evaluation during the run would delay the learners,
    or let them compute in time that is not counted. A copy takes d floats of this rank's memory.
    T, t: the updates of each learner, and by learner those that x̃ has. replay: the learners in the
    order to repeat, None for the order of arrival. saver: saves the run, and says when it must
    stop.

    left: the number of learners that have not made T updates and were not told to stop. why: why
    they are told to stop, "" if they are not. stopped: whether somebody asked for that.
    """

    def __init__(
        self,
        rule: CenterRule,
        center: Array,
        roles: Roles,
        log: Log,
        T: int,
        t: Sequence[int],
        replay: list[int] | None = None,
        saver: Saver | None = None,
    ) -> None:
        super().__init__(rule, center, roles)
        self.log, self.replay, self.T, self.saver = log, replay, T, saver
        self.copies: list[tuple[int, float, Array]] = []  # (U, wall_s, x̃ [d])
        self.t, self.left = [*t], sum(made < T for made in t)
        self.why, self.stopped = "", False
        # the learners of the last exchanges: each has one that not all servers know, at most
        self.last: deque[int] = deque(maxlen=roles.P)
        self._told: tuple[int, Array] | None = None  # what others may have served, and this not yet
        self._due = False  # whether a copy of the center is due
        self._before_s, self._began_s = log.wall_s, math.nan
        # the seconds of NOTE, a row per rank with learners
        self._split = np.zeros((roles.clients, 4))
        # [clients] learners that are not at the end
        self._left = np.array([sum(t[j] < T for j in held) for held in roles.held])

    def begin(self) -> None:
        if math.isnan(self._began_s):
            self._began_s = perf_counter()

    def clock(self) -> float:
        """Return the seconds since the start, those before a restart included."""
        return self._before_s + perf_counter() - self._began_s

    def _empty(self) -> None:
        super()._empty()
        self._notes: dict[int, Array] = {}  # of learners whose message is not whole everywhere
        self._parts: Counter[int] = Counter()  # servers at which a learner's message has arrived

    def lead(self) -> None:
        """Serve all learners until each has made T updates or was stopped."""
        if self._due:
            self._keep()
        order = self._in_order()
        while self.left:
            j, note = next(order)
            what = REFUSE if self.why else APPLY
            self._told = j, note
            self._tell(j, what)
            self.answer(j, self._take(what))
            verdict = np.array([REFUSE if self.why else APPLY], np.int64)
            self.roles.notes.Send(verdict, self.roles.rank_of[j], j)
            if self._due:
                self._keep()
            if self.saver is not None and self.left and not self.why:
                self.why = self._visited(self.saver)
        self._tell(-1, END)
        self.finish()

    def _take(self, what: int) -> Array:
        """Serve the learner that the others were told of, and record it. Return the reply [m]."""
        assert self._told is not None, "the others were told"
        (j, note), self._told = self._told, None
        t, steps, losses, *seconds = note.tolist()
        rank, reply = self.roles.rank_of[j], self.serve(j, what)
        self._split[rank] = seconds
        self._left[rank] -= t == self.T
        self.left -= what == REFUSE or t == self.T
        if what == REFUSE:
            return reply
        self.t[j] = int(t)
        self.last.append(j)
        wall_s = self.clock()
        try:
            self._due = self.log.exchanged(
                j, int(t), int(steps), losses, self.x, wall_s, self._so_far(wall_s)
            )
        except Diverged as e:
            self.why = str(e)
            self.left -= t != self.T  # this learner is told to stop, too
        return reply

    def _visited(self, saver: Saver) -> str:
        """Save the run if it is time. Return why it must stop, "" if it need not."""
        why = saver.told()
        if why or saver.due(self.log.t):
            self._keep()
            *_, center = self.copies.pop()
            saver.save(center, self.t, self.log, self.copies)
        self.stopped = bool(why)
        return why

    # -------------------------------------------------------------------------------- recovery

    def settle(self) -> tuple[int, list[int]]:
        """Serve what others may have served. Return what they need for `catch_up`."""
        if self._told is not None and not self.why:
            self._take(APPLY)
        self._told = None
        return self.served, [*self.last]

    def lead_again(self, clients: Sequence[int], anew: Collection[int]) -> None:
        """Go on with learners on what were the ranks `clients`; those in `anew` pull x̃ now."""
        self._split = self._split[[*clients]]
        self._left = np.array([*map(len, self.roles.held)])
        self.left = int(self._left.sum())
        for j in anew:
            self.log.pulled[j] = self.log.n

    # ------------------------------------------------------------------------------------------

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
        wanted = iter(self.replay[self.log.n :] if self.replay else ())
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
        self._due = False
