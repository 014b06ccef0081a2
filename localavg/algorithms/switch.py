"""Post-local SGD: mean gradients first, then local updates and averages.

Tao Lin, Sebastian U. Stich, Kumar Kshitij Patel, Martin Jaggi: Don't Use Large Mini-Batches, Use
Local SGD. ICLR 2020, arXiv 1808.07217, §3, in our symbols:

    for t = 1, …, T:
        if t ≤ t₀: g_j ← (1/P) Σ_i g_i                   `sync.MeanGradient`
        update w_j with g_j                              the local optimiser, on every learner j
        if t > t₀: average as the schedule says          `Switched`, its count begins at t₀

t₀ is the option `switch`, common to the rows that average weights, and the paper's is the first
decay of the step size. Momentum goes on after t₀ as it stands there. The authors' code averages
weights before t₀, and each learner keeps a momentum of its own: for SGD without momentum the
weights are the same. torch's post_localSGD_hook also takes the mean gradient within a node after
t₀, which this row leaves out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from localavg.algorithms.base import Costs, Schedule
from localavg.scope import Scope


@dataclass
class Switched(Schedule):
    """No averages of weights up to update t₀; after it those of another schedule."""

    rest: Schedule
    t0: int

    def __post_init__(self) -> None:
        self.needs, self.final, self.begins = self.rest.needs, self.rest.final, self.t0

    @property
    def shortest(self) -> int | None:
        return self.rest.shortest

    @property
    def steered_after(self) -> int:
        after = self.rest.steered_after
        return self.t0 + after if after else 0

    @property
    def unsteered(self) -> str:
        return self.rest.unsteered

    def after(self, t: int) -> Scope:
        return self.rest.after(t - self.t0) if t > self.t0 else Scope.NONE

    @property
    def chooses(self) -> bool:
        return self.rest.chooses

    @property
    def decision(self) -> Mapping[str, float | str]:
        return self.rest.decision

    def observe(
        self,
        t: int,
        value: float,
        gamma: float,
        wall_s: float = math.nan,
        costs: Sequence[Costs] = (),
    ) -> None:
        self.rest.observe(t - self.t0, value, gamma, wall_s, costs)

    def state_dict(self) -> dict[str, Any]:
        return self.rest.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.rest.load_state_dict(state)
