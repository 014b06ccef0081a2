"""Checkpoints on disk: the last two of a run file RUN.h5, in the folder RUN.h5.ckpt.

A checkpoint after update t is a folder such as t000000123, with one HDF5 file a rank. It is written
under another name, synced and renamed, so a folder of that name is complete. Every array has a
checksum, so later damage is detected. The contents are {part: state_dict}. An array of two
dimensions has a row a learner, and its rows are read by whatever rank has the learner now; all
other values belong to the rank that wrote them, or to all ranks if rank 0 alone wrote them.
"""

from __future__ import annotations

import os
import shutil
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple, Protocol, TypeAlias, TypeVar

import h5py
import numpy as np

from localavg.errors import SharedError, UserError
from localavg.files import atomic, hdf5
from localavg.interfaces import Array
from localavg.parallel.device import on_host

T = TypeVar("T")
State: TypeAlias = "Mapping[str, Mapping[str, Array | float]]"  # {part: {name: value}}

KEPT = 2


class Writers(Protocol):
    """The ranks that write a checkpoint: a fleet, or one rank alone."""

    @property
    def rank(self) -> int:
        """This rank's number."""

    @property
    def ranks(self) -> int:
        """Their number."""

    @property
    def learners(self) -> range:
        """The learners of this rank."""

    def together(self, work: Callable[[], T]) -> T:
        """Run `work` on every rank; an error of one is a SharedError of all."""


class Saved(NamedTuple):
    """A checkpoint as a rank reads it.

    t: completed local updates. state: {part: {name: value}} of this rank's learners; NumPy arrays
    and scalars. ranks: the number of ranks that wrote it.
    """

    t: int
    state: dict[str, dict[str, np.ndarray]]
    ranks: int


def folder_of(run: str | os.PathLike[str]) -> Path:
    """Return the folder of the checkpoints of a run file."""
    return Path(f"{run}.ckpt")


def write(folder: Path, t: int, fleet: Writers, state: State) -> None:
    """Save this rank's state after update t, and remove all but the last KEPT checkpoints.

    Collective. Raises SharedError if a rank cannot write; then the checkpoints of before are kept.
    """
    partial, final = folder / f"t{t:09d}.partial", folder / f"t{t:09d}"

    def prepare() -> None:
        if fleet.rank == 0:
            for left in folder.glob("*.partial"):  # by a run that was killed
                shutil.rmtree(left, ignore_errors=True)
            partial.mkdir(parents=True)

    def commit() -> None:
        if fleet.rank == 0:
            atomic.commit(partial, final)
            for old in sorted(folder.glob("t" + "[0-9]" * 9))[:-KEPT]:
                shutil.rmtree(old)

    try:
        fleet.together(prepare)
        fleet.together(
            lambda: _write_rank(
                partial / f"rank{fleet.rank:05d}.h5", fleet.learners, fleet.ranks, state
            )
        )
        fleet.together(commit)
    except SharedError as e:
        if fleet.rank == 0:
            shutil.rmtree(partial, ignore_errors=True)
        raise SharedError(
            f"{final}: cannot write this checkpoint ({e}); make room or give `out` another folder, "
            "then `resume` from the checkpoint before"
        ) from e


def found(folder: Path) -> list[int]:
    """Return the updates after which there are complete checkpoints, latest first."""
    return sorted((int(path.name[1:]) for path in folder.glob("t" + "[0-9]" * 9)), reverse=True)


def read(folder: Path, t: int, rank: int, learners: range) -> Saved:
    """Read what `write` saved after update t for these learners.

    Values that are not a learner's come from this rank's file or, if it lacks them or fewer ranks
    wrote the checkpoint, from that of rank 0. Raises UserError if a file is missing or damaged.
    """
    place = folder / f"t{t:09d}"
    try:
        with ExitStack() as stack:
            files = [
                stack.enter_context(hdf5.opened(path)) for path in sorted(place.glob("rank*.h5"))
            ]
            ranks = int(files[0].attrs["ranks"])
            if len(files) != ranks:
                raise OSError(f"{len(files)} of {ranks} files")
            own = files[rank if rank < ranks else 0]
            first = files[0]  # rank 0 wrote every value
            state = {
                part: {name: _read(files, own, f"{part}/{name}", learners) for name in first[part]}
                for part in first
            }
            return Saved(t, state, ranks)
    except (OSError, KeyError, ValueError, IndexError, RuntimeError) as e:
        raise UserError(f"{place}: this checkpoint is damaged ({e or 'empty'})") from e


def put_aside(folder: Path, t: int) -> None:
    """Rename the damaged checkpoint after update t, so that it is neither read nor counted."""
    hdf5.set_aside(folder / f"t{t:09d}", "damaged")


def remove_after(folder: Path, t: int) -> bool:
    """Delete the checkpoints after later updates than t. Return whether there were any."""
    later = [s for s in found(folder) if s > t]
    for s in later:
        shutil.rmtree(folder / f"t{s:09d}")
    return bool(later)


def remove(folder: Path) -> None:
    """Delete the checkpoints of a finished run."""
    shutil.rmtree(folder, ignore_errors=True)


def _write_rank(path: Path, learners: range, ranks: int, state: State) -> None:
    """Write the file of one rank, with a checksum for every row of its matrices, and sync it."""
    values = {
        f"{part}/{name}": np.asarray(on_host(value))
        for part in state
        for name, value in state[part].items()
    }
    checksums = {
        name: {"checksum": [_checksum(row) for row in _rows(data)]} for name, data in values.items()
    }
    arrays = {
        name: (data.shape, data.dtype, checksums[name])
        for name, data in values.items()
        if data.ndim and data.size
    }
    small = {name: (data, checksums[name]) for name, data in values.items() if name not in arrays}
    root = {"ranks": ranks, "learners": (learners.start, learners.stop)}
    with hdf5.laid_out(path, arrays, root, small) as (file, first):
        for name in arrays:
            hdf5.put(file, first[name], values[name])
    atomic.sync(path)


def _read(files: list[h5py.File], own: h5py.File, name: str, learners: range) -> np.ndarray:
    """Read the rows of these learners from all files, or a value that has no rows from `own`."""
    own = own if name in own else files[0]
    if own[name].ndim != 2:
        return _checked(own[name], 0, 1)
    pieces = []
    for file in files:
        first, last = file.attrs["learners"]
        lo, hi = max(first, learners.start), min(last, learners.stop)
        if lo < hi:
            pieces.append(_checked(file[name], lo - first, hi - first))
    if sum(map(len, pieces)) != len(learners):
        raise OSError("learners are missing")
    return np.concatenate(pieces) if len(pieces) > 1 else pieces[0]


def _checked(item: h5py.Dataset, lo: int, hi: int) -> np.ndarray:
    """Read rows lo … hi − 1 of a matrix, or all of another value, and check the checksums."""
    data = item[lo:hi] if item.ndim == 2 else item[()]
    if [_checksum(row) for row in _rows(data)] != item.attrs["checksum"][lo:hi].tolist():
        raise OSError(f"wrong checksum in {item.name}")
    return data


def _rows(data: np.ndarray) -> Sequence[np.ndarray] | np.ndarray:
    return data if np.ndim(data) == 2 else [data]


def _checksum(data: np.ndarray) -> int:
    return zlib.crc32(np.ascontiguousarray(data).view(np.uint8).data if np.size(data) else b"")
