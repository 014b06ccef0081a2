"""Which learners average together.

Learners may lie in a hierarchy: in clusters, which lie in larger clusters, and so on. Its levels
are numbered from 1, the innermost clusters; everyone is the highest level.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

# above every level: clusters at least double in size from one level to the next
_EVERYONE, _NEIGHBOURS = 127, 126


class Scope(int):
    """Which learners average together: none, those of a cluster of some level, or all.

    NEIGHBOURS: each with its neighbours in a graph, so that nobody averages with everyone. A scope
    is true unless it is NONE, and a wider scope is greater. There is one object for each
    scope, so `is` compares them. Scope(2): a cluster of level 2.
    """

    NONE: ClassVar[Scope]
    CLUSTER: ClassVar[Scope]
    """a cluster of level 1"""
    WORLD: ClassVar[Scope]
    NEIGHBOURS: ClassVar[Scope]
    _made: ClassVar[dict[int, Scope]] = {}

    def __new__(cls, value: int) -> Scope:
        if value not in cls._made:
            if not 0 <= value <= _EVERYONE:
                raise ValueError(f"{value} is no scope: they are 0 … {_EVERYONE}")
            cls._made[value] = super().__new__(cls, value)
        return cls._made[value]

    @classmethod
    def recorded(cls, kind: int, level: int = 1) -> Scope:
        """Return the scope of this kind and level; level: that of a cluster."""
        special = {0: cls.NONE, 2: cls.WORLD, 3: cls.NEIGHBOURS}
        return special[kind] if kind in special else cls(level)

    @property
    def kind(self) -> int:
        """0 for none, 1 for a cluster of any level, 2 for everyone, 3 for neighbours: in files."""
        special = {_EVERYONE: 2, _NEIGHBOURS: 3}
        return special.get(int(self), int(self > 0))

    def level(self, depth: int) -> int:
        """Return its level in a hierarchy of this depth, in which everyone is the highest.

        Neighbours are of no level, 0.
        """
        return 0 if self is Scope.NEIGHBOURS else min(int(self), depth)

    @property
    def name(self) -> str:
        """NONE, CLUSTER, WORLD, NEIGHBOURS, or CLUSTER 2 for a cluster of level 2."""
        names = {0: "NONE", 1: "CLUSTER", _EVERYONE: "WORLD", _NEIGHBOURS: "NEIGHBOURS"}
        return names.get(int(self), f"CLUSTER {int(self)}")

    def __repr__(self) -> str:
        return f"Scope({self.name})"


Scope.NONE, Scope.CLUSTER = Scope(0), Scope(1)
Scope.WORLD, Scope.NEIGHBOURS = Scope(_EVERYONE), Scope(_NEIGHBOURS)


def sizes(clusters: Sequence[int], P: int) -> dict[Scope, int]:
    """Return how many learners average together over each scope, from the innermost outwards.

    clusters: learners in a cluster of each level; none without clusters. P: all learners.
    """
    return {**{Scope(level): S for level, S in enumerate(clusters, 1)}, Scope.WORLD: P}
