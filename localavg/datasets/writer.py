"""Write a prepared dataset (see `prepared`): atomically, never over another file, by rank 0."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import stat
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, Protocol, TypeAlias, TypeVar, cast

import numpy as np

from localavg.datasets.prepared import FLOAT, SCHEMA
from localavg.errors import UserError, amount
from localavg.files import atomic
from localavg.files.hdf5 import laid_out, put, reason

T = TypeVar("T")
Attributes: TypeAlias = Mapping[str, object]
Layout: TypeAlias = dict[str, tuple[tuple[int, ...], np.dtype, Attributes]]
"""{name of an array: (shape, type, attributes)}"""

SLACK_BYTES = 1 << 20
"""largest size of a file without its arrays"""


class Communicator(Protocol):
    """The part of an MPI communicator that is needed here."""

    @property
    def rank(self) -> int:
        """The number of this rank."""

    @property
    def size(self) -> int:
        """The number of ranks."""

    def bcast(self, obj: T, root: int = 0) -> T:
        """Return obj of rank `root` on every rank."""

    def gather(self, obj: T, root: int = 0) -> list[T] | None:
        """Return every rank's obj on rank `root`, None elsewhere."""


def on_root(comm: Communicator | None, work: Callable[[], T]) -> T:
    """Return work() of rank 0 on every rank of `comm` (None: no MPI).

    A UserError or OSError of work is raised on every rank, as a UserError.
    """
    result: T | None = None
    error: UserError | None = None
    if comm is None or comm.rank == 0:
        try:
            result = work()
        except UserError as caught:
            error = caught
        except OSError as caught:
            error = UserError(": ".join(filter(None, (caught.filename, reason(caught)))))
    if comm is not None:
        result, error = comm.bcast((result, error), root=0)
    if error is not None:
        raise error
    return cast(T, result)


def check_out(out: str | Path) -> None:
    """Raise UserError for an output path that exists or has no folder, before the work begins."""
    out = Path(out)
    if out.exists():
        raise UserError(f"{out} exists and is never overwritten; remove it or choose another `out`")
    if not out.parent.is_dir():
        raise UserError(f"the folder of `out = {out}` does not exist; create {out.parent} first")


def check_file(path: str | Path) -> None:
    """Raise UserError for a pipe or a device, which cannot be read twice.

    Raises OSError if there is no such file.
    """
    mode = os.stat(path).st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        what = "a pipe" if stat.S_ISFIFO(mode) else "a device"
        raise UserError(
            f"{path} is {what}, which cannot be read twice; write it to a file and give the file"
        )


def shuffled(seed: int | None) -> dict[str, object]:
    """Return the attributes of rows that were permuted with this seed (None: they were not)."""
    return {"shuffled": seed is not None} | ({} if seed is None else {"shuffle_seed": seed})


class Writer:
    """Writes rows into the arrays of a new prepared file."""

    def __init__(self, file: BinaryIO, offsets: dict[str, int], features: int) -> None:
        self._file, self._offsets, self._features = file, offsets, features

    def write(self, split: str, start: int, x: np.ndarray, y: np.ndarray) -> None:
        """Write rows start … start + m − 1 of a split: x [m, d], y [m]."""
        for name, values, row_items in (("x", x, self._features), ("y", y, 1)):
            first = self._offsets[f"{split}/{name}"] + start * row_items * FLOAT.itemsize
            put(self._file, first, np.asarray(values, FLOAT))


@contextlib.contextmanager
def new_file(out: str | Path, need_bytes: int) -> Iterator[Path]:
    """Yield the path of a temporary file beside `out` that gets its name when the block ends well.

    It is removed on any error, Ctrl-C or SIGTERM; what a kill left is removed by the next one of
    the same name, which starts from the beginning. UserError if `out` exists, its folder is missing
    or the disk has no `need_bytes` free.
    """
    out = Path(out)
    check_out(out)
    need_room(out, need_bytes)
    with _terminate_as_exit():
        try:
            with atomic.replacing(out) as part:
                yield part
                atomic.sync(part)  # may take long
                check_out(out)  # another program may have made `out` meanwhile
        except OSError as error:
            raise UserError(
                f"{out} cannot be written ({reason(error)}); nothing of it was kept"
            ) from error


def need_room(out: Path, nbytes: int, what: str = "") -> None:
    """Raise UserError for an output path on a disk with fewer bytes free; what: what they hold."""
    need, free = nbytes + SLACK_BYTES, shutil.disk_usage(out.parent).free
    if need > free:
        raise UserError(
            f"{out} needs {amount(need)}{f' ({what})' * bool(what)} and {out.parent} has "
            f"{amount(free)} free; make room"
        )


def need_memory(out: Path, nbytes: int, what: str) -> None:
    """Raise UserError for more bytes than a node like this one can hold, where that is known.

    Training holds one copy a node, in memory or, for several ranks, in /dev/shm.
    """
    if (room := node_room()) is not None and nbytes > room:
        raise UserError(
            f"{out} needs {amount(nbytes)} ({what}), which training holds once a node, and "
            f"this machine has {amount(room)} of memory or /dev/shm; use fewer features, or "
            "add `any_size` if you train on a larger machine"
        )


def node_room() -> int | None:
    """Return the bytes of this machine's memory or, if they are more, those free in /dev/shm.

    None where the system does not say.
    """
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return None
    return max(memory, shutil.disk_usage("/dev/shm").free if os.path.isdir("/dev/shm") else 0)


def dense_bytes(rows: int, features: int) -> int:
    """Return the bytes of x [rows, features] and y [rows]."""
    return rows * (features + 1) * FLOAT.itemsize


@contextlib.contextmanager
def create(
    out: str | Path,
    features: int,
    rows: dict[str, int],
    attributes: Attributes,
    arrays: Mapping[str, tuple[np.ndarray, Attributes]] | None = None,
) -> Iterator[Writer]:
    """Yield the Writer of a new prepared file.

    rows: {split: n}. attributes and arrays: those at the root, arrays as {name: (values,
    attributes)}. It is atomic and raises errors as `new_file`.
    """
    layout: Layout = {}
    for split, n in rows.items():
        layout |= {f"{split}/x": ((n, features), FLOAT, {}), f"{split}/y": ((n,), FLOAT, {})}
    need_bytes = dense_bytes(sum(rows.values()), features)
    root = {"schema": SCHEMA, "kind": "features", **attributes}
    with new_file(out, need_bytes) as part, laid_out(part, layout, root, arrays) as (file, first):
        yield Writer(file, first, features)


@contextlib.contextmanager
def _terminate_as_exit() -> Iterator[None]:
    """Context manager: SIGTERM, which mpirun sends on Ctrl-C, ends the process as an exit does.

    Temporary files are then removed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
