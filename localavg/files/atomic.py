"""Write files and folders that exist whole or not at all.

They are written under another name, synced and renamed.
"""

from __future__ import annotations

import glob
import os
import platform
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path, part: Path | None = None) -> Iterator[Path]:
    """Yield the name `part` of a file to write; without an error it is then renamed to `path`.

    part: a name in the same folder, by default one that no other process uses. On any error the
    file of that name is removed. A file that a killed process of this host left is removed by the
    next process that writes `path`. Raises OSError.
    """
    if part is None:
        mine = f".{path.name}.{platform.node()}"
        for left in path.parent.glob(f"{glob.escape(mine)}.*.part"):
            pid = left.name.removeprefix(f"{mine}.").removesuffix(".part")
            if pid.isdigit() and not alive(int(pid)):
                left.unlink(missing_ok=True)
        part = path.with_name(f"{mine}.{os.getpid()}.part")
    try:
        yield part
        commit(part, path)
    finally:
        part.unlink(missing_ok=True)


def commit(part: Path, path: Path) -> None:
    """Rename a finished file or folder to `path`, and replace what is there. Raises OSError."""
    sync(part)
    if path.is_dir():
        shutil.rmtree(path)  # a folder can only be renamed over an empty one
    part.replace(path)
    sync(path.parent)


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def alive(pid: int) -> bool:
    """Return whether this host has a process of this number."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        pass
    return True
