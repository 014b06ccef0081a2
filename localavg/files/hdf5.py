"""HDF5 files, on disks that may fill: HDF5 can fail or crash when one does, so that large arrays
are written past it.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import h5py
import numpy as np


@contextlib.contextmanager
def laid_out(
    path: Path,
    arrays: Mapping[str, tuple[tuple[int, ...], Any, Mapping]],
    attributes: Mapping[str, Any],
    small: Mapping[str, tuple[Any, Mapping]] | None = None,
) -> Iterator[tuple[BinaryIO, dict[str, int]]]:
    """Write everything but the values of `arrays` {name: (shape, type, attributes)}; yield the open
    file and the first byte of each, to write them where HDF5 laid them out.

    attributes: at the root. small: {name: (values, attributes)}, written whole. Raises OSError.
    """
    early = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    early.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    early.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    first = {}
    try:
        with h5py.File(path, "w", locking=False) as file:
            file.attrs.update(attributes)
            for name, (values, more) in (small or {}).items():
                file[name] = values
                file[name].attrs.update(more)
            for name, (shape, dtype, more) in arrays.items():
                made = file.create_dataset(name, shape, dtype, dcpl=early)
                made.attrs.update(more)
                first[name] = made.id.get_offset()
    except (
        OSError,
        RuntimeError,
    ) as error:  # the latter where it closes a file that it could not write
        raise OSError(f"{path}: {reason(error)}") from error
    with open(path, "r+b") as out:
        yield out, first


def put(file: BinaryIO, first: int, values: np.ndarray) -> None:
    """Write an array from the byte `first` on."""
    file.seek(first)
    file.write(np.ascontiguousarray(values).reshape(-1).view(np.uint8).data)


def set_aside(path: str | os.PathLike, word: str) -> Path:
    """Rename a file or a folder to the first free name of path.word1, path.word2, …, which is
    returned.
    """
    aside = next(name for k in range(1, 10**6) if not os.path.lexists(name := f"{path}.{word}{k}"))
    os.rename(path, aside)
    return Path(aside)


def reason(error: Exception) -> str:
    """Return in one line why an OSError or HDF5 error came about."""
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno)
    if said := re.search(
        "error message = '([^']+)'", str(error)
    ):  # HDF5 quotes the system far down
        return said[1]
    return str(error).strip().split("\n")[0]
