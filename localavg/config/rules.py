"""What stands at the field of a setting: its help, its check, and where it has an effect."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias, TypedDict, TypeVar, Unpack

from localavg import errors
from localavg.errors import UserError, at_least, bad
from localavg.interfaces import Settings

Check: TypeAlias = Callable[[str, Any], None]  # of a setting's name and value; raises UserError
T = TypeVar("T")
UNITS_S = {"s": 1, "min": 60, "h": 3600}


@dataclass(frozen=True)
class Rule:
    """Where an option has an effect: with one of these `values` of another `setting`.

    inverted: with any value but these. Without `values`: with any value but None, False, 0 and the
    like. value: the rule is about this value of the option alone. or_algorithm: an algorithm with
    which the option has an effect in any case. because: what the error adds about the other
    setting's value. lenient: whether the option may be given at its default.
    """

    setting: str
    values: tuple[object, ...] = ()
    inverted: bool = False
    value: object = None
    or_algorithm: str = ""
    because: str = ""
    lenient: bool = False

    def broken(self, c: Settings, value: object, is_default: bool) -> bool:
        """Return whether the option with this value has no effect under the settings c."""
        if (self.lenient and is_default) or self.value not in (None, value):
            return False
        if c["algorithm"] == self.or_algorithm:
            return False
        beside = c[self.setting]
        allowed = (beside in self.values) != self.inverted if self.values else bool(beside)
        return not allowed

    def error(self, c: Settings, name: str, value: object) -> UserError:
        """Make the error: what is wrong with the option under the settings c, and what to do."""
        beside = c[self.setting]
        if self.setting == "algorithm":
            pass
        elif beside is True:
            beside = f"a run with `{self.setting}`"
        elif not beside:
            beside = f"a run without `{self.setting}`"
        else:
            beside = f"`{self.setting} = {beside}`"
        remedy = "leave it out"
        if not self.values:
            remedy = f"add `{self.setting}`, or {remedy}"
        elif not self.inverted and self.setting != "algorithm":
            remedy = f"use `{self.setting} = {self.values[-1]}`, or {remedy}"
        because = f", {self.because}" if self.because else ""
        return UserError(f"{said(name, value)} means nothing to {beside}{because}; {remedy}")


class Clauses(TypedDict, total=False):
    """What else a rule may say; the names are those of `Rule`."""

    value: object
    or_algorithm: str
    because: str
    lenient: bool


def only_with(setting: str, *values: object, **more: Unpack[Clauses]) -> Rule:
    """Make the rule of an option that needs one of these values of another setting."""
    return Rule(setting, values, **more)


def not_with(setting: str, *values: object, **more: Unpack[Clauses]) -> Rule:
    """Make the rule of an option that has no effect with these values of another setting."""
    return Rule(setting, values, inverted=True, **more)


def said(name: str, value: object) -> str:
    """Return a setting and its value as errors write them."""
    if value is True:
        return f"`{name}`"
    text = " ".join(map(str, value)) if isinstance(value, tuple) else value
    return f"`{name} = {text}`"


def anything(name: str, value: object) -> None:
    """Accept every value."""


def whole(least: int, below: int | None = None) -> Check:
    """Make the check of an integer of at least `least`, and below a power of two."""

    def check(name: str, value: int | None) -> None:
        at_least(name, value, least)
        if value is not None and below is not None and value >= below:
            raise bad(name, value, f"must be below 2^{below.bit_length() - 1}")

    return check


def positive(name: str, value: float | None) -> None:
    """Raise UserError unless a value is a finite number above 0."""
    errors.positive(name, value)


def not_negative(name: str, value: float | None) -> None:
    """Raise UserError unless a value is a finite number of at least 0."""
    if value is not None and not 0 <= value < math.inf:
        raise bad(name, value, "must be a finite number of at least 0")


def in_epochs(least: Check) -> Check:
    """Make the check of a number of epochs, or of several; `least` checks each from below."""

    def check(name: str, value: float | tuple[float, ...] | None) -> None:
        for x in value if isinstance(value, tuple) else (value,):
            least(name, x)
            if x is not None and x > 1e9:
                raise bad(name, x, "must be at most 1e9 epochs")

    return check


def below_1(name: str, value: float) -> None:
    """Raise UserError for a number outside [0, 1)."""
    if not 0 <= value < 1:
        raise bad(name, value, "must lie in [0, 1)")


def time(name: str, text: str | None) -> None:
    """Raise UserError for a text that is no time."""
    seconds(name, text)


def time_or_updates(name: str, text: str | None) -> None:
    """Raise UserError for a text that is neither a time nor a number of updates."""
    if text and text.isdecimal():
        at_least(name, int(text), 1)
    else:
        seconds(name, text)


def option(
    default: T, help: str, *rules: Rule, group: str, valid: Check = anything, **extra: object
) -> T:
    """Make a dataclass field with the help text of an option, its rules and its check.

    group: the group of the option in ``--help``. valid: raises UserError for a bad value. extra:
    keyword arguments for argparse.
    """
    about = {"help": help, "rules": rules, "group": group, "valid": valid, **extra}
    return field(default=default, metadata=about)


def seconds(name: str, text: str | None) -> float | None:
    """Return the seconds in an option's text: a number with s, min or h, or H:MM:SS."""
    if text is None:
        return None
    if match := re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|min|h)", text):
        total = float(match[1]) * UNITS_S[match[2]]
    elif match := re.fullmatch(r"(\d+):([0-5]?\d):([0-5]?\d)", text):
        total = int(match[1]) * 3600.0 + int(match[2]) * 60 + int(match[3])
    else:
        raise bad(name, text, "must be a time such as 90s, 50min, 2h or 1:30:00")
    errors.positive(name, total)
    return total
