"""Means in shared memory, of weights that cross nodes in code; see `algorithms/wire.py`."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from localavg.interfaces import Array, Rounding, Step
from localavg.parallel.device import put_
from localavg.parallel.transport import coded_lanes, low_rank
from localavg.parallel.transport.coded_lanes import CodedLanes, Feedback, Group
from localavg.parallel.transport.lanes import Lanes, Weights
from localavg.parallel.transport.low_rank import LowRank
from localavg.parallel.transport.shared import Part, SharedMemory
from localavg.parallel.wires import factors
from localavg.parallel.wires.factors import Tensor
from localavg.scope import Scope


class Coding(NamedTuple):
    """What of the rows is coded, and how."""

    n: int
    """the number of columns, the first ones"""
    tensors: Sequence[Tensor]
    """the tensors in these columns"""
    code: Rounding | None
    """None for products of rank r"""
    r: int = 0
    seed: int = 0
    """of the first factors"""


Way = CodedLanes | LowRank | Lanes


class Watched(NamedTuple):
    """What averages some columns of the rows that are watched, n of them, over each scope."""

    n: int
    columns: slice
    """of all that is coded"""
    lanes: Mapping[Scope, Sequence[Way]]


class InCode(SharedMemory):
    """As SharedMemory, but the means of some rows cross nodes in code, with feedback.

    `use` says how, `watch` whose. pieces: columns that average at once. plain: the next mean of
    those rows carries all feedback, in float32. plain_at: the update after which the last one of
    that kind was, −1 without one.
    """

    plain = False
    plain_at = -1
    coding: Coding | None = None
    pieces: Sequence[slice] = (slice(None),)
    late: np.ndarray | None = None
    """what codes had lost when all living ranks were on one node [n], for the next mean"""
    _watched: Mapping[int, Watched] = {}  # by the address of the first learner's columns

    def use(self, coding: Coding) -> None:
        """Code so from now on. Raises UserError if no tensor has a product of rank r."""
        if coding.code is None:
            factors.check_rank(coding.tensors, coding.r)
        self.coding = coding

    @property
    def how(self) -> Coding:
        """What is coded."""
        assert self.coding is not None, "`use` comes first"
        return self.coding

    def watch(self, w: np.ndarray, pieces: Sequence[slice] = (slice(None),)) -> None:
        """Code the means of w [L, ≥ n], which `zeros` made. Collective; called once.

        pieces: columns that average at once; if there are several, the first one is all of them,
        and never coded.
        """
        self.base = self.common((1, self.how.n))[0]  # w̃
        self.pieces = pieces
        address = w.__array_interface__["data"][0]
        found: dict[int, Watched] = {}
        for columns in pieces[1:] or pieces:
            a, n = self._trained(columns)
            if n:
                found[address + a * w.itemsize] = self._watch(w, slice(a, a + n))
        self._watched = found

    def _watch(self, w: np.ndarray, columns: slice) -> Watched:
        """Make what averages these columns of w."""
        rows = self._columns(w[:, columns])
        assert rows is not None, "rows of this transport"
        base = self.base[columns]
        lanes = {
            scope: [self._lanes(rows[part.rows], part, scope, base) for part in parts]
            for scope, parts in self.parts.items()
            if self.crosses(scope)
        }
        return Watched(len(base), columns, lanes)

    def _trained(self, columns: slice) -> tuple[int, int]:
        """Return where these columns begin, and how many of them are coded."""
        a, b, _ = columns.indices(self.how.n)
        return a, max(0, b - a)

    def _lanes(self, rows: np.ndarray, part: Part, scope: Scope, base: np.ndarray) -> Way:
        """Make the work of a part of this rank; its group may be on one node alone."""
        lanes = rows, part.here, part.lanes, part.handled, part.learners
        if not _crosses(part):
            return Lanes(*lanes, self._scratch, self._spread)
        _, tensors, code, r, seed = self.how
        group = Group(*lanes, self._spread, base, everyone=scope is Scope.WORLD)
        return LowRank(group, tensors, r, seed) if code is None else CodedLanes(group, code)

    def crosses(self, scope: Scope) -> bool:
        """Return whether averages over `scope` cross nodes, of any group."""
        layout = self.layout
        groups = map(layout.ranks_of, layout.clusters(self.sizes[scope]))
        return any(len(layout.by_node(ranks)) > 1 for ranks in groups)

    def begin(self, w: np.ndarray) -> None:
        """Take the equal weights w [L, ≥ n] as the last average of everyone."""
        self.base[...] = w[0, : self.how.n]

    def mean_(
        self, w: np.ndarray, scope: Scope, variance: bool = False, step: Step | None = None
    ) -> float:
        """Set every row of w [L, n] to the mean of its group, in place; see `Transport.mean_`."""
        watched = self._watched.get(w.__array_interface__["data"][0])
        late = self.late if scope is Scope.WORLD else None
        if watched is None or (late is None and scope not in watched.lanes):
            return super().mean_(w, scope, variance, step)
        if w.shape[1] > (n := watched.n):
            super().mean_(w[:, n:], scope)
        if late is not None:
            return self._late_mean_(w[:, :n], late[watched.columns], variance, step)
        weights = Weights.of(self.weights, scope, self._learners)
        spread = 0.0
        for lanes in watched.lanes[scope]:
            plain = () if isinstance(lanes, Lanes) else (self.plain,)
            spread += lanes.mean_(variance, step, weights, *plain)
        return self._over_learners(spread, weights) if variance else np.nan

    def _late_mean_(self, w: Array, late: Array, variance: bool, step: Step | None) -> float:
        """Set every row of w [L, n] to the mean and what is late of it [n]; else as `mean_`."""

        def with_late(mean: Array, columns: slice) -> Array:
            mean += late[columns]
            return mean if step is None else step(mean, columns)

        S = super().mean_(w, Scope.WORLD, variance, with_late)
        late[...] = 0
        return S

    def sum_bytes(self, scope: Scope, piece: int = 0) -> tuple[int, int]:
        """Return this rank's bytes in one mean of a piece's code: within its node, across nodes."""
        _, tensors, code, r, _ = self.how
        _, n = self._trained(self.pieces[piece])
        within, across = self.payload_bytes(4 * n, scope)
        crossing = [part for part in self.parts[scope] if _crosses(part)]
        if not crossing:
            return within, across
        if code is None:
            return within, sum(
                low_rank.sent_bytes(tensors, part.lanes, part.handled, r) for part in crossing
            )
        return within, sum(
            coded_lanes.sent_bytes(n, part.lanes, part.handled, code) for part in crossing
        )

    def learner_bytes(self, scope: Scope, piece: int = 0) -> int:
        """Return the bytes of what is coded of a learner's piece, if it is a node of its own."""
        _, tensors, code, r, _ = self.how
        _, n = self._trained(self.pieces[piece])
        if not self.crosses(scope):
            return 4 * n
        return factors.nbytes(tensors, r) if code is None else code.nbytes(n)

    def state_dict(self) -> dict[str, Array]:
        """Return w̃, the feedback of this rank's lanes, and what the lanes follow from."""
        feedback = np.concatenate([np.empty(0, np.float32), *self._feedback()])
        return {"wire_base": self.base, "wire_feedback": feedback, "wire_nodes": self._nodes()}

    @property
    def keeps(self) -> tuple[str, ...]:
        """The names of what is in `by_column`, alike on all ranks."""
        if not self.crosses(Scope.WORLD):
            return () if self.late is None else ("r",)
        return ("e", "Q") if self.how.code is None else ("e", "r")

    @property
    def total(self) -> int:
        """By what a sum over all nodes is divided, and what codes have lost of it."""
        return 1 if self.weights else self.P

    def by_column(self) -> Iterator[Feedback]:
        """Yield what averages of everyone keep on this rank, by the columns that are coded."""
        if self.late is not None:
            yield "r", slice(0, self.how.n), self.late
        for watched in self._watched.values():
            start = watched.columns.start
            for lanes in watched.lanes.get(Scope.WORLD, ()):
                for key, columns, x in () if isinstance(lanes, Lanes) else lanes.by_column:
                    yield key, slice(start + columns.start, start + columns.stop), x

    def _take(self, state: Mapping[str, Array]) -> None:
        """Take what the codes of everyone have lost from the state of a run with other ranks.

        wire_e [n]: of the rank's node, wire_r and wire_Q: of all.
        """
        kept = {key: state.get(f"wire_{key}", np.zeros(self.how.n, np.float32)) for key in "erQ"}
        for key, columns, x in self.by_column():
            x[...] = kept[key][columns]
        if not self.crosses(Scope.WORLD):  # everything arrives in float32 from now on
            self.late = kept["r"] + kept["e"] / np.float32(self.total)

    def load_state_dict(self, state: Mapping[str, Array]) -> None:
        """Resume from `state`; feedback of other lanes is dropped, with a line on stderr."""
        put_(self.base, state["wire_base"])
        if "wire_feedback" not in state:
            self._take(state)
            return
        if not np.array_equal(state["wire_nodes"], self._nodes()):
            if self.fleet.rank == 0:
                print(
                    "localavg: wire: saved with another layout of ranks and nodes; what its codes "
                    "have lost so far is dropped, and not sent later",
                    file=sys.stderr,
                )
            return
        start = 0
        for mine in self._feedback():
            mine[...] = state["wire_feedback"][start : start + len(mine)]
            start += len(mine)

    def _feedback(self) -> list[np.ndarray]:
        """Return what this rank's lanes keep, from the innermost clusters to everyone."""
        made = [
            lanes
            for watched in self._watched.values()
            for scope in sorted(watched.lanes)
            for lanes in watched.lanes[scope]
        ]
        return [x for lanes in made if not isinstance(lanes, Lanes) for x in lanes.feedback]

    def _nodes(self) -> np.ndarray:
        return np.array([self.P, *self.layout.node_of], np.int64)


def _crosses(part: Part) -> bool:
    """Return whether a part's group has ranks on other nodes."""
    return any(comms for _, comms in part.handled)
