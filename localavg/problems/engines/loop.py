"""The gradients of a rank's learners, one learner after the other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from localavg.interfaces import Array, Problem


class Loop:
    """Calls problem.gradient_ for each learner in turn.

    feed(j, t): learner j's mini-batch of update t. learners: of the rows, in their order. lap(name)
    is called when the time since its last call went to "compute" or "data".
    """

    def __init__(
        self,
        problem: Problem,
        feed: Callable[[int, int], Any],
        learners: range,
        lap: Callable[[str], Any],
    ) -> None:
        self.learners, self.calls = learners, (feed, problem.gradient_, lap)
        self._w = self._out = None  # the matrices that the rows below are views of
        self._rows: list[tuple[int, Array, Array]] = []

    def gradients_(self, w: Array, t: int, out: Array) -> list[Any]:
        """Compute each learner's gradient of update t at its row of w [L, d], into its row of out.

        Returns the L mini-batch losses, scalars of the host or of a GPU.
        """
        if self._w is not w or self._out is not out:
            self._w, self._out = w, out
            self._rows = list(zip(self.learners, w, out, strict=True))
        feed, gradient_, lap = self.calls
        losses = []
        for j, w_j, g_j in self._rows:  # [d] each
            lap("compute")
            batch = feed(j, t)
            lap("data")
            losses.append(gradient_(w_j, batch, out=g_j))
        return losses
