"""ADPSGD (adpsgd Alg. 2) and its periods in stages (adpsgd §III-A, §V-B)."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field

from localavg.algorithms.base import Algorithm, Nothing, Schedule, _at_least_one
from localavg.algorithms.mavg import _average
from localavg.errors import UserError, bad, positive
from localavg.scope import Scope


def adpsgd(
    T: int,
    epoch: float,
    p_init: int = 4,
    Ks: float = 0.25,
    low: float = 0.7,
    high: float = 1.3,
    warmup: float = 1.0,
    mu: float = 0.0,
    nesterov: bool = False,
) -> Algorithm:
    """ADPSGD (adpsgd Alg. 2): the variance of the learners steers the period. Ks: a fraction of T
    below 1, or updates.

    warmup: epochs of averaging every step before Algorithm 2 starts.
    """
    positive("Ks", Ks)
    if not 0 <= warmup < math.inf:
        raise bad("warmup", warmup, "must be a number of epochs of at least 0")
    K_s = int(round(Ks * T, 9)) if Ks < 1 else int(Ks)  # 0.29 · 100 is 29, not 28.999999999999996
    schedule = VarianceDriven(p_init, K_s, low, high, warmup=math.ceil(round(warmup * epoch, 9)))
    return Algorithm(schedule, _average(mu, nesterov), Nothing())


def piecewise(
    epoch: float, pieces: str = "0:4", mu: float = 0.0, nesterov: bool = False
) -> Algorithm:
    """A period K for each stage of training (adpsgd §III-A, §V-B), as
    FROM_EPOCH:K,FROM_EPOCH:K,…
    """
    try:
        stages = [
            (round(float(start) * epoch), int(K))
            for start, K in (p.split(":") for p in pieces.split(","))
        ]
    except (ValueError, OverflowError):
        raise bad(
            "pieces", pieces, "must read FROM_EPOCH:K,FROM_EPOCH:K,… such as 0:4,80:8"
        ) from None
    return Algorithm(Piecewise(stages), _average(mu, nesterov), Nothing())


@dataclass
class VarianceDriven(Schedule):
    """ADPSGD's period, steered by the variance S of the learners at each average (adpsgd Alg. 2).

    The first `warmup` updates average every step; Algorithm 2, its sampling of C₂ included, starts
    after them. K_s is counted in its iterations k = 0, 1, ….
    """

    p_init: int
    K_s: int
    low: float = 0.7
    high: float = 1.3
    warmup: int = 0
    p: int = field(init=False)
    cnt: int = 0
    C2: float = 0.0
    n_C: int = 0
    needs = "variance"
    remembers = ("p", "cnt", "C2", "n_C")

    @property
    def steered_after(self) -> int:
        return self.warmup + self.K_s

    def __post_init__(self) -> None:
        _at_least_one("p_init", self.p_init)
        if not 0 < self.low <= self.high < math.inf:
            raise UserError(
                f"--low {self.low:g} and --high {self.high:g}: the thresholds need 0 < low <= high"
            )
        if self.K_s < self.p_init:
            raise UserError(
                f"--Ks of {self.K_s} updates ends before the first average at p_init = "
                f"{self.p_init}: "
                f"C₂ would never be sampled; raise --Ks or the number of steps"
            )
        self.p = self.p_init

    def after(self, t: int) -> Scope:
        if t <= self.warmup:
            return Scope.WORLD
        self.cnt += 1
        if self.cnt == self.p:
            self.cnt = 0
            return Scope.WORLD
        return Scope.NONE

    def observe(self, t: int, value: float, gamma: float) -> None:
        k, S = t - self.warmup - 1, value
        if k < 0:
            return
        if k < self.K_s:
            self.n_C += 1
            self.C2 += (S / gamma - self.C2) / self.n_C
        elif S < self.low * gamma * self.C2:
            self.p += 1
        elif S > self.high * gamma * self.C2:
            self.p = max(1, self.p - 1)


@dataclass(frozen=True)
class Piecewise(Schedule):
    """A list of (from_t, K), from_t = 0 first: update t belongs to the last piece with from_t < t
    (adpsgd §III-A, §V-B).

    Everyone averages when the updates since the last average reach the K in force.
    """

    pieces: Sequence[tuple[int, int]]
    _ends: list[int] = field(default_factory=list, repr=False, compare=False)

    def __post_init__(self) -> None:
        starts = [start for start, _ in self.pieces]
        if (
            not starts
            or starts[0] != 0
            or any(b <= a for a, b in zip(starts, starts[1:], strict=False))
        ):
            raise UserError(
                f"--pieces with starts {starts}: they must begin at 0 and increase by at least one "
                "update"
            )
        for _, K in self.pieces:
            _at_least_one("pieces", K)

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
