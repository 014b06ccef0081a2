"""The seconds of a rank by purpose."""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter

NAMES = ("data", "compute", "communicate", "rest", "outside")


class Stopwatch:
    """Seconds by purpose: every `lap` adds the time since the last lap to a name."""

    def __init__(self) -> None:
        self.start()

    def start(self, seconds: Sequence[float] = (0.0,) * len(NAMES)) -> None:
        """Start now, from zero or from earlier seconds in the order of NAMES."""
        self.seconds = dict(zip(NAMES, seconds, strict=True))
        self._last = perf_counter()

    def lap(self, name: str) -> float:
        """Add the time since the last lap to `name`, and return it."""
        now = perf_counter()
        seconds, self._last = now - self._last, now
        self.seconds[name] += seconds
        return seconds

    def book(self, name: str, seconds: float) -> None:
        """Add `seconds` of the time since the last lap to `name`; the next lap gets the rest."""
        self.seconds[name] += seconds
        self._last += seconds

    @property
    def wall_s(self) -> float:
        """All seconds but "outside": evaluation, diagnosis and checkpoints."""
        return sum(self.seconds.values()) - self.seconds["outside"]
