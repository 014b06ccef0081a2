"""The progress of a run on the terminal."""

from __future__ import annotations

import math
import sys
from time import monotonic

from localavg.datasets import progress

LINE_S = 1.0  # between two lines


class Progress:
    """A progress bar on a terminal; elsewhere a plain line for an evaluation, at most one a second.

    The last evaluation always has its line.
    """

    def __init__(self, T: int) -> None:
        self.T = T
        self.bar = progress.bar(T, unit="step")
        self._rate, self._told_s = math.nan, -math.inf

    def step(self, t: int, loss: float, rate: float) -> None:
        """Show update t. loss: since the last call; rate: samples/s since the start."""
        self._rate = rate
        if not self.bar.disable:
            self.bar.set_postfix_str(f"loss {loss:.4f}, {rate:,.0f} samples/s", refresh=False)
            self.bar.update(t - self.bar.n)

    def evaluated(self, t: int, loss: float, accuracy: float) -> None:
        """Show the averaged model's training loss and test accuracy."""
        if self.bar.disable and (t == self.T or monotonic() - self._told_s >= LINE_S):
            self._told_s = monotonic()
            rate = "" if math.isnan(self._rate) else f"  {self._rate:,.0f} samples/s"
            test = "" if math.isnan(accuracy) else f"  test accuracy {accuracy:.4f}"
            print(f"t {t}/{self.T}  train loss {loss:.4f}{test}{rate}", file=sys.stderr, flush=True)

    def close(self) -> None:
        """End the progress bar."""
        self.bar.close()
