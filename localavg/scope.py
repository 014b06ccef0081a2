"""Which learners average together."""

from __future__ import annotations

from enum import IntEnum


class Scope(IntEnum):
    """Which learners average together: none, those of a cluster, or all."""

    NONE = 0
    CLUSTER = 1
    WORLD = 2
