"""The seconds of a rank by purpose, and those of its meetings with other ranks."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from time import perf_counter

NAMES = ("data", "compute", "communicate", "wait", "outside")


class Stopwatch:
    """Seconds by purpose: every `lap` adds the time since the last lap to a name.

    meetings: the seconds of every meeting of the ranks since the list was last cleared, with
    waiting. A rank does not know by itself how long it waited: that shows when all ranks compare
    their meetings, so until then they count as "communicate".
    """

    def __init__(self) -> None:
        self.meetings: list[float] = []
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

    def met(self) -> None:
        """Add the time since the last lap as a meeting: a collective call of all ranks."""
        self.meetings.append(self.lap("communicate"))

    def book(self, name: str, seconds: float) -> None:
        """Add `seconds` of the time since the last lap to `name`; the next lap gets the rest."""
        self.seconds[name] += seconds
        self._last += seconds

    def still(self) -> Stopwatch:
        """Return a copy whose times stay as they are."""
        still = copy(self)
        still.seconds, still.meetings = {**self.seconds}, [*self.meetings]
        return still

    @property
    def wall_s(self) -> float:
        """All seconds but "outside": evaluation, diagnosis and checkpoints."""
        return sum(self.seconds.values()) - self.seconds["outside"]
