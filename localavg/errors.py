"""Errors of users, exit statuses, and the checks that raise them. Standard library only."""

from __future__ import annotations

import math
from typing import Any

FINISHED, FAILED, MISTAKE, GO_ON = 0, 1, 2, 75
"""exit statuses; MISTAKE: a UserError; GO_ON (EX_TEMPFAIL): interrupted and saved, the same command
goes on
"""


class UserError(Exception):
    """A mistake in what the user asked for: one line that names the value, the rule and the remedy
    (exit status 2).
    """


class SharedError(UserError):
    """A UserError that every rank has heard of: all raise the same, so that all can end as one."""


def bad(name: str, value: Any, rule: str) -> UserError:
    """The error of an option whose value breaks a rule."""
    return UserError(f"--{name.replace('_', '-')} {value}: {rule}")


def at_least(name: str, value: int | None, least: int) -> None:
    """Refuse an integer option below `least`."""
    if value is not None and value < least:
        raise bad(name, value, f"must be at least {least}")


def positive(name: str, value: float | None) -> None:
    """Refuse a number that is not finite and above 0 (NaN among them)."""
    if value is not None and not 0 < value < math.inf:
        raise bad(name, value, "must be a finite number above 0")


def check_choice(name: str, value: Any, choices: tuple[str, ...] | None) -> None:
    """Refuse a named choice that is not one of the names."""
    if choices is not None and value is not None and value not in choices:
        raise bad(name, value, f"must be one of {', '.join(choices)}")
