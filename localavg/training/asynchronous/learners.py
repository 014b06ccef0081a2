"""Local updates of the asynchronous algorithms, one learner at a time, on the host or on a GPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from localavg.algorithms.center import CenterLearner, CenterRule
from localavg.interfaces import Array, Batch, Device
from localavg.parallel.device import numbers
from localavg.problems import Problem


class Local:
    """What the learners of a process share.

    learners: those of this process, in their order. device: where they compute. feed(j, t): the
    mini-batch of learner j for update t. step_size(t): γ_t. g: scratch memory [d] of the device,
    for a gradient or a reply. lap: called with "compute" or "data", the purpose of the time since
    the last call.
    """

    def __init__(
        self,
        rule: CenterRule,
        learners: Sequence[CenterLearner],
        device: Device,
        problem: Problem,
        feed: Callable[[int, int], Batch],
        step_size: Callable[[int], float],
        T: int,
        g: Array,
        lap: Callable[[str], object] = lambda name: None,
    ) -> None:
        self.rule, self.learners, self.device = rule, learners, device
        self.problem, self.feed = problem, feed
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
        """Make one local update of a learner. Return whether it must exchange with servers.

        On a GPU the update is queued, and the clock sees how long that took: the rest of the time
        in which the GPU computes shows where somebody waits for it.
        """
        batch = self.fetch(learner)
        t = learner.t = learner.t + 1
        loss = self.rule.step_(learner, self.problem, batch, self.g, self.step_size(t))
        learner.losses.append(loss)
        self.lap("compute")
        return t % self.rule.K == 0 or t == self.T

    @staticmethod
    def take_losses(learner: CenterLearner) -> tuple[int, float]:
        """Return the number of updates since the last call and the sum of their losses.

        Losses on a GPU are waited for.
        """
        losses, total = numbers(learner.losses).tolist(), 0.0
        learner.losses.clear()
        for loss in losses:  # `sum` would compensate rounding errors
            total += loss
        return len(losses), total
