"""Help to write HDF5 files on disks that may fill, and to report errors in one line.

HDF5 can fail or crash on a full disk, so large arrays are written to the file without HDF5.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, TypeAlias

import h5py
import numpy as np

from localavg.errors import UserError, shown

Attributes: TypeAlias = Mapping[str, object]  # what h5py takes: numbers, text, lists of them


@contextlib.contextmanager
def laid_out(
    path: Path,
    arrays: Mapping[str, tuple[tuple[int, ...], np.dtype, Attributes]],
    attributes: Attributes,
    small: Mapping[str, tuple[np.ndarray, Attributes]] | None = None,
) -> Iterator[tuple[BinaryIO, dict[str, int]]]:
    """Write a file without the values of `arrays`; yield it open, with each array's first byte.

    The caller then writes the values with `put`. arrays: {name: (shape, dtype, attributes)}.
    attributes: those of the root. small: {name: (values, attributes)}, written whole. Raises
    OSError.
    """
    early = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    early.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    early.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    first = {}
    try:
        with h5py.File(path, "w", locking=False) as file:
            for name, value in attributes.items():
                file.attrs[name] = shown(value) if isinstance(value, str) else value
            for name, (values, more) in (small or {}).items():
                file[name] = values
                file[name].attrs.update(more)
            for name, (shape, dtype, more) in arrays.items():
                made = file.create_dataset(name, shape, dtype, dcpl=early)
                made.attrs.update(more)
                first[name] = made.id.get_offset()
    except (OSError, RuntimeError) as error:  # RuntimeError: h5py closes a file it cannot write
        raise OSError(f"{path}: {reason(error)}") from error
    with open(path, "r+b") as out:
        yield out, first


def opened(path: str | os.PathLike[str]) -> h5py.File:
    """Open a file to read it, also one that this process has open elsewhere, as in a notebook.

    Raises OSError, or UserError where HDF5 cannot open it a second time.
    """
    try:  # without a lock, which a shared file system may not have
        return h5py.File(path, "r", locking=False)
    except OSError as error:
        if "file locking" not in str(error):
            raise
        first = error
    for locking in (None, "best-effort", True):  # a second opening must lock as the first one does
        with contextlib.suppress(OSError):
            return h5py.File(path, "r", locking=locking)
    raise UserError(
        f"{path} is open elsewhere in this process ({reason(first)}); close it there first"
    ) from first


def put(file: BinaryIO, first: int, values: np.ndarray) -> None:
    """Write an array to the file, from its byte `first` on."""
    file.seek(first)
    file.write(np.ascontiguousarray(values).reshape(-1).view(np.uint8).data)


def set_aside(path: str | os.PathLike[str], word: str) -> Path:
    """Rename a file or folder to the first free name of path.word1, path.word2, …; return it."""
    aside = next(name for k in range(1, 10**6) if not os.path.lexists(name := f"{path}.{word}{k}"))
    os.rename(path, aside)
    return Path(aside)


def reason(error: Exception) -> str:
    """Return the cause of an OSError or HDF5 error in one line."""
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno)
    # HDF5 quotes the system's message far down in its own
    if quoted := re.search("error message = '([^']+)'", str(error)):
        return quoted[1]
    return str(error).strip().split("\n")[0]


@contextlib.contextmanager
def clear_errors(problem: str, remedy: str) -> Iterator[None]:
    """Turn errors of the system and of HDF5 into a UserError "problem (cause): remedy"."""
    try:
        yield
    except (OSError, KeyError, RuntimeError) as error:
        raise UserError(f"{problem} ({reason(error) or type(error).__name__}): {remedy}") from error
