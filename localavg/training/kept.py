"""What living ranks go on from: the latest copy that all of them have, for their new learners.

`copies.py` has what is copied, and when.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from mpi4py import MPI

from localavg.errors import SharedError
from localavg.files.checkpoint import Saved
from localavg.interfaces import Array
from localavg.training.build import Experiment
from localavg.training.copies import Copies, Note
from localavg.training.marks import NEVER

Rows = Mapping[str, Array]  # of one learner, by name


class Offer(NamedTuple):
    """What a rank can give, and what it wants."""

    here: Sequence[int]
    """the learners that its node had"""
    beyond: Sequence[int]
    """those of the node before, of which its node has copies"""
    wanted: range
    """the rank's learners from now on"""


class Kept(Copies):
    """The copies of a run, and what is restored from them."""

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

        e: the run on the ranks of `world`. Statistics and losses of a learner that nobody has are
        those of another learner. Raises SharedError where nobody has what all learners need.
        Collective over `world`.
        """
        t = self.marks.last(world)
        slot = self.marks.slot(t)
        note = self._notes[slot]
        assert note is not None, "a marked copy has a note"
        kept = {name: copies for name, (_, copies) in self.common.items() if self._equal(name, t)}
        common = {name: copies[slot] for name, copies in kept.items()}
        rows = self._gathered(world, e, slot, note)
        L, d, n = e.fleet.L, e.flat.d, e.flat.d_trained
        if (w := rows.get("w")) is None:
            w = np.empty((L, d), np.float32)
            w[:, :n] = common["w"]
            if d > n:
                w[:, n:] = rows["statistics"]
        state: dict[str, Any] = {**note.parts, "weights": {"w": w}}
        state["combine"] = {**note.parts["combine"], **_of_average({**common, **rows})}
        state["averaging"] = {**note.parts["averaging"], "z": w}
        if self.owed.copies:
            base = common.get("wire_base", w[0, :n])
            owed = self.owed.restored(world, e.fleet.node, slot)
            state["averaging"] |= {"wire_base": base, **owed}
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
        mine = {name: copies[slot] for name, (_, copies) in self.rows.items()}
        mine["losses"] = self.losses[half, :, :updates]
        theirs = dict[str, Array]()
        if (beyond := self.beyond) is not None:
            theirs = {name: copies[slot] for name, copies in beyond.rows.items()}
            theirs["losses"] = beyond.losses[half, :, :updates]
        learners = beyond.learners if beyond else []
        offers = world.allgather(Offer(self.here, learners, e.fleet.learners))
        sent: list[dict[int, Rows]] = [{} for _ in offers]
        for j, taker, giver, is_beyond in self._givers(offers):
            if giver == world.rank:
                place, found = (learners, theirs) if is_beyond else (self.here, mine)
                sent[taker][j] = {name: x[place.index(j)] for name, x in found.items()}
        got = {j: found for each in world.alltoall(sent) for j, found in each.items()}
        lost = {name: x[0] for name, x in mine.items()}  # of another learner
        return {name: np.stack([got.get(j, lost)[name] for j in e.fleet.learners]) for name in mine}

    def _givers(self, offers: Sequence[Offer]) -> Iterator[tuple[int, int, int, bool]]:
        """Yield (learner, who wants it, who gives it, whether from the copies of another node).

        Raises SharedError on all ranks where nobody has what everyone needs of a learner.
        """
        first: dict[int, tuple[int, bool]] = {}
        for rank, offer in enumerate(offers):
            first |= {j: (rank, False) for j in offer.here if first.get(j, (0, True))[1]}
            first |= {j: (rank, True) for j in offer.beyond if j not in first}
        for taker, offer in enumerate(offers):
            for j in offer.wanted:
                if j in offer.here:
                    yield j, taker, taker, False
                elif j in first:
                    yield j, taker, *first[j]
                elif self.beyond is not None:
                    raise SharedError(
                        f"the node of learner {j} died, and so did the next one, which kept its "
                        "rows too"
                    )


def _of_average(found: Mapping[str, Array]) -> dict[str, Array]:
    own = "average "
    return {name.removeprefix(own): x for name, x in found.items() if name.startswith(own)}


def _arrays(state: Mapping[str, object]) -> dict[str, Array]:
    return {name: np.asarray(value) for name, value in state.items()}
