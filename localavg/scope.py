"""Who averages."""

from __future__ import annotations

from enum import IntEnum


class Scope(IntEnum):
    """Who averages."""

    NONE = 0
    CLUSTER = 1
    WORLD = 2
