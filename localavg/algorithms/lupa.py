"""ADA-LUPA-SGD and one-shot averaging. LUPA-SGD itself, Algorithm 1, is `kavg` with K = τ.

Farzin Haddadpour, Mohammad Mahdi Kamani, Mehrdad Mahdavi, Viveck R. Cadambe: Local SGD with
Periodic Averaging: Tighter Analysis and Adaptive Synchronization. NeurIPS 2019, Algorithm 1 with
periods τ_i that grow (§5, §6): `Linear`, or by eq. 11 `LossDriven`.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Unpack

from localavg.algorithms.about import about
from localavg.algorithms.base import Algorithm, Costs, Mean, NoExchange, Schedule, check_period
from localavg.algorithms.common import Common, composed
from localavg.algorithms.parameters import algorithm
from localavg.errors import UserError, bad
from localavg.scope import Scope


@about(take_if="you want to see how far one average goes", rounds="1", source="lupa §6")
@algorithm
def oneshot() -> Algorithm:
    """One-shot averaging (lupa §6): one average, at T."""
    return Algorithm(OneShot(), Mean(), NoExchange())


@about(take_if="rounds may become rare during the run", rounds="≈ √(2T/(ατ₀))", source="lupa §5–6")
@algorithm
def adalupa(
    tau0: Annotated[int, "τ₀, the first averaging period, in local updates"] = 91,
    alpha: Annotated[float, "growth α of the periods (1 + iα)τ₀ of the linear rule"] = 1.09,
    rule: Annotated[
        str, "how the periods grow: linear in i (linear), or by the objective, eq. 11 (loss)"
    ] = "linear",
    **common: Unpack[Common],
) -> Algorithm:
    """ADA-LUPA-SGD (lupa §5–6): periods that grow, linearly or as the objective falls.

    rule: linear makes the periods (1 + iα)τ_0; loss makes them from the objective by eq. 11.
    """
    if rule not in ("linear", "loss"):
        raise bad("rule", rule, "must be linear (lupa §6) or loss (lupa eq. 11)")
    schedule = Linear(tau0, alpha) if rule == "linear" else LossDriven(tau0)
    return composed(schedule, **common)


class OneShot(Schedule):
    """One average, at T (Algorithm 1, line 13, alone)."""

    def after(self, t: int) -> Scope:
        return Scope.NONE


@dataclass(frozen=True)
class Linear(Schedule):
    """Periods that grow linearly, τ_i = ⌈(1 + iα) τ_0⌉, i = 0, 1, … (§6)."""

    tau0: int
    alpha: float
    _ends: list[int] = field(default_factory=list, repr=False, compare=False)  # t of the averages

    def __post_init__(self) -> None:
        check_period("tau0", self.tau0)
        if not 0 <= self.alpha < math.inf:
            raise bad("alpha", self.alpha, "must be a finite number of at least 0")

    @property
    def shortest(self) -> int:
        return self.tau0

    def after(self, t: int) -> Scope:
        ends = self._ends
        while not ends or ends[-1] < t:
            i = len(ends)
            # 1.1 · 10 is 11, not 11.000000000000002
            tau = math.ceil(round((1 + i * self.alpha) * self.tau0, 9))
            ends.append((ends[-1] if ends else 0) + tau)
        return Scope.WORLD if ends[bisect_left(ends, t)] == t else Scope.NONE  # line 6


@dataclass
class LossDriven(Schedule):
    """Periods τ_i = ⌈(F(w̄_0) / F(w̄_i))^(1/3)⌉ τ_0 (eq. 11).

    F(w̄_i) is the objective at the average before period i.
    """

    tau0: int
    due: int = 0  # t of the next average
    F0: float = math.nan
    needs = "objective"
    remembers = ("due", "F0")

    def __post_init__(self) -> None:
        check_period("tau0", self.tau0)
        self.due = self.due or self.tau0  # F(w̄_0) / F(w̄_0) is 1

    @property
    def shortest(self) -> int:
        return self.tau0

    def after(self, t: int) -> Scope:
        return Scope.WORLD if t == self.due else Scope.NONE  # line 6

    def observe(
        self,
        t: int,
        value: float,
        gamma: float,
        wall_s: float = math.nan,
        costs: Sequence[Costs] = (),
    ) -> None:
        if t == 0:
            self.F0 = value
        if not (0 < value < math.inf and self.F0 > 0):
            raise UserError(
                f"adalupa `rule = loss`: F(w̄) = {value:g} at t = {t}, but eq. 11 needs a finite "
                "positive objective"
            )
        root = round((self.F0 / value) ** (1 / 3), 9)
        self.due = t + max(1, math.ceil(root)) * self.tau0  # eq. 11
