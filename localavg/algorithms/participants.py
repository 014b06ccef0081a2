"""Partial participation: in every round some learners work, and the mean counts what each has.

H. Brendan McMahan, Eider Moore, Daniel Ramage, Seth Hampson, Blaise Agüera y Arcas:
Communication-Efficient Learning of Deep Networks from Decentralized Data. AISTATS 2017, arXiv
1602.05629, Algorithm 1, in our symbols:

    for each round r = 0, 1, …:
        S_r ← m of the P learners, at random, without replacement
        every j in S_r: w_j ← w̃, then its local updates          the other learners make none
        w̃ ← Σ_{j in S_r} n_j w_j / Σ_{j in S_r} n_j              n_j: training rows of learner j
        w_j ← w̃                                                  on all P learners

A round lies between two averages of everyone, whose schedule counts the updates of a learner that
works. m is `participants`. n_j is 1 for all, or that of `weights = rows`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from localavg.errors import UserError, at_least, check_choice
from localavg.interfaces import Settings
from localavg.streams import Stream, generator

WEIGHTS = ("equal", "rows")


class Participants:
    """Who works in the present round, and how much each learner counts in the mean.

    m: learners that work in a round (None: C P of them, at least 1). by: equal or rows (None: rows
    where learners have rows of their own, if C is below 1). After `start` m and by are what takes
    effect.

    weights: [P] how much each learner counts, 0 for those that do not work; None: all learners work
    and count alike. at_work: the rows of this rank's matrices whose learners work; None: all.
    asked: the first option that was given, "" if everyone works and counts alike.
    """

    weights: list[int] | None = None
    at_work: list[int] | None = None
    P = working = 0  # the number of learners, and of those that work in a round
    counts: Sequence[int] = (1,)  # [P] how much each counts if it works

    def __init__(self, m: int | None = None, by: str | None = None, C: float = 1.0) -> None:
        at_least("participants", m, 1)
        if by is not None:
            check_choice("weights", by, WEIGHTS)
        self.m, self.by, self.C = m, by, C
        self.r = 0  # number of the round
        self.asked = "weights" if by == "rows" else ""
        if m is not None or C < 1:
            self.asked = "participants"

    def start(
        self, learners: range, P: int, seed: int, examples: Sequence[int] | None = None
    ) -> None:
        """Take this rank's learners of P, and draw the first round.

        examples: [P] n_j, None if learners have no rows of their own. Raises UserError if m exceeds
        P, and for `weights = rows` where no learner has rows of its own.
        """
        self.learners, self.P, self.seed = learners, P, seed
        if self.m is None:
            self.m = max(1, math.floor(round(self.C * P, 9)))  # m ← max(C·K, 1)
        if self.by is None:
            self.by = "rows" if self.C < 1 and examples else "equal"
        if self.m > P:
            raise UserError(
                f"`participants = {self.m}` with {P} learners: at most all of them work in a round"
            )
        if self.by == "rows" and not examples:
            raise UserError(
                "`weights = rows`: no learner has training rows of its own, as all draw from all "
                "data; use `weights = equal`, or `sampling = shard` or one by class"
            )
        self.working = self.m
        counts = examples if self.by == "rows" and examples else [1] * P
        common = math.gcd(*counts)
        self.counts = [n // common for n in counts]  # equal ones are 1: no rounding
        self._draw()

    def next_(self) -> None:
        """Begin the next round."""
        self.r += 1
        self._draw()

    def _draw(self) -> None:
        if self.working == self.P:
            self.weights = None if set(self.counts) == {1} else [*self.counts]
            return
        random = generator(self.seed, 0, self.r, Stream.PARTICIPANTS)
        drawn = set(random.choice(self.P, self.working, replace=False).tolist())  # S_r
        self.weights = [n if j in drawn else 0 for j, n in enumerate(self.counts)]
        self.at_work = [l for l, j in enumerate(self.learners) if j in drawn]

    def state_dict(self) -> dict[str, int]:
        """Return the number of the round, where it matters."""
        return {"round": self.r} if self.at_work is not None else {}

    def load_state_dict(self, state: Settings) -> None:
        """Resume in the round of `state`."""
        self.r = int(state.get("round", 0))
        self._draw()
