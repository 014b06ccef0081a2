"""When learners average: after local update t, nobody, the clusters, or everyone.

Every schedule is a function ``after(t) -> Scope`` of the number t = 1, 2, … of completed local updates: a period of K
averages after updates K, 2K, 3K, …. The static schedules are pure. A run of T updates always ends averaged: at t = T the
training loop takes ``final`` in place of ``after(T)``, so that a last partial period is averaged too.

Two schedules are feedback controllers: they carry explicit state, are asked once for every t in order, and are told what
they `need` (the variance S or the objective F) of the average they called for.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum

from localavg.config import UserError, bad


class Scope(IntEnum):
    """Who averages."""

    NONE = 0
    CLUSTER = 1
    WORLD = 2


class Schedule:
    """What all schedules share: they end in a global average and need no feedback."""

    final = Scope.WORLD
    needs: str | None = None
    remembers: tuple[str, ...] = ()  # the attributes that are state
    steered_after = 0  # t up to which feedback changes nothing

    def after(self, t: int) -> Scope:
        """Who averages after local update t, t = 1, 2, …"""
        raise TypeError(f"{type(self).__name__} must say when to average")

    def observe(self, t: int, value: float, gamma: float) -> None:
        """Feedback after the average at t: S or F(w̄) as `needs` says, and the step size γ of update t."""

    def state_dict(self) -> dict[str, float]:
        """What a feedback controller has learnt so far; empty for the static schedules."""
        return {name: getattr(self, name) for name in self.remembers}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Go on from `state`."""
        for name in self.remembers:
            setattr(self, name, state[name])


class Never(Schedule):
    """No weight averages at all (sequential SGD; algorithms that exchange gradients every step)."""

    final = Scope.NONE

    def after(self, t: int) -> Scope:
        return Scope.NONE


class OneShot(Schedule):
    """One average, at T."""

    def after(self, t: int) -> Scope:
        return Scope.NONE


@dataclass(frozen=True)
class Every(Schedule):
    """Everyone after every K local updates (kavg Alg. 1; adpsgd Alg. 1, line 5; lupa Alg. 1, line 6)."""

    K: int

    def __post_init__(self) -> None:
        _at_least_one("K", self.K)

    def after(self, t: int) -> Scope:
        return Scope.NONE if t % self.K else Scope.WORLD


@dataclass(frozen=True)
class Hierarchical(Schedule):
    """Clusters every K1, everyone every K2 (hieravg Alg. 1).

    K1 need not divide K2: a global average replaces the local one due at the same t, and the local count restarts there.
    """

    K1: int
    K2: int

    def __post_init__(self) -> None:
        _at_least_one("K1", self.K1)
        _at_least_one("K2", self.K2)
        if self.K1 > self.K2:
            raise UserError(f"--K1 {self.K1} exceeds --K2 {self.K2}: clusters average at least as often as everyone, K1 <= K2")

    def after(self, t: int) -> Scope:
        since_global = t % self.K2
        if not since_global:
            return Scope.WORLD
        return Scope.NONE if since_global % self.K1 else Scope.CLUSTER


@dataclass(frozen=True)
class Linear(Schedule):
    """Periods that grow linearly, τ_i = ⌈(1 + iα) τ_0⌉, i = 0, 1, … (lupa §6)."""

    tau0: int
    alpha: float
    _ends: list[int] = field(default_factory=list, repr=False, compare=False)  # t of the averages, extended as asked

    def __post_init__(self) -> None:
        _at_least_one("tau0", self.tau0)
        if not 0 <= self.alpha < math.inf:
            raise bad("alpha", self.alpha, "must be a finite number of at least 0")

    def after(self, t: int) -> Scope:
        ends = self._ends
        while not ends or ends[-1] < t:
            tau = math.ceil(round((1 + len(ends) * self.alpha) * self.tau0, 9))  # 1.1 · 10 is 11, not 11.000000000000002
            ends.append((ends[-1] if ends else 0) + tau)
        return Scope.WORLD if ends[bisect_left(ends, t)] == t else Scope.NONE


@dataclass(frozen=True)
class Piecewise(Schedule):
    """A list of (from_t, K), from_t = 0 first: update t belongs to the last piece with from_t < t (adpsgd §III-A, §V-B).

    Everyone averages when the updates since the last average reach the K in force.
    """

    pieces: Sequence[tuple[int, int]]
    _ends: list[int] = field(default_factory=list, repr=False, compare=False)

    def __post_init__(self) -> None:
        starts = [start for start, _ in self.pieces]
        if not starts or starts[0] != 0 or any(b <= a for a, b in zip(starts, starts[1:], strict=False)):
            raise UserError(f"--pieces with starts {starts}: they must begin at 0 and increase by at least one update")
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


@dataclass
class LossDriven(Schedule):
    """Periods τ_i = ⌈(F(w̄_0) / F(w̄_i))^(1/3)⌉ τ_0 (lupa eq. 11), F the objective at the average that opens period i."""

    tau0: int
    due: int = 0  # t of the next average
    F0: float = math.nan
    needs = "objective"
    remembers = ("due", "F0")

    def __post_init__(self) -> None:
        _at_least_one("tau0", self.tau0)

    def after(self, t: int) -> Scope:
        return Scope.WORLD if t == self.due else Scope.NONE

    def observe(self, t: int, value: float, gamma: float) -> None:
        if t == 0:
            self.F0 = value
        if not (0 < value < math.inf and self.F0 > 0):
            raise UserError(f"adalupa --rule loss: F(w̄) = {value:g} at t = {t}, but eq. 11 needs a finite positive objective")
        self.due = t + max(1, math.ceil(round((self.F0 / value) ** (1 / 3), 9))) * self.tau0


@dataclass
class VarianceDriven(Schedule):
    """ADPSGD's period, steered by the variance S of the learners at each average (adpsgd Alg. 2).

    The first `warmup` updates average every step; Algorithm 2, its sampling of C₂ included, starts after them. K_s is
    counted in its iterations k = 0, 1, ….
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
            raise UserError(f"--low {self.low:g} and --high {self.high:g}: the thresholds need 0 < low <= high")
        if self.K_s < self.p_init:
            raise UserError(f"--Ks of {self.K_s} updates ends before the first average at p_init = {self.p_init}: "
                            f"C₂ would never be sampled; raise --Ks or the number of steps")
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


def _at_least_one(name: str, value: int) -> None:
    if value < 1:
        raise bad(name.replace("_", "-"), value, "a period must be at least 1")
