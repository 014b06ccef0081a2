"""Writing a prepared dataset (see `prepared`): atomically, never over another file, by rank 0."""

import contextlib
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np

from localavg.datasets.prepared import FLOAT, SCHEMA
from localavg.errors import UserError
from localavg.files import atomic
from localavg.files.hdf5 import laid_out, put, reason

T = TypeVar("T")

SLACK_BYTES = 1 << 20  # of a file, beside its arrays


def on_root(comm: Any, work: Callable[[], T]) -> T:
    """Return work() of rank 0 on every rank of `comm` (None: no MPI); its UserError or OSError
    reaches every rank.
    """
    result = error = None
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
    return result


def check_out(out: str | Path) -> None:
    """Refuse an output path that exists or has no folder, so that the user hears of it before the
    work.
    """
    out = Path(out)
    if out.exists():
        raise UserError(f"{out} exists and is never overwritten; remove it or choose another `out`")
    if not out.parent.is_dir():
        raise UserError(f"the folder of `out = {out}` does not exist; create {out.parent} first")


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
                atomic.sync(
                    part
                )  # may take long; what came to be named `out` meanwhile is not written over
                check_out(out)
        except OSError as error:
            raise UserError(
                f"{out} cannot be written ({reason(error)}); nothing of it was kept"
            ) from error


def need_room(out: Path, nbytes: int) -> None:
    """Refuse an output path on a disk with fewer bytes free."""
    need, free = nbytes + SLACK_BYTES, shutil.disk_usage(out.parent).free
    if need > free:
        raise UserError(
            f"{out} needs {need / 1e9:.1f} GB and {out.parent} has {free / 1e9:.1f} GB free; make "
            "room"
        )


@contextlib.contextmanager
def create(
    out: str | Path,
    features: int,
    rows: dict[str, int],
    attributes: dict,
    arrays: dict[str, tuple[np.ndarray, dict]] | None = None,
) -> Iterator[Writer]:
    """Yield the Writer of a new prepared file with `rows` = {split: n}, root `attributes` and
    `arrays` at the root ({name: (values, attributes)}). Atomic, and errors, as `new_file`.
    """
    layout = {}
    for split, n in rows.items():
        layout |= {f"{split}/x": ((n, features), FLOAT, {}), f"{split}/y": ((n,), FLOAT, {})}
    need_bytes = sum(rows.values()) * (features + 1) * FLOAT.itemsize
    with (
        new_file(out, need_bytes) as part,
        laid_out(part, layout, {"schema": SCHEMA, "kind": "features", **attributes}, arrays) as (
            file,
            first,
        ),
    ):
        yield Writer(file, first, features)


@contextlib.contextmanager
def _terminate_as_exit():
    """Let SIGTERM (what mpirun sends on Ctrl-C) unwind the stack, so that temporary files go."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
