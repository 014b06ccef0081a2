"""QSR: the quadratic synchronization rule, under which periods grow as the step size falls.

Xinran Gu, Kaifeng Lyu, Sanjeev Arora, Jingzhao Zhang, Longbo Huang: A Quadratic Synchronization
Rule for Distributed Deep Learning. ICLR 2024 (arXiv:2310.14423).

    for round s = 0, 1, …, that begins after update t:
        γ is the step size of update t + 1
        H^(s) ← max(K_base, ⌊(α/γ)^p⌋)        p = 2; at most the updates that are left
        every learner makes H^(s) updates, then w_j ← w̄
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Annotated, Unpack

from localavg.algorithms.about import about
from localavg.algorithms.base import Algorithm, Schedule, check_period
from localavg.algorithms.common import Common, begins, composed
from localavg.algorithms.parameters import algorithm
from localavg.errors import UserError, bad
from localavg.scope import Scope

LONGEST = 1 << 62  # updates: no run is as long


@about(
    take_if="rounds may become rare as the step size γ falls",
    rounds="by γ",
    source="arXiv 2310.14423",
)
@algorithm
def qsr(
    alpha: Annotated[
        float | None, "growth α of the periods (α/γ)^p, in the unit of the step size; no default"
    ] = None,
    K: Annotated[int, "shortest period K_base, in local updates"] = 4,
    power: Annotated[float, "power p of the periods (α/γ)^p"] = 2.0,
    step_size: Callable[[int], float] | None = None,
    **common: Unpack[Common],
) -> Algorithm:
    """QSR (Gu et al. 2024): periods max(K, ⌊(α/γ)²⌋) grow as the step size γ falls.

    A round takes the step size of its first update, and in a warm-up the one right after it. In
    Python, step_size: t → γ of update t = 1, 2, …; in a warm-up it returns the γ right after it.
    """
    if alpha is None:
        raise UserError(
            "qsr needs `alpha`, in the unit of the step size: with a power of 2, periods are longer"
            " than K where the step size is below alpha/√K"
        )
    if not callable(step_size):
        raise UserError(
            "qsr needs step_size=, a function of t that returns γ of update t = 1, 2, …"
        )
    t0 = begins(common)
    schedule = Quadratic(alpha, K, power, lambda t: step_size(t0 + t))
    return composed(schedule, **common)


@dataclass(frozen=True)
class Quadratic(Schedule):
    """Rounds of max(K, ⌊(α/γ)^p⌋) updates, γ that of the round's first update.

    A pure function of t. step_size: t → γ of update t; where it is 0 no other round follows.
    """

    alpha: float
    K: int
    power: float
    step_size: Callable[[int], float]
    _ends: list[int] = field(default_factory=list, repr=False, compare=False)  # t of the averages

    def __post_init__(self) -> None:
        check_period("K", self.K)
        for name, value in (("alpha", self.alpha), ("power", self.power)):
            if not 0 < value < math.inf:
                raise bad(name, value, "must be a finite number above 0")

    def __deepcopy__(self, memo: object) -> Quadratic:
        """Copy all but the user's function, which may be a part of something larger."""
        return replace(self, _ends=[])

    @property
    def shortest(self) -> int:
        return self.K

    def after(self, t: int) -> Scope:
        ends = self._ends
        while not ends or ends[-1] < t:
            begun = ends[-1] if ends else 0
            ends.append(begun + max(self.K, self._grown(self._gamma(begun + 1))))
        return Scope.WORLD if ends[bisect_left(ends, t)] == t else Scope.NONE

    def _gamma(self, t: int) -> float:
        """Return γ of update t. Raises UserError if it cannot be one."""
        value = self.step_size(t)
        try:
            gamma = float(value)
        except (TypeError, ValueError):
            gamma = math.nan
        if not 0 <= gamma < math.inf or (t == 1 and not gamma):
            raise UserError(
                f"qsr: step_size({t}) is {value!r}; it must be a finite number of at least 0, and "
                "above 0 for update 1 (in a warm-up, the step size right after it)"
            )
        return gamma

    def _grown(self, gamma: float) -> int:
        """Return ⌊(α/γ)^p⌋, or a length that no run reaches."""
        if gamma and not (ratio := self.alpha / gamma):
            return 0
        if not gamma or self.power * math.log(ratio) > math.log(LONGEST):
            return LONGEST
        # (0.3/0.1)² is 9, not 8.999999999999998
        return math.floor(round((self.alpha / gamma) ** self.power, 9))
