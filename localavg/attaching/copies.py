"""Copies of a rank's model where all ranks have met, to go back to when other ranks die.

A rank copies its own model alone: after a loss there are fewer learners, and none is made anew. So
learners may differ. A copy has the weights, all buffers, what the averager saves, and perhaps the
optimisers' state. A model is copied after an update t where `Averaging.at_point` says so

    learners are equal    after an average of everyone, or of everyone's gradients
    delay, fragments      when a delayed average of everyone has been merged and the next one has
                          not begun; of pieces, the last one of a round
    gossip                after every gossip, for which all ranks meet

What codes of a wire have lost is the node's, and lies in memory that its ranks share.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Any, NamedTuple

from localavg.attaching.asked import Asked
from localavg.attaching.log import Log
from localavg.attaching.row import Row
from localavg.attaching.state import words
from localavg.parallel.fleet import Fleet
from localavg.parallel.transport.in_code import InCode
from localavg.training.marks import NEVER, Marks
from localavg.training.owed import Owed

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module
    from torch.optim import Optimizer

WHAT, INSTEAD = "the copies that living ranks go on from", "leave `on_failure` out"
Moments = Sequence[Mapping[Any, Mapping[str, Any]]]  # of each optimiser, its `state`


@dataclass(frozen=True, eq=False)
class Copy:
    """A rank after update t.

    weights: the memories of its row. buffers: by name, those that are not in the row. moments: the
    optimisers' states, None if they start anew. state: what the averager saves. log: what its log
    has so far. at_s: the time of the copy, by the clock `perf_counter`.
    """

    t: int
    weights: Sequence[Tensor]
    buffers: Mapping[str, Tensor]
    moments: Moments | None
    state: Mapping[str, Any]
    log: Log | None
    at_s: float

    def restore_(self, model: Module, optimizers: Sequence[Optimizer], flat: Row) -> None:
        """Set the row with the model's tensors, its other buffers and its optimisers to the copy.

        State of the optimisers that was not copied is cleared.
        """
        flat.restore_(self.weights)
        for name, buffer in model.named_buffers():
            if name in self.buffers:
                buffer.data = self.buffers[name].clone()
        for i, optimizer in enumerate(optimizers):
            optimizer.state.clear()
            if self.moments is not None:
                optimizer.state.update(_moments(self.moments[i]))


class Shared(NamedTuple):
    """What of the copies the ranks of a node share."""

    marks: Marks
    owed: Owed


class Copies:
    """The last two copies, in turn, and what of them the node shares.

    A rank copies after a meeting of all ranks, and no rank is two meetings ahead of another one. So
    every rank has the last copy that all ranks have made, the dead too. `start` comes first.
    """

    def __init__(self, asked: Asked) -> None:
        self.asked = asked
        self._copies: list[Copy | None] = [None, None]
        self.first = NEVER  # the update of the first one, for which no ranks met

    def start(self, shared: Shared) -> None:
        """Take what `share` returned."""
        self.marks, self.owed = shared

    @property
    def held(self) -> list[int]:
        """The updates of the copies."""
        return [copy.t for copy in self._copies if copy is not None]

    def common(self, fleet: Fleet) -> Copy | None:
        """Return the copy to go back to on the ranks of `fleet`, which live. Collective."""
        last = self.marks.last(fleet.world)
        if last == NEVER:
            last = int(fleet.least(self.first if self.first in self.held else NEVER))
        found = [copy for copy in self._copies if copy is not None and copy.t == last]
        return found[0] if found else None

    def state(self, copy: Copy, fleet: Fleet, wired: InCode | None) -> dict[str, Any]:
        """Return what the averager loads of a copy on the ranks of `fleet`. Collective over them.

        wired: their transport, if it codes averages.
        """
        state = deepcopy({**copy.state})
        if wired is not None:
            import torch

            slot, averaging = self._copies.index(copy), state["averaging"]
            owed = self.owed.restored(fleet.world, fleet.node, slot, wired.total)
            for name in ("wire_feedback", "wire_nodes"):  # of this rank's lanes before
                del averaging[name]
            averaging |= {name: torch.from_numpy(x) for name, x in owed.items()}
        return state

    def only(self, copy: Copy, shared: Shared) -> None:
        """Keep this copy alone, which is the first one of what the node shares."""
        self._copies, self.first = [copy, None], copy.t
        self.start(shared)

    def forget(self) -> None:
        """Forget all copies: the model has become another one."""
        self._copies = [None, None]
        for slot in (0, 1):
            self.marks.begin(slot, NEVER)
            self.owed.copy(slot)

    def copy(self, t: int, flat: Row, state: Mapping[str, Any], log: Log | None) -> None:
        """Copy the rank after update t, in place of the older copy; see `Copy`."""
        slot = min((0, 1), key=lambda i: NEVER if (c := self._copies[i]) is None else c.t)
        self.marks.begin(slot, t)
        if not self.held:
            self.first = t
        old, self._copies[slot] = self._copies[slot], None  # whose memory is used again
        model, inside = self.asked.model, flat.tensors
        self._copies[slot] = Copy(
            t,
            flat.copied(old.weights if old is not None else None),
            {name: b.clone() for name, b in model.named_buffers() if name not in inside},
            [_moments(x.state) for x in self.asked.optimizers] if self._keeps(t) else None,
            state,
            None if log is None else log.still(),
            perf_counter(),
        )
        self.owed.copy(slot)
        self.marks.finish(slot, t)

    def _keeps(self, t: int) -> bool:
        """Return whether the optimisers' state is copied: all of it is asked for, or all equal."""
        equal = "keep" not in words(self.asked.state) or self.asked.algorithm.exchange.at(t)
        return self.asked.recovery_state == "all" or bool(equal)


def share(fleet: Fleet, wired: InCode | None, t: int = NEVER) -> Shared:
    """Make what the ranks of a node share of their copies. Collective.

    wired: the transport that codes averages, None if none does. t: of the first copy, if there is
    one.
    """
    owed = Owed(wired, fleet, partial(fleet.node_array, what=WHAT, instead=INSTEAD))
    for slot in (0, 1):  # of a rank that dies before its first copy, too
        owed.copy(slot)
    marks = Marks(fleet)
    marks.share()
    if t != NEVER:
        marks.finish(0, t)
    return Shared(marks, owed)


def _moments(state: Mapping[Any, Mapping[str, Any]]) -> dict[Any, dict[str, Any]]:
    """Return a copy of an optimiser's state; its parameters are the same ones."""
    return {
        p: {name: _copied(value) for name, value in values.items()} for p, values in state.items()
    }


def _copied(value: Any) -> Any:
    return value.clone() if hasattr(value, "clone") else deepcopy(value)
