"""The progress of a run on the terminal."""

from __future__ import annotations

import math
import sys

from localavg.datasets import progress


class Progress:
    """A progress bar on a terminal; elsewhere one plain line per evaluation."""

    def __init__(self, T: int) -> None:
        self.T = T
        self.bar = progress.bar(T, unit="step")
        self._rate = math.nan

    def step(self, t: int, loss: float, rate: float) -> None:
        """Show update t. loss: since the last call; rate: samples/s since the start."""
        self._rate = rate
        if not self.bar.disable:
            self.bar.set_postfix_str(f"loss {loss:.4f}, {rate:,.0f} samples/s", refresh=False)
            self.bar.update(t - self.bar.n)

    def evaluated(self, t: int, loss: float, accuracy: float) -> None:
        """Show the averaged model's training loss and test accuracy."""
        if self.bar.disable:
            rate = "" if math.isnan(self._rate) else f"  {self._rate:,.0f} samples/s"
            test = "" if math.isnan(accuracy) else f"  test accuracy {accuracy:.4f}"
            print(f"t {t}/{self.T}  train loss {loss:.4f}{test}{rate}", file=sys.stderr, flush=True)

    def close(self) -> None:
        """End the progress bar."""
        self.bar.close()
