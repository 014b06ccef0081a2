"""Whether the process that writes a run file still lives, as far as this host can tell."""

from __future__ import annotations

import contextlib
import os
import platform
from pathlib import Path

from localavg.files.atomic import alive

ENDED = ("Z", "X")  # the states of a process that has ended and still has its number


def identity() -> str:
    """Return the host, process namespace, number and start of this process, with spaces between.

    "" where the system does not tell. A number alone may be given to another process later.
    """
    space, start = _space(), _start(os.getpid())
    return f"{platform.node()} {space} {os.getpid()} {start}" if space and start else ""


def gone(identity: object) -> bool | None:
    """Return whether the process of this identity has ended; None if it is not of this host."""
    parts = str(identity).split()
    if len(parts) != 4 or parts[:2] != [platform.node(), _space()]:
        return None
    pid = int(parts[2])
    return not alive(pid) or _start(pid) not in (parts[3], None)


def _space() -> str:
    """Return the name of the space in which this process has its number, "" if it is not known."""
    with contextlib.suppress(OSError):
        return os.readlink("/proc/self/ns/pid")
    return ""


def _start(pid: int) -> str | None:
    """Return the start of a process, in ticks since boot; "ended" if it ended, None if unknown."""
    with contextlib.suppress(OSError):
        words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return "ended" if words[0] in ENDED else words[19]
    return None
