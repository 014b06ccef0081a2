"""Copies of a run where all ranks have met, from which living ranks go on without others.

A mini-batch is a function of (seed, learner, update). So lost learners can be made again from what
was copied of them, and the updates since can be made again. Where all learners are equal after an
average of everyone, one row of weights is enough:

    what                                     copied for                  where
    weights, rows that the average keeps     all learners together       once a node, in memory
    BatchNorm's statistics, losses           every learner               that the node shares
    moments of the local optimiser           none, all, every learner    likewise
    what codes of a wire have lost           the node                    likewise
    schedule, round, clock, rows recorded    the rank                    its own memory

A moment that `state = average` makes equal is copied once, and so is one of gradients that all
learners exchange, while they do. With `recovery_state = all` every other moment is copied for every
learner, and all that is copied for every learner is sent to the next node too; without, such a
moment is zero after a recovery. Where learners are apart even after an average of everyone
(`Algorithm.apart`), every learner's weights are copied, and so they are sent to the next node.

A run is copied after an update t (`due`)

    learners are equal                at an average of everyone, or of everyone's gradients
    delay, fragments                  when a delayed average of everyone has been merged and the
                                      next one has not begun; of pieces, the last one of a round
    gossip; mean gradients before     with a row of /train, for which all ranks meet
    the first delayed average
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from time import perf_counter
from typing import Any, NamedTuple, Self

import numpy as np

from localavg.files.mirror import Mirror
from localavg.interfaces import Array
from localavg.parallel.device import fetch_, numbers
from localavg.parallel.fleet import Fleet
from localavg.parallel.transport.lanes import lane
from localavg.training.averaging import Averaging
from localavg.training.beyond import Beyond
from localavg.training.build import Experiment
from localavg.training.marks import Marks
from localavg.training.monitor import Monitor
from localavg.training.owed import Owed
from localavg.training.resume import Part

WHAT, INSTEAD = "the copies that living ranks go on from", "leave `on_failure` out"
MEMORY = ("schedule", "engine")
"""parts whose state is the rank's own and small"""


class Note(NamedTuple):
    """What a rank keeps in its own memory with a copy."""

    t: int
    monitor: Monitor
    parts: Mapping[str, Mapping[str, Any]]
    counts: Mapping[str, int]
    """by table, the number of rows of the run file"""
    losses: tuple[int, int]
    """which half has the losses since the last report, and of how many updates"""
    at_s: float
    """the time of the copy, by the clock `perf_counter`"""


