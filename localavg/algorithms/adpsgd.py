"""ADPSGD: the variance of the learners steers the averaging period.

Peng Jiang, Gagan Agrawal: Adaptive Periodic Averaging: A Practical Approach to Reducing
Communication in Distributed Learning. 2020, Algorithm 2 (`VarianceDriven`); the strategies of
§III-A and §V-B that change the period at given times (`Piecewise`). It is not asynchronous
decentralised parallel SGD, which shares the acronym.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Unpack

from localavg.algorithms.about import about
from localavg.algorithms.base import Algorithm, Costs, Schedule, check_period
from localavg.algorithms.common import Common, composed
from localavg.algorithms.parameters import Epochs, FractionOfT, StagesInEpochs, algorithm
from localavg.errors import UserError, bad, whole
from localavg.scope import Scope


@about(
    take_if="you do not know K, and the step size falls",
    rounds="steered by the learners' variance",
    source="adpsgd Alg. 2",
)
@algorithm
def adpsgd(
    p_init: Annotated[int, "the first averaging period, in local updates"] = 4,
    Ks: Annotated[
        float,
        FractionOfT(
            "Ks",
            0.25,
            "K_s, the length of the phase that only samples C₂: below 1 a fraction of all updates, "
            "else a number of updates",
        ),
    ] = 0.25,
    low: Annotated[float, "the period grows by 1 update if S_k < low γ_k C₂"] = 0.7,
    high: Annotated[float, "the period falls by 1 update if S_k > high γ_k C₂"] = 1.3,
    warmup_steps: Annotated[
        int, Epochs("warmup", 1.0, "average after every update for the first X epochs")
    ] = 0,
    **common: Unpack[Common],
) -> Algorithm:
    """ADPSGD (adpsgd Alg. 2): the variance of the learners steers the period.

    In Python Ks and warmup_steps are numbers of updates. On the command line --Ks may be a fraction
    of T, and --warmup is a number of epochs.
    """
    if 0 < Ks < 1:
        raise bad("Ks", Ks, "a fraction of T needs T; give a number of updates, such as Ks=1000")
    if not 0 <= Ks < math.inf or Ks != int(Ks):
        raise bad("Ks", Ks, "must be a whole number of updates")
    schedule = VarianceDriven(p_init, int(Ks), low, high, warmup_steps)
    return composed(schedule, **common)


@about(
    take_if="you want to give each stage of the run its period",
    rounds="by stage",
    source="adpsgd §V-B",
)
@algorithm
def piecewise(
    pieces: Annotated[
        Mapping[int, int] | Sequence[tuple[int, int]],
        StagesInEpochs(
            "pieces",
            "0:4",
            "the period K of each stage in local updates, as FROM_EPOCH:K,FROM_EPOCH:K,…",
        ),
    ],
    **common: Unpack[Common],
) -> Algorithm:
    """A period K for each stage of training (adpsgd §III-A, §V-B).

    pieces: {from_t: K}, such as {0: 4, 8000: 8}; the first from_t is 0. On the command line
    --pieces has epochs in place of updates.
    """
    try:
        pairs = pieces.items() if isinstance(pieces, Mapping) else pieces
        stages = [(start, K) for start, K in pairs]
    except (TypeError, ValueError):
        rule = "must be numbers of updates with their K, such as {0: 4, 8000: 8}"
        raise bad("pieces", pieces, rule) from None
    return composed(Piecewise(stages), **common)


@dataclass
class VarianceDriven(Schedule):
    """Algorithm 2. Iteration k = 0, 1, … is update t = warmup_steps + k + 1.

    In the first warmup_steps updates everyone averages after every update (§IV-B); Algorithm 2
    starts after them. Line 4 is the loop of `training/loop.py`, and lines 6 and 7 are the local
    update there. `after` has lines 5, 8 and 9. Lines 10 to 12 are `Transport.mean_`; its result S_k
    goes to `observe`, which has lines 13 to 19.
    """

    p_init: int
    K_s: int
    low: float = 0.7
    high: float = 1.3
    warmup_steps: int = 0
    cnt: int = 0  # line 1
    p: int = field(init=False)  # line 2: p = p_init
    C2: float = 0.0  # line 3
    n_C: int = 0  # samples in C₂
    needs = "variance"
    remembers = ("p", "cnt", "C2", "n_C")

    def after(self, t: int) -> Scope:
        if t <= self.warmup_steps:
            return Scope.WORLD
        self.cnt += 1  # line 5
        if self.cnt != self.p:  # line 8
            return Scope.NONE
        self.cnt = 0  # line 9
        return Scope.WORLD

    def observe(
        self,
        t: int,
        value: float,
        gamma: float,
        wall_s: float = math.nan,
        costs: Sequence[Costs] = (),
    ) -> None:
        S, k = value, t - self.warmup_steps - 1  # S_k of line 11
        if k < 0:
            return
        if k < self.K_s:  # line 13
            self.n_C += 1
            self.C2 += (S / gamma - self.C2) / self.n_C  # line 14: running average
        elif S < self.low * gamma * self.C2:  # line 16
            self.p += 1  # line 17
        elif S > self.high * gamma * self.C2:  # line 18
            self.p = max(1, self.p - 1)  # line 19

    @property
    def steered_after(self) -> int:
        return self.warmup_steps + self.K_s

    def __post_init__(self) -> None:
        check_period("p_init", self.p_init)
        if self.warmup_steps < 0:
            raise bad("warmup_steps", self.warmup_steps, "must be at least 0")
        if not 0 < self.low <= self.high < math.inf:
            raise UserError(
                f"`low = {self.low:g}` and `high = {self.high:g}`: the thresholds need 0 < low <= "
                "high"
            )
        if self.K_s < self.p_init:
            raise UserError(
                f"`Ks` of {self.K_s} updates ends before the first average at p_init = "
                f"{self.p_init}: C₂ would never be sampled; raise `Ks` or the number of steps"
            )
        self.p = self.p_init


@dataclass(frozen=True)
class Piecewise(Schedule):
    """A period for each stage, as a list of (from_t, K) that begins with from_t = 0.

    Update t belongs to the last piece with from_t < t. Everyone averages when the number of updates
    since the last average reaches the K of the piece.
    """

    pieces: Sequence[tuple[int, int]]
    _ends: list[int] = field(default_factory=list, repr=False, compare=False)

    def __post_init__(self) -> None:
        starts = [start for start, _ in self.pieces]
        for start in starts:
            whole("pieces", start)
        rising = all(a < b for a, b in zip(starts, starts[1:], strict=False))
        if not starts or starts[0] != 0 or not rising:
            raise UserError(
                f"`pieces` with starts {starts}: they must begin at 0 and increase by at least one "
                "update"
            )
        for _, K in self.pieces:
            check_period("pieces", K)

    @property
    def shortest(self) -> int:
        return min(K for _, K in self.pieces)

    def after(self, t: int) -> Scope:
        ends = self._ends
        while not ends or ends[-1] < t:
            ends.append(self._next(ends[-1] if ends else 0))
        return Scope.WORLD if ends[bisect_left(ends, t)] == t else Scope.NONE

    def _next(self, last: int) -> int:
        stops = [start for start, _ in self.pieces[1:]] + [None]
        for (start, K), stop in zip(self.pieces, stops, strict=True):
            t = max(last + K, start + 1)
            if stop is None or t <= stop:
                return t
        raise AssertionError("the last piece has no end")
