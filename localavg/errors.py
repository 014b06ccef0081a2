"""Exit statuses, the errors of users, and the checks that raise them. Standard library only."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Iterable
from difflib import get_close_matches
from numbers import Integral

FINISHED, FAILED, MISTAKE, GO_ON = 0, 1, 2, 75
"""Exit statuses. MISTAKE: a UserError. GO_ON (EX_TEMPFAIL): the run was interrupted and saved, and
the same command resumes it.
"""
ALIKE = 0.7
"""least likeness, from 0 to 1, of a name that is suggested"""
LARGEST = 2**63 - 1
"""largest integer of a setting: larger ones do not fit into a run file"""


class UserError(Exception):
    """A mistake in what the user asked for (exit status 2).

    The message is one line that names the value, the rule and the remedy.

    Settings stand between backquotes, `batch_size = 5` or `batch_size`, and nothing else does: the
    command line writes them as flags.
    """


class SharedError(UserError):
    """A UserError raised on every rank alike, so all ranks can exit normally without an abort."""


def shown(name: str) -> str:
    """Return a file's name as text that can be stored and printed.

    Bytes that are not UTF-8 become escapes such as \\xe9, and so do line breaks and other control
    characters, which would spoil a line or a terminal.
    """
    text = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]", lambda found: repr(found[0])[1:-1], text)


def pip_install(packages: str) -> str:
    """Return the command that installs packages where this program runs."""
    return f"{sys.executable} -m pip install {packages}"


def amount(nbytes: float) -> str:
    """Return a number of bytes in the unit that leaves 1 to 999 of it, such as 1.4 MB."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if nbytes < 999.95 or unit == "GB":
            break
        nbytes /= 1000
    return f"{nbytes:.0f} {unit}" if unit == "bytes" else f"{nbytes:.1f} {unit}"


def bad(name: str, value: object, rule: str) -> UserError:
    """Make the error of a setting whose value breaks a rule."""
    return UserError(f"`{name} = {value}`: {rule}")


def whole(name: str, value: object) -> None:
    """Raise UserError unless a value is a whole number of an integer type, below 2^63."""
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise bad(name, repr(value), "must be a whole number, such as 4")
    if abs(int(value)) > LARGEST:
        raise bad(name, value, "must be below 2^63")


def like(name: str, known: Iterable[str]) -> str:
    """Return the known name that `name` is like, with other capitals at the least; "" if none."""
    names = list(known)
    same = [word for word in names if word.lower() == name.lower()]
    return next(iter(same or get_close_matches(name, names, 1, ALIKE)), "")


def at_least(name: str, value: int | None, least: int) -> None:
    """Raise UserError if an integer is below `least`, or not below 2^63."""
    if value is not None and value < least:
        raise bad(name, value, f"must be at least {least}")
    if value is not None and value > LARGEST:
        raise bad(name, value, "must be below 2^63")


def positive(name: str, value: float | None) -> None:
    """Raise UserError if a number is not finite and above 0; NaN is refused too."""
    if value is not None and not 0 < value < math.inf:
        raise bad(name, value, "must be a finite number above 0")


def check_choice(name: str, value: str | None, choices: tuple[str, ...] | None) -> None:
    """Raise UserError if a value is not one of the named choices."""
    if choices is not None and value is not None and value not in choices:
        raise bad(name, value, f"must be one of {', '.join(choices)}")
