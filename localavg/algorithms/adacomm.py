"""AdaComm: periods that fall with the loss and with the step size, decided once a block.

Jianyu Wang, Gauri Joshi: Adaptive Communication Strategies to Achieve the Best Error-Runtime
Trade-off in Local-Update SGD. SysML 2019 (arXiv:1810.08313).

    blocks l = 0, 1, … of T₀ seconds (the paper: 60), or of so many updates
    τ_0 is given; F₀ is F_1, and γ₀ the step size of the update before the first average
    at the average that begins block l ≥ 1:
        F_l is the mean training loss of all learners over the block before
        r = ⌈τ_0 √(F_l/F₀ · γ₀/γ_l)⌉
        τ_l = r if r < τ_{l−1}, else max(1, ⌈τ_{l−1}/2⌉)
    in block l: w_j ← w̄ every τ_l updates

So a period never grows, and a fall of the step size that raises r halves it. τ_0 stands outside the
root (one public implementation has it inside). F_l is made of the losses of the mini-batches, so it
takes no pass over the data. Blocks lie end to end from where the schedule begins; a running period
is not cut, so a block begins at the first average after the end of the block before, and a block
that no average falls into is passed over.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from numbers import Integral
from typing import Annotated, Unpack

from localavg.algorithms.about import about
from localavg.algorithms.base import Algorithm, Costs, Schedule, check_period
from localavg.algorithms.common import Common, composed
from localavg.algorithms.parameters import Length, algorithm
from localavg.config import seconds
from localavg.errors import LARGEST, UserError, bad
from localavg.scope import Scope


class UpdatesOrTime(Length):
    """A number of updates, or a time such as 60s."""

    def updates(self, value: str, T: int, epoch: float) -> int | str:
        return int(value) if value.isdecimal() else value

    def meaning(self, value: str) -> object:
        return _lengths(value)


@about(
    take_if="rounds may be rare at first and more frequent as the loss falls",
    rounds="steered by the loss",
    source="arXiv 1810.08313",
)
@algorithm
def adacomm(
    tau0: Annotated[int, "τ₀, the first averaging period, in local updates"] = 16,
    block: Annotated[
        int | str,
        UpdatesOrTime(
            "block",
            "60s",
            "length of a block, at whose begin the period is decided: a time such as 60s or 2min, "
            "or a number of updates",
        ),
    ] = "60s",
    **common: Unpack[Common],
) -> Algorithm:
    """AdaComm (Wang and Joshi 2019): periods ⌈τ₀√(F/F₀·γ₀/γ)⌉ fall with the loss F, block by block.

    A run whose blocks are times is not reproducible but by replay. In Python block is a number of
    updates, or text such as "60s".
    """
    return composed(LossAndStep(tau0, *_lengths(block)), **common)


def _lengths(block: int | str) -> tuple[int | None, float | None]:
    """Return the length of a block in updates or in seconds; the other one is None."""
    rule = "must be a number of updates, or a time such as 60s or 2min"
    if isinstance(block, bool) or not isinstance(block, Integral | str):
        raise bad("block", repr(block), rule)
    if isinstance(block, str) and not block.isdecimal():
        try:
            return None, seconds("block", block)
        except UserError:
            raise bad("block", block, rule) from None
    if not 1 <= int(block) <= LARGEST:
        raise bad("block", block, "must be at least 1 update, and below 2^63")
    return int(block), None


@dataclass
class LossAndStep(Schedule):
    """Periods τ_l of blocks l, each of so many updates or seconds; the other one is None."""

    tau0: int
    updates: int | None
    seconds: float | None = None
    tau: int = field(init=False)  # τ_l
    due: int = field(init=False)  # t of the next average
    end: float = field(init=False)  # of the block: t, or the seconds of the run
    F0: float = math.nan
    gamma0: float = math.nan
    loss: float = 0.0  # the sum over this block's updates of the learners' mean loss
    begun: int = 0  # t of the average that began the block
    last: int = 0  # t of the last average
    needs = "losses"
    remembers = ("tau", "due", "end", "F0", "gamma0", "loss", "begun", "last")

    def __post_init__(self) -> None:
        check_period("tau0", self.tau0)
        self.tau = self.due = self.tau0
        self.end = self.length

    @property
    def length(self) -> float:
        """The length of a block, in updates or in seconds."""
        return self.updates or self.seconds or math.inf

    @property
    def unsteered(self) -> str:
        if not math.isnan(self.F0):
            return ""
        block = f"{self.updates} updates" if self.updates else f"{self.seconds:g} s"
        return (
            f"no average came after the first block of {block}, so the period was {self.tau0} all "
            "along; take a shorter block, or train for longer"
        )

    def after(self, t: int) -> Scope:
        return Scope.WORLD if t == self.due else Scope.NONE

    def observe(
        self,
        t: int,
        value: float,
        gamma: float,
        wall_s: float = math.nan,
        costs: Sequence[Costs] = (),
    ) -> None:
        now = t if self.updates else wall_s
        if t == 0:
            self.end = now + self.length
            return
        if math.isnan(self.gamma0):
            self.gamma0 = gamma
        self.loss += value * (t - self.last)
        self.last = t
        if now >= self.end:
            self._begin(t, gamma)
            self.end += self.length * (1 + (now - self.end) // self.length)
        self.due = t + self.tau

    def _begin(self, t: int, gamma: float) -> None:
        """Begin block l with the average after update t."""
        F = self.loss / (t - self.begun)  # F_l
        if math.isnan(self.F0):
            self.F0 = F
        if F < 0 or self.F0 <= 0:
            raise UserError(
                f"adacomm: the mean loss of the block that ends with update {t} is {F:g}, and that "
                f"of the first block {self.F0:g}; the rule needs losses above 0"
            )
        r = self._r(F, gamma)
        self.tau = int(r) if r < self.tau else max(1, -(-self.tau // 2))
        self.loss, self.begun = 0.0, t

    def _r(self, F: float, gamma: float) -> float:
        """Return ⌈τ_0 √(F_l/F₀ · γ₀/γ_l)⌉, at least 1; infinite where a period may not fall so.

        That is if γ_l is 0, or if a loss is not finite: then the run has diverged.
        """
        ratio = F / self.F0 * self.gamma0 / gamma if gamma else math.inf
        if not math.isfinite(ratio):
            return math.inf
        # 10 √0.49 is 7, not 7.000000000000001
        return max(1, math.ceil(round(self.tau0 * math.sqrt(ratio), 9)))
