"""Local updates of the asynchronous algorithms, one learner at a time."""

from __future__ import annotations

from collections.abc import Callable

from localavg.algorithms.center import CenterLearner, CenterRule
from localavg.interfaces import Array, Batch
from localavg.problems import Problem


class Local:
    """What the learners of a process share.

    feed(j, t): the mini-batch of learner j for update t. step_size(t): γ_t. g: scratch memory [d].
    lap: called with "compute" or "data", the purpose of the time since the last call.
    """

    def __init__(
        self,
        rule: CenterRule,
        problem: Problem,
        feed: Callable[[int, int], Batch],
        step_size: Callable[[int], float],
        T: int,
        g: Array,
        lap: Callable[[str], object] = lambda name: None,
    ) -> None:
        self.rule, self.problem, self.feed = rule, problem, feed
        self.step_size, self.T, self.g, self.lap = step_size, T, g, lap
        self._fetched: tuple[int, int, Batch] = -1, -1, None

    def fetch(self, learner: CenterLearner) -> Batch:
        """Return the mini-batch of the learner's next update; it is valid until the next call."""
        key = learner.j, learner.t + 1
        if self._fetched[:2] != key:
            self._fetched = *key, self.feed(*key)
            self.lap("data")
        return self._fetched[2]

    def step_(self, learner: CenterLearner) -> bool:
        """Make one local update of a learner. Return whether it must exchange with servers."""
        batch = self.fetch(learner)
        t = learner.t = learner.t + 1
        learner.losses += self.rule.step_(learner, self.problem, batch, self.g, self.step_size(t))
        learner.since += 1
        self.lap("compute")
        return t % self.rule.K == 0 or t == self.T
