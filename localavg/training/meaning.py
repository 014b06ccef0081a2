"""What settings mean, for the comparison of a run with one that goes on, or is done again."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Any

from localavg import algorithms
from localavg.config import samplings
from localavg.config.state import MOMENTS, by_moment
from localavg.errors import UserError
from localavg.interfaces import Settings

PATHS = ("replay", "timing_from")
"""settings that name a file"""


def same(name: str, here: Settings, there: Settings) -> bool:
    """Return whether a setting means the same in two runs, of which these are all settings.

    Values that are not valid today, of earlier versions, mean the same if they are equal.
    """
    mine, other = (list(x) if isinstance(x, tuple) else x for x in (here[name], there[name]))
    if mine == other or None in (mine, other):
        return mine == other
    with suppress(UserError, KeyError):
        return _meaning(name, here) == _meaning(name, there)
    return False


def _meaning(name: str, settings: Settings) -> object:
    """Return what is equal for all values that mean the same beside the other settings."""
    value = settings[name]
    if name in PATHS:
        return os.path.abspath(value)
    if name == "sampling":
        return samplings.parsed(value)
    if name == "state":
        return by_moment(value, MOMENTS[settings["optimizer"]])
    option = algorithms.declared(settings["algorithm"]).get(name)
    found: Any = option.length.meaning(value) if option and option.length else value
    if name == "levels":  # the letter P stands for the number of learners
        return [(K, settings.get("learners") if S == "P" else S) for K, S in found]
    return found
