"""K chosen while training: by what averages cost, and by what the learners lose at an average.

For the rows with a fixed K, with K = auto:

    K ← 4; at the second average of everyone, after which times are known, then at each one while K
    doubles, else after 1, 2, 4, 8, 8, … averages:
        a, c: seconds of an average without waiting, and of an update; medians of the last 5 rounds
        f, l: mean loss of the learners in the first update after an average, in the last before it
        x ← Σ(f − l) / Σ(K − 1)l, at least 0             sums over the last 16 averages with K > 1
        K_time ← ⌈a / (ε c)⌉                             ε = 0.05
        K* ← the K ≤ K_time with the least (1 + a/(Kc)) √(1 + (K − 1)x)
        K ← max(min(K*, 2K), τ)                          τ = `delay`, 0 without

The first factor is the time of an update with its part of an average. The second one says how many
updates a loss takes. Where learners hold different data each one's loss falls by its own updates,
and an average undoes a part: f > l. In runs f/l was about 1 + (K − 1)x for all K, and the updates
to a loss grew about as √(f/l) (BENCHMARKS.md has them). Where the learners' data are alike, f ≤ l
and K* = K_time: averages take at most ε/(1 + ε) of the time. The spread S of the learners does not
tell these cases apart: with different data, too, S/(γK) hardly depended on K.

A choice takes a meeting of all ranks, which may cost as much as an average: so after 8 of them.
K at most doubles from one average to the next, so that a run on a slow link, whose K_time may be as
long as the run, does not end with hardly any average. With K = 1 nothing is undone that could be
seen: after 16 such rounds one has K = 2. A delayed average costs what updates do not hide: a is the
time that it holds the learners up. All ranks get the same a, c, f and l, so they choose alike. The
times differ from run to run: a run repeats another one by `replay`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import numpy as np

from localavg.algorithms.base import Costs, Schedule
from localavg.scope import Scope

EPSILON = 0.05
"""ε, the time of averages that is asked for, divided by that of updates"""
FIRST = 4
"""K before the times are known"""
RECENT = 5
"""the last rounds, whose medians count"""
EVERY = 8
"""averages from one choice to the next, at last"""
SEEN = 16
"""the last averages whose losses count; rounds of one update after which one has two"""
REASONS = "start", "growth", "time", "losses", "look"
"""why K is what it is: times are not known; it doubles; what averages cost; what they undo; x"""


def time_K(average_s: float, update_s: float) -> int:
    """Return K_time = ⌈a / (ε c)⌉, at least 1."""
    # 0.3 / (0.05 · 2) is 3, not 3.0000000000000004
    return max(1, math.ceil(round(average_s / (EPSILON * update_s), 9)))


def best_K(ratio: float, x: float, most: int) -> int:
    """Return the K in 1, …, most with the least (1 + r/K) √(1 + (K − 1)x), the smaller of equals.

    ratio: r = a/c. Its derivative is zero at K² − rK = 2r(1 − x)/x; x = 0: it falls with K.
    """
    if x <= 0:
        return most
    inside = ratio**2 + 8 * ratio * (1 - x) / x
    root = (ratio + math.sqrt(max(0.0, inside))) / 2
    Ks = sorted({1, most, *(min(max(1, K), most) for K in (math.floor(root), math.ceil(root)))})
    return min(Ks, key=lambda K: (1 + ratio / K) * math.sqrt(1 + (K - 1) * x))


@dataclass
class Auto(Schedule):
    """Everyone after K updates, K chosen at every average."""

    K: int = FIRST
    cnt: int = 0  # updates since the last average
    rounds: list[tuple[float, float]] = field(default_factory=list)  # (a, c), the last ones
    undone: list[tuple[float, float]] = field(default_factory=list)  # (f − l, (K − 1)l), likewise
    before: tuple[int, float] = 0, 0.0  # K and l of the last round
    ones: int = 0  # rounds of one update since K was last another
    left: int = 2  # averages until the next choice
    every: int = 1  # averages between choices, more and more of them
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
        self.left -= 1
        return Scope.WORLD

    @property
    def chooses(self) -> bool:
        return self.left <= 0

    def observe(
        self,
        t: int,
        value: float,
        gamma: float,
        wall_s: float = math.nan,
        costs: Sequence[Costs] = (),
    ) -> None:
        """Choose K."""
        for each in costs:
            self._see(each)
        self.left = 1
        if not self.rounds:
            return
        average_s, update_s = self.medians
        by_time = time_K(average_s, update_s)
        best = best_K(average_s / update_s, self.x, by_time)
        look = self.K == best == 1 < by_time and self.ones >= SEEN
        wanted = max(self.least, 2 if look else best)
        growing = wanted > 2 * self.K
        self.K = 2 * self.K if growing else wanted
        by_losses = "losses" if best < by_time else "time"
        self.reason = "look" if look else "growth" if growing else by_losses
        if not (look or growing):
            self.left, self.every = self.every, min(2 * self.every, EVERY)

    def _see(self, of: Costs) -> None:
        """Note the times of a round, and what the average before it has undone."""
        K, l = self.before
        if K > 1 and math.isfinite(of.first - l):
            self.undone = [*self.undone, (of.first - l, (K - 1) * l)][-SEEN:]
        self.before = of.updates, of.last
        self.ones = self.ones + 1 if of.updates == 1 else 0
        if of.average_s >= 0 and of.update_s > 0:
            self.rounds = [*self.rounds, (of.average_s, of.update_s)][-RECENT:]

    @property
    def x(self) -> float:
        """The growth of the loss at an average, by its ratio, per update before it but one."""
        grown, scale = (sum(part) for part in zip(*self.undone or [(0.0, 0.0)], strict=True))
        return grown / scale if grown > 0 and scale > 0 else math.inf if grown > 0 else 0.0

    @property
    def medians(self) -> tuple[float, float]:
        """The medians of a and c, NaN before any round is known."""
        if not self.rounds:
            return math.nan, math.nan
        averages_s, updates_s = zip(*self.rounds, strict=True)
        return median(averages_s), median(updates_s)

    @property
    def decision(self) -> Mapping[str, float | str]:
        average_s, update_s = self.medians
        return {
            "K": self.K,
            "reason": self.reason,
            "average_s": average_s,
            "update_s": update_s,
            "time_K": time_K(average_s, update_s) if self.rounds else math.nan,
            "x": self.x if self.undone else math.nan,
        }

    @property
    def unsteered(self) -> str:
        if not self.rounds:
            return (
                f"the run ended before the times of a round were known, so K was {FIRST} all "
                "along; train for longer, or give a number"
            )
        if self.reason == "losses":
            return (
                f"in the end averages were to be every {time_K(*self.medians)} updates for their "
                f"time, and every {self.K} for what they undo, since the learners' data differ; "
                "`delay` hides averages"
            )
        return ""

    def state_dict(self) -> dict[str, Any]:
        pairs: dict[str, list[Any]]
        pairs = {"rounds": self.rounds, "undone": self.undone, "before": [self.before]}
        flat = {name: [float(x) for pair in of for x in pair] for name, of in pairs.items()}
        mine = {"K": self.K, "cnt": self.cnt, "ones": self.ones, "left": self.left}
        mine["every"] = self.every
        return {**mine, **flat, "reason": REASONS.index(self.reason)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name in ("K", "cnt", "ones", "left", "every"):
            setattr(self, name, int(state[name]))
        pairs = {}
        for name in ("rounds", "undone", "before"):
            flat = np.asarray(state[name], float).tolist()
            pairs[name] = list(zip(flat[::2], flat[1::2], strict=True))
        self.rounds, self.undone = pairs["rounds"], pairs["undone"]
        K, l = pairs["before"][0]
        self.before = int(K), l
        self.reason = REASONS[int(state["reason"])]
