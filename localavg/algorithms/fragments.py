"""Averages in fragments: each is of a piece of the weights, so that fewer bytes travel at once.

Arthur Douillard et al.: Streaming DiLoCo with overlapping communication. 2025, arXiv 2501.18512.
The columns of a row are cut into F = `fragments` pieces of equal length, at multiples of 64 floats.
Every K updates every piece averages once, and the pieces take turns:

    piece i = 0, …, F − 1 averages after update t where t ≡ ⌊(i + 1)K/F⌋ mod K

with a w̃ and moments of the outer optimiser of its own. After update T all pieces average. The paper
and torchft cut by layers. Here a piece may begin within a tensor, so that all have equal length.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from localavg.algorithms.base import Average, Due, Mean, Schedule
from localavg.errors import UserError, bad, whole
from localavg.interfaces import Array, Transport
from localavg.scope import Scope

ALIGN = 64  # floats


@dataclass(frozen=True)
class InTurn(Schedule):
    """Everyone averages the pieces in turn, each once in K local updates."""

    K: int
    F: int

    def __post_init__(self) -> None:
        whole("fragments", self.F)
        if self.F < 1:
            raise bad("fragments", self.F, "must be at least 1 piece")
        if self.F > self.K:
            raise UserError(
                f"`fragments = {self.F}` with a period of {self.K} updates: at most one piece "
                f"averages after an update; use at most {self.K}"
            )

    @property
    def shortest(self) -> int:
        return self.K // self.F

    def piece(self, t: int) -> int | None:
        """Return the piece that averages after update t, None if none does."""
        s = t % self.K or self.K  # 1 … K
        i = -(-s * self.F // self.K) - 1  # the least i with ⌊(i + 1)K/F⌋ ≥ s
        i += (i + 1) * self.K // self.F < s
        return i if (i + 1) * self.K // self.F == s else None

    def after(self, t: int) -> Scope:
        return Scope.NONE if self.piece(t) is None else Scope.WORLD


class Fragmented(Average):
    """Averages of pieces of the weights, each by an average of its own.

    make: makes an average. schedule: whose turn it is, from update t0 on.
    """

    def __init__(self, make: Callable[[], Mean], schedule: InTurn, t0: int = 0) -> None:
        self.each = [make() for _ in range(schedule.F)]
        self.schedule, self.t0 = schedule, t0
        first = self.each[0]
        self.kept, self.needs_gamma = first.kept, first.needs_gamma
        self.apart = schedule.F > 1
        self.pieces = (slice(None),) * (schedule.F + 1)
        self.trains: list[bool] = []  # whether a piece has columns that are trained
        self._whole_at = -1  # the update after which all pieces averaged
        # an update after which one piece averaged, and then the others at the end of a run
        self._rest: tuple[int, tuple[int, ...]] = -1, ()
        self._last = [-1] * schedule.F  # the update after which each piece averaged last

    def cut(self, n: int) -> None:
        F, blocks = self.schedule.F, -(-n // ALIGN)
        if blocks < F:
            raise UserError(
                f"`fragments = {F}`: a row has {n} numbers, which are {blocks} blocks of {ALIGN}, "
                f"and a piece is one block at least; use at most {blocks}"
            )
        ends = [min(n, blocks * i // F * ALIGN) for i in range(F + 1)]
        cuts = [slice(a, b) for a, b in zip(ends, ends[1:], strict=False)]
        self.pieces = (slice(None), *cuts)

    def start(self, w: Array, trained: int, transport: Transport) -> None:
        self.cut(w.shape[1])
        self.trains = []
        for i, columns in enumerate(self.pieces[1:]):
            own = min(max(trained - columns.start, 0), columns.stop - columns.start)
            if not own:  # statistics alone, whose average is the plain mean
                self.each[i] = Mean()
            self.trains.append(own > 0)
            self.each[i].start(w[:, columns], own, transport)

    def begin(self, w: Array) -> None:
        for average, columns in zip(self.each, self.pieces[1:], strict=True):
            average.begin(w[:, columns])

    def piece(self, t: float) -> int:
        i = None if t == self._whole_at else self.schedule.piece(int(t) - self.t0)
        return 0 if i is None else i + 1

    def averaged(self, t: float) -> tuple[int, ...]:
        return self._rest[1] if t == self._rest[0] else (self.piece(t),)

    def drop(self, t: int) -> None:
        self._last = [-1 if last == t else last for last in self._last]

    def average_(self, w: Array, due: Due, transport: Transport) -> float:
        if not due.last:
            i = self.schedule.piece(due.t - self.t0)
            assert i is not None, "a piece is due"
            return self._average_(i, w, due, transport)
        late = [i for i in range(self.schedule.F) if self._last[i] < due.t]
        if len(late) == self.schedule.F:
            self._whole_at = due.t
        else:
            self._rest = due.t, tuple(i + 1 for i in late)
        return sum(self._average_(i, w, due, transport) for i in late)

    def _average_(self, i: int, w: Array, due: Due, transport: Transport) -> float:
        """Average piece i. Return its part of S if it is wanted, else NaN."""
        self._last[i] = due.t
        own = replace(due, variance=due.variance and self.trains[i])
        S = self.each[i].average_(w[:, self.pieces[i + 1]], own, transport)
        return 0.0 if due.variance and not own.variance else S

    def state_dict(self) -> dict[str, Array]:
        own = {
            f"{name}_{i}": x
            for i, average in enumerate(self.each)
            for name, x in average.state_dict().items()
        }
        return {**own, "averaged": np.array(self._last)}

    def load_state_dict(self, state: dict[str, Array]) -> None:
        for i, average in enumerate(self.each):
            own = {name: state[f"{name}_{i}"] for name in average.state_dict()}
            average.load_state_dict(own)
        self._last = [int(t) for t in state["averaged"]]


def check(
    F: int | None, period: int | None, chosen: bool, delay: int, refused: Sequence[str]
) -> None:
    """Raise UserError for fragments that cannot be.

    period: K, None where it is not fixed. chosen: whether it is chosen while training. delay: τ.
    refused: options that were given, and that fragments exclude.
    """
    if F is None:
        return
    if chosen:
        raise UserError(
            "`fragments` with `K = auto`: pieces need a fixed period; give `K` a number"
        )
    if period is None:
        raise UserError(
            "`fragments` means nothing to an algorithm whose period is not fixed, or with "
            "clusters; leave it out, or use kavg, mavg, diloco, slowmo or postlocal"
        )
    InTurn(period, F)
    if F > 1 and refused:
        raise UserError(
            f"`fragments` with `{refused[0]}`: a round has no end at which all weights average; "
            "leave one of them out"
        )
    if F > 1 and delay * F >= period:
        raise UserError(
            f"`delay = {delay}` with `fragments = {F}`: a mean must arrive before the next piece "
            f"averages, {period}/{F} updates later; use at most {(period - 1) // F}"
        )
