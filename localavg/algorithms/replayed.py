"""The averages of an earlier run at the same updates, whatever steered them there."""

from __future__ import annotations

from collections.abc import Collection

from localavg.algorithms.base import Schedule
from localavg.scope import Scope


class Replayed(Schedule):
    """Everyone after the updates `ends`, and needs no feedback."""

    def __init__(self, ends: Collection[int]) -> None:
        self.ends = frozenset(ends)

    def after(self, t: int) -> Scope:
        return Scope.WORLD if t in self.ends else Scope.NONE
