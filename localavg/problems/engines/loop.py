"""The gradients of a rank's learners, one learner after the other."""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter

from localavg.interfaces import Array, Book, Engine, Feed, Problem, unbooked


class Loop(Engine):
    """Calls problem.gradient_ for each learner in turn.

    feed(j, t): learner j's mini-batch of update t. learners: of the rows, in their order.
    """

    name = "loop"

    def __init__(self, problem: Problem, feed: Feed, learners: range) -> None:
        self.learners, self.calls = learners, (feed, problem.gradient_)
        self.book: Book = unbooked
        # the matrices that the rows below are views of
        self._w: Array | None = None
        self._out: Array | None = None
        self._rows: list[tuple[int, Array, Array]] = []

    def gradients_(
        self, w: Array, t: int, out: Array, rows: Sequence[int] | None = None
    ) -> list[float | Array]:
        """Compute the gradients as `interfaces.Engine` describes."""
        if self._w is not w or self._out is not out:
            self._w, self._out = w, out
            self._rows = list(zip(self.learners, w, out, strict=True))
        feed, gradient_ = self.calls
        losses: list[float | Array] = []
        data_s = 0.0
        for l, (j, w_j, g_j) in enumerate(self._rows):  # [d] each
            if rows is not None and l not in rows:
                losses.append(0.0)
                continue
            start = perf_counter()
            batch = feed(j, t)
            data_s += perf_counter() - start
            losses.append(gradient_(w_j, batch, out=g_j))
        self.book("data", data_s)
        return losses
