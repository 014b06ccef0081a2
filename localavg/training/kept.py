"""A copy of a run after its last average of everyone, from which living ranks go on without others.

All learners are equal then, and a mini-batch is a function of (seed, learner, update). So lost
learners can be made anew from one row of weights, and the updates since can be made again.

    what                                     copied for                  where
    weights, rows that the average keeps     all learners together       once a node, in memory
    BatchNorm's statistics, losses           every learner               that the node shares
    moments of the local optimiser           none, all, every learner    likewise
    schedule, round, clock, rows recorded    the rank                    its own memory

A moment that `state = average` makes equal is copied once, and so is one of gradients that all
learners exchange, while they do. With `recovery_state = all` every other moment is copied for every
learner; without, it is zero after a recovery.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
from mpi4py import MPI

from localavg.files.checkpoint import Saved
from localavg.files.mirror import Mirror
from localavg.interfaces import Array
from localavg.parallel.fleet import Fleet
from localavg.parallel.transport.lanes import lane
from localavg.training.build import Experiment
from localavg.training.marks import NEVER, Marks
from localavg.training.monitor import Monitor
from localavg.training.resume import Part

Rows = Mapping[str, Array]  # of one learner, by name
WHAT, INSTEAD = "the copies of the last averages of everyone", "leave `on_failure` out"
MEMORY = ("schedule", "averaging", "engine")
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


class Kept:
    """The last two copies of a run, in turn: a rank that dies may leave the later one half done.

    A rank copies after an average, and no rank is two averages ahead of another one. So the copy
    before the last one is whole on all ranks. before: the copies of the ranks before a recovery,
    until there is one of these ranks.
    """

    def __init__(
        self, e: Experiment, monitor: Monitor, mirror: Mirror, before: Kept | None = None
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
        self._losses, self._reported = (0, 0), 0
        self._notes: list[Note | None] = [None, None]
        self._slot = self._copies = 0

    def start(self, begun: int, parts: Mapping[str, Part]) -> None:
        """Take the parts of the run, and memory for their copies. Collective.

        After a recovery the learners are equal, and copied at once. Raises UserError on all ranks
        where a node has no memory.
        """
        self.parts, fleet, node = parts, self.e.fleet, len(self.here)
        common, rows = self._live()
        memory = partial(fleet.node_array, what=WHAT, instead=INSTEAD)
        self.common = {k: (x, memory((2, len(x)))) for k, x in common.items()}
        self.rows = {k: (x, memory((2, node, x.shape[1]))) for k, x in rows.items()}
        span = min(self.e.length.log_every, self.e.length.eval_every)
        self.losses = memory((2, node, span), np.float64)
        self._reported = self.monitor.reported
        self.marks.share()
        if self.recovered and begun:
            self.copy(begun)

    def _live(self) -> tuple[dict[str, Array], dict[str, Array]]:
        """Return what is copied: vectors [n] that all learners share, and rows [L, m]."""
        e, w, n = self.e, self.e.flat.w, self.e.flat.d_trained
        common = {"w": w[0, :n]}
        vectors = {k: x for k, x in e.algorithm.average.state_dict().items() if np.ndim(x) == 1}
        common |= {f"average {name}": x for name, x in vectors.items()}
        rows = {"statistics": w[:, n:]} if w.shape[1] > n else {}
        always = e.algorithm.exchange.at(e.length.T)  # at every update
        for i, (policy, x) in enumerate(zip(e.optimizer.policies, e.optimizer.state, strict=True)):
            name = f"moment {i}"
            if policy == "average" or always:
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

    def copy(self, t: int) -> None:
        """Copy the run after update t, when all learners are equal. No rank waits for another."""
        if self.e.algorithm.schedule.needs == "losses" and self.parts["losses"].found:  # type: ignore[attr-defined]
            return  # gradients are exchanged before the schedule begins
        self._slot = slot = 1 - self._slot
        self.marks.begin(slot, t)
        for name, (x, copies) in self.common.items():
            if self._equal(name, t):
                copy_lane(x, copies[slot], self.e.fleet)
        for x, copies in self.rows.values():
            copies[slot, self.mine] = x
        self._copy_losses()
        parts = {name: {**self.parts[name].state_dict()} for name in MEMORY}
        parts["optimizer"] = {"t": [*getattr(self.e.optimizer, "t", ())]}
        self._notes[slot] = Note(
            t, self.monitor.still(), parts, self.mirror.counts(), self._losses, perf_counter()
        )
        self.marks.finish(slot, t)
        self._copies += 1
        if self._copies > 1:
            self.before = None  # every rank of the node has made its first copy

    def _copy_losses(self) -> None:
        """Copy the losses since the last copy; after a report begin anew, in the other half."""
        half, updates = self._losses
        found, L = self.monitor.losses, self.e.fleet.L
        if self.monitor.reported != self._reported:
            half, updates, self._reported = 1 - half, 0, self.monitor.reported
        new = np.array(found[updates * L :], np.float64).reshape(-1, L).T  # [L, new updates]
        self.losses[half, self.mine, updates : updates + new.shape[1]] = new
        self._losses = half, updates + new.shape[1]

    # -------------------------------------------------------------------------------- recovery

    def latest(self, world: MPI.Intracomm) -> Kept | None:
        """Return the copies that the living ranks can go on from, None if there are none.

        world: the living ranks. Collective over them.
        """
        if self.marks.last(world) != NEVER:
            return self
        before = world.allgather(self.before is not None)  # all or none: see `copy`
        return self.before.latest(world) if all(before) and self.before is not None else None

    def restored(self, world: MPI.Intracomm, e: Experiment) -> tuple[Saved, Note]:
        """Return the latest copy for the rank's learners in e, and this rank's note with it.

        e: the run on the ranks of `world`. Rows of a learner whose whole node died are those of
        another learner, and its moments are zero. Collective over `world`.
        """
        t = self.marks.last(world)
        slot = self.marks.slot(t)
        note = self._notes[slot]
        assert note is not None, "a marked copy has a note"
        kept = {name: copies for name, (_, copies) in self.common.items() if self._equal(name, t)}
        common = {name: copies[slot] for name, copies in kept.items()}
        rows = self._gathered(world, e, slot, note)
        L, d, n = e.fleet.L, e.flat.d, e.flat.d_trained
        w = np.empty((L, d), np.float32)
        w[:, :n] = common["w"]
        if d > n:
            w[:, n:] = rows["statistics"]
        state: dict[str, Any] = {**note.parts, "weights": {"w": w}}
        state["combine"] = {
            name.removeprefix("average "): x for name, x in common.items() if "average " in name
        }
        state["optimizer"] = self._moments(common, rows, L, note)
        state["monitor"] = {**_arrays(note.monitor.state_dict()), "losses": rows["losses"]}
        state["losses"] = {}
        return Saved(t, state, e.fleet.ranks), note

    def _moments(
        self, common: Mapping[str, Array], rows: Mapping[str, Array], L: int, note: Note
    ) -> dict[str, Any]:
        """Return the state of the optimiser; a moment that was not copied is zero."""
        found: dict[str, Any] = {}
        times = [*note.parts["optimizer"]["t"]]
        for i, x in enumerate(self.e.optimizer.state):
            name = f"moment {i}"
            if name in rows:
                found[str(i)] = rows[name]
                continue
            moment = common.get(name, np.zeros(x.shape[1], np.float32))
            found[str(i)] = np.broadcast_to(moment, (L, len(moment)))
            if name not in common and times:
                times[i] = 0
        return {**found, "t": np.array(times)} if times else found

    def _gathered(
        self, world: MPI.Intracomm, e: Experiment, slot: int, note: Note
    ) -> dict[str, Array]:
        """Return the rows of the rank's learners in e, from whoever has them. Collective."""
        half, updates = note.losses
        rows = {name: copies[slot] for name, (_, copies) in self.rows.items()}
        rows["losses"] = self.losses[half, :, :updates]
        offers = world.allgather((self.here, e.fleet.learners))
        first = {j: r for r, (here, _) in reversed([*enumerate(offers)]) for j in here}

        def giver(j: int, rank: int) -> int | None:
            return rank if j in offers[rank][0] else first.get(j)

        def row(l: int) -> Rows:
            return {name: x[l] for name, x in rows.items()}

        sent = [
            {j: row(self.here.index(j)) for j in wanted if giver(j, rank) == world.rank}
            for rank, (_, wanted) in enumerate(offers)
        ]
        got = {j: found for each in world.alltoall(sent) for j, found in each.items()}
        lost = {k: np.zeros_like(x) if "moment" in k else x for k, x in row(0).items()}
        return {name: np.stack([got.get(j, lost)[name] for j in e.fleet.learners]) for name in rows}


def copy_lane(x: Array, copy: Array, fleet: Fleet) -> None:
    """Copy this rank's lane of x [n], which all ranks have, to `copy` [n] of its node."""
    columns = lane(len(x), fleet.node.rank, fleet.node.size)
    copy[columns] = x[columns]


def _arrays(state: Mapping[str, object]) -> dict[str, Array]:
    return {name: np.asarray(value) for name, value in state.items()}
