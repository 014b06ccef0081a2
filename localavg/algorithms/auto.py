"""K chosen while training: what averages cost asks for a period, the learners' spread allows it.

For the rows with a fixed K, with K = auto:

    K ← 4 for the first rounds; after 3 rounds with known times, at each average of everyone:
        a, c: seconds of an average without waiting, and of an update; medians of the last 5 rounds
        K_time ← ⌈a / (ε c)⌉                             ε = 0.05
        p ← K_time until K has come near it: until K_time < 2K at an average
        in the 16 K_time updates after that: p ← K_time, C₂ is sampled   adpsgd Alg. 2, line 14
        after them p changes by the test of S against γ C₂, p ≤ K_time   lines 16 to 19
        K ← max(min(K_time, p, 2K), τ)                   τ = `delay`, 0 without

K at most doubles from one average to the next, so that a run on a slow link, whose K_time may be as
long as the run, does not end with hardly any average. So averages take at most ε/(1 + ε) of the
time, but for the first ones, or as much more as the test of ADPSGD asks for: the learners are not
to spread further, per γ, than they did at first with K_time. A delayed average costs what updates
do not hide: a is the time that it holds the learners up. All ranks get the same a, c and S, so they
choose alike. The times differ from run to run: a run repeats another one by `replay`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import numpy as np

from localavg.algorithms.adpsgd import VarianceDriven
from localavg.algorithms.base import Schedule
from localavg.scope import Scope

EPSILON = 0.05
"""ε, the time of averages that is asked for, divided by that of updates"""
FIRST = 4
"""K before the times are known"""
ROUNDS = 3
"""rounds with known times before the first choice"""
RECENT = 5
"""the last rounds, whose medians count"""
REASONS = "start", "growth", "time", "variance"
"""why K is what it is: times are not known; it doubles; what averages cost; the learners' spread"""
SAMPLED = 16
"""periods in which C₂ is sampled"""


def time_K(average_s: float, update_s: float) -> int:
    """Return K_time = ⌈a / (ε c)⌉, at least 1."""
    # 0.3 / (0.05 · 2) is 3, not 3.0000000000000004
    return max(1, math.ceil(round(average_s / (EPSILON * update_s), 9)))


@dataclass
class Auto(Schedule):
    """Everyone after K updates, K chosen at every average."""

    K: int = FIRST
    cnt: int = 0  # updates since the last average
    rounds: list[tuple[float, float]] = field(default_factory=list)  # (a, c), the last ones
    since: int = -1  # t from which C₂ is sampled, -1 before
    bound: VarianceDriven = field(default_factory=lambda: VarianceDriven(1, 1))  # has p and C₂
    reason: str = "start"
    least: int = 1  # τ: a mean begins no earlier than the last one has arrived
    needs = "pace"

    def delayed(self, tau: int) -> None:
        self.least = max(1, tau)

    def after(self, t: int) -> Scope:
        self.cnt += 1
        if self.cnt < max(self.K, self.least):
            return Scope.NONE
        self.cnt = 0
        return Scope.WORLD

    def observe(
        self,
        t: int,
        value: float,
        gamma: float,
        wall_s: float = math.nan,
        pace: tuple[float, float] = (math.nan, math.nan),
    ) -> None:
        """Choose K. value: S. pace: a and c of the round that ends at t, NaN if not known."""
        average_s, update_s = pace
        if average_s >= 0 and update_s > 0:
            self.rounds = [*self.rounds, (average_s, update_s)][-RECENT:]
        if self.since < 0 and len(self.rounds) < ROUNDS:
            return
        K, bound = max(self.least, time_K(*self.pace)), self.bound
        if self.since < 0 or (not bound.n_C and K >= 2 * self.K):
            self.since = t
            bound.K_s = SAMPLED * K
        else:
            bound.observe(t - self.since, value, gamma)
        if t - self.since <= bound.K_s:
            bound.p = K
        bound.p = min(bound.p, K)
        self.K = max(self.least, min(bound.p, 2 * self.K))
        self.reason = "variance" if bound.p < K else "time" if self.K == K else "growth"

    @property
    def pace(self) -> tuple[float, float]:
        """The medians of a and c, NaN before any round is known."""
        if not self.rounds:
            return math.nan, math.nan
        averages_s, updates_s = zip(*self.rounds, strict=True)
        return median(averages_s), median(updates_s)

    @property
    def decision(self) -> Mapping[str, float | str]:
        average_s, update_s = self.pace
        known = self.since >= 0
        return {
            "K": self.K,
            "reason": self.reason,
            "average_s": average_s,
            "update_s": update_s,
            "time_K": time_K(average_s, update_s) if known else math.nan,
            "C2": self.bound.C2 if self.bound.n_C else math.nan,
        }

    @property
    def unsteered(self) -> str:
        if self.since < 0:
            return (
                f"the run ended before the times of {ROUNDS} rounds were known, so K was {FIRST} "
                "all along; train for longer, or give a number"
            )
        if self.reason == "variance":
            return (
                f"in the end averages were to be every {time_K(*self.pace)} updates for their "
                f"time, and the learners' spread allowed {self.K}; `delay` hides averages"
            )
        return ""

    def state_dict(self) -> dict[str, Any]:
        bound, flat = self.bound, [x for pair in self.rounds for x in pair]
        mine = {"K": self.K, "cnt": self.cnt, "since": self.since, "rounds": flat}
        its = {"p": bound.p, "C2": bound.C2, "n_C": bound.n_C, "K_s": bound.K_s}
        return {**mine, **its, "reason": REASONS.index(self.reason)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.K, self.cnt, self.since = (int(state[name]) for name in ("K", "cnt", "since"))
        flat = np.asarray(state["rounds"], float).tolist()
        self.rounds = list(zip(flat[::2], flat[1::2], strict=True))
        bound = self.bound
        bound.p, bound.n_C, bound.K_s = (int(state[name]) for name in ("p", "n_C", "K_s"))
        bound.C2 = float(state["C2"])
        self.reason = REASONS[int(state["reason"])]