class Copies:
    """The last two copies of a run, in turn: a rank that dies may leave the later one half done.

    All ranks meet between two copies, so no rank is two copies ahead of another one, and the copy
    before the last one is whole on all ranks. before: the copies of the ranks before a recovery,
    until there is one of these ranks.
    """

    def __init__(
        self, e: Experiment, monitor: Monitor, mirror: Mirror, before: Self | None = None
    ) -> None:
        self.e, self.monitor, self.mirror, self.before = e, monitor, mirror, before
        self.recovered = before is not None
        fleet, layout = e.fleet, e.fleet.layout
        here = layout.by_node(range(fleet.ranks))[layout.node_of[fleet.rank]]
        self.here = [j for r in here for j in layout.learners(r)]  # the node's, in their order
        first = layout.first_row(fleet.rank)
        self.mine = slice(first, first + fleet.L)  # of the node's rows
        self.marks = Marks(fleet)
        self.early: set[str] = set()  # moments that are equal while gradients are exchanged
        self.beyond: Beyond | None = None
        self._averaging: Averaging | None = None
        self._losses, self._reported = (0, 0), 0
        self._notes: list[Note | None] = [None, None]
        self._slot = self._copies = 0

    def start(self, begun: int, averaging: Averaging, parts: Mapping[str, Part]) -> None:
        """Take the parts of the run, and memory for their copies. Collective.

        After a recovery the run is copied at once. Raises UserError on all ranks where a node has
        no memory.
        """
        self._averaging, self.parts, fleet = averaging, parts, self.e.fleet
        common, rows = self._live()
        memory, node = partial(fleet.node_array, what=WHAT, instead=INSTEAD), len(self.here)
        self.common = {k: (x, memory((2, len(x)))) for k, x in common.items()}
        self.rows = {k: (x, memory((2, node, x.shape[1]))) for k, x in rows.items()}
        span = min(self.e.length.log_every, self.e.length.eval_every)
        self.losses = memory((2, node, span), np.float64)
        if fleet.nodes > 1 and rows and self.e.config.recovery_state == "all":
            widths = {name: x.shape[1] for name, x in rows.items()}
            self.beyond = Beyond(fleet, widths, span, memory)
        self.owed = Owed(averaging.wired, fleet, memory)
        self._reported = self.monitor.reported
        self.marks.share()
        if self.recovered and begun:
            self.copy(begun)

    def _live(self) -> tuple[dict[str, Array], dict[str, Array]]:
        """Return what is copied: vectors [n] that all learners share, and rows [L, m]."""
        e, w, n = self.e, self.e.flat.w, self.e.flat.d_trained
        assert self._averaging is not None, "`start` comes first"
        wired, common, rows = self._averaging.wired, dict[str, Array](), dict[str, Array]()
        if e.algorithm.apart:
            rows["w"] = w
            if wired is not None:  # else it is w
                common["wire_base"] = wired.base
        else:
            common["w"] = w[0, :n]
            if w.shape[1] > n:
                rows["statistics"] = w[:, n:]
        for name, x in e.algorithm.average.state_dict().items():
            if x.dtype == np.float32:
                (common if x.ndim == 1 else rows)[f"average {name}"] = x
        always = e.algorithm.exchange.at(e.length.T)  # at every update
        for i, (policy, x) in enumerate(zip(e.optimizer.policies, e.optimizer.state, strict=True)):
            name = f"moment {i}"
            if e.algorithm.apart:
                rows[name] = x
            elif policy == "average" or always:
                common[name] = x[0]
            elif e.config.recovery_state == "all":
                rows[name] = x
            elif e.algorithm.exchange.at(1):
                common[name] = x[0]
                self.early.add(name)
        return common, rows

    def _equal(self, name: str, t: int) -> bool:
        """Return whether all learners have the same of what is `common`, after update t."""
        return name not in self.early or bool(self.e.algorithm.exchange.at(t))

    def due(self, t: int) -> bool:
        """Return whether the run is to be copied after update t; the same on all ranks."""
        assert self._averaging is not None, "`start` comes first"
        algorithm, averaging = self.e.algorithm, self._averaging
        hears = algorithm.schedule.hears and not algorithm.apart
        if hears and self.parts["losses"].found:  # type: ignore[attr-defined]
            return False  # gradients are exchanged before the schedule begins
        return averaging.at_point(t, met=self.monitor.reported == t)

    def copy(self, t: int) -> None:
        """Copy the run after update t. Where rows go to the next node, collective."""
        self._slot = slot = 1 - self._slot
        self.marks.begin(slot, t)
        for name, (x, copies) in self.common.items():
            if self._equal(name, t):
                copy_lane(x, copies[slot], self.e.fleet)
        for x, copies in self.rows.values():
            fetch_(copies[slot, self.mine], x)
        self.owed.copy(slot)
        new = self._copy_losses()
        if self.beyond is not None:
            mine = {name: copies[slot, self.mine] for name, (_, copies) in self.rows.items()}
            half, updates = self._losses
            self.monitor.computed()
            self.beyond.exchange(slot, mine, half, new, updates - new.shape[1])
            self.monitor.met()
        self._notes[slot] = self._note(t)
        self.marks.finish(slot, t)
        self._copies += 1
        if self._copies > 1:
            self.before = None  # every rank of the node has made its first copy

    def _note(self, t: int) -> Note:
        """Return what this rank keeps in its own memory."""
        assert self._averaging is not None, "`start` comes first"
        parts: dict[str, Mapping[str, Any]] = {
            name: {**self.parts[name].state_dict()} for name in MEMORY
        }
        parts["optimizer"] = {"t": [*getattr(self.e.optimizer, "t", ())]}
        parts["averaging"] = self._averaging.note()
        average = self.e.algorithm.average.state_dict()
        parts["combine"] = {k: x.copy() for k, x in average.items() if x.dtype != np.float32}
        still, counts = self.monitor.still(), self.mirror.counts()
        return Note(t, still, parts, counts, self._losses, perf_counter())

    def _copy_losses(self) -> Array:
        """Copy the losses since the last copy, and return them [L, updates].

        After a report begin anew, in the other half.
        """
        half, updates = self._losses
        found, L = self.monitor.losses, self.e.fleet.L
        if self.monitor.reported != self._reported:
            half, updates, self._reported = 1 - half, 0, self.monitor.reported
        new = numbers(found[updates * L :]).reshape(-1, L).T  # [L, new updates]
        found[updates * L :] = new.T.ravel().tolist()  # a GPU's are L scalars an update now
        self.losses[half, self.mine, updates : updates + new.shape[1]] = new
        self._losses = half, updates + new.shape[1]
        return new

    def abandon(self) -> None:
        """Wait until nobody works any more on averages that failed."""
        if self._averaging is not None:
            self._averaging.abandon()


def copy_lane(x: Array, copy: Array, fleet: Fleet) -> None:
    """Copy this rank's lane of x [n], which all ranks have, to `copy` [n] of its node.

    So what lies on GPUs comes to the host once a node.
    """
    columns = lane(len(x), fleet.node.rank, fleet.node.size)
    fetch_(copy[columns], x[columns])
