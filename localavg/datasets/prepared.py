"""Read a prepared dataset: one HDF5 file, written once and whole, read in slabs.

`/train` and, where the set has one, `/test` hold `x` float32 [n, d] and `y` float32 [n] (−1 or +1),
uncompressed and contiguous. The root attributes are `schema`, `kind`, `name`, `source` (file
names), `classes` (the two labels as they were, smaller first), `shuffled` and, where the rows were
permuted, `shuffle_seed`.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass

import h5py
import numpy as np

from localavg.errors import UserError
from localavg.files import hdf5
from localavg.files.hdf5 import reason

SCHEMA = 1
SLAB_BYTES = 16 << 20
FLOAT = np.dtype("<f4")


@dataclass(frozen=True)
class Header:
    """The attributes of a prepared file and the shapes of its splits."""

    name: str
    """name of the dataset"""
    kind: str
    """kind of a row of x: "features" """
    classes: tuple[float, ...]
    """the two original labels, (that of −1, that of +1)"""
    shuffled: bool
    """whether the rows are in random order, so that consecutive rows are a fair sample"""
    shapes: dict[str, tuple[int, int]]
    """(n, d) of each split, by its name"""


def slabs(
    rows: int, row_bytes: int, first: int = 0, slab_bytes: int = SLAB_BYTES
) -> Iterator[tuple[int, int]]:
    """Yield (start, stop) of slabs of about `slab_bytes` that cover rows first … rows − 1."""
    step = max(1, slab_bytes // max(1, row_bytes))
    for start in range(first, rows, step):
        yield start, min(start + step, rows)


@contextlib.contextmanager
def opened(path: str | os.PathLike[str]) -> Iterator[h5py.File]:
    """Yield the HDF5 file `path` for reading; UserError if it is missing, not HDF5, or damaged."""
    if not os.path.isfile(path):
        raise UserError(f"{path}: no such file; write it first with `localavg prepare …`")
    with open(path, "rb"):  # an unreadable file fails here, with its reason
        pass
    if not h5py.is_hdf5(path):
        raise UserError(
            f"{path} is not an HDF5 file; a dataset is a file written by `localavg prepare …`"
        )
    try:
        with hdf5.opened(path) as file:
            yield file
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"{path} is damaged or cut short ({reason(error)}); prepare it again"
        ) from error


def header(path: str | os.PathLike[str]) -> Header:
    """Return the Header of `path`.

    UserError unless it is a prepared file whose shapes and types agree.
    """
    with opened(path) as file:
        schema = file.attrs.get("schema")
        if schema is None or "train/x" not in file:
            raise UserError(
                f"{path} holds no prepared dataset (an attribute schema, and /train/x); use "
                "`localavg prepare …`"
            )
        if schema != SCHEMA:
            raise UserError(
                f"{path} has schema {schema}, this version reads {SCHEMA}; prepare it again"
            )
        shapes = {}
        for split in ("train", "test"):
            if split in file:
                shapes[split] = _checked_shape(path, file[split], split)
        if len({d for _, d in shapes.values()}) > 1:
            raise UserError(
                f"{path}: train and test have different widths {shapes}; prepare them together"
            )
        attributes = file.attrs
        try:
            return Header(
                name=str(attributes["name"]),
                kind=str(attributes["kind"]),
                classes=tuple(float(label) for label in attributes["classes"]),
                shuffled=bool(attributes["shuffled"]),
                shapes=shapes,
            )
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{path} lacks a good attribute ({reason(error)}); prepare it again"
            ) from error


def _checked_shape(path: str | os.PathLike[str], group: object, split: str) -> tuple[int, int]:
    """Return (n, d) of a split; UserError unless it holds x [n, d] and y [n] as float32."""
    x, y = (group.get("x"), group.get("y")) if isinstance(group, h5py.Group) else (None, None)
    if not (isinstance(x, h5py.Dataset) and isinstance(y, h5py.Dataset)):
        raise UserError(f"{path}: /{split} must hold the arrays x and y; prepare it again")
    if x.ndim != 2 or 0 in x.shape or y.shape != x.shape[:1]:
        raise UserError(
            f"{path}: /{split} has x {x.shape} and y {y.shape}, not [n, d] and [n]; prepare it "
            "again"
        )
    if x.dtype != np.float32 or y.dtype != np.float32:
        raise UserError(
            f"{path}: /{split} has x {x.dtype} and y {y.dtype}, not float32; prepare it again"
        )
    n, d = x.shape
    return n, d


def read(
    path: str | os.PathLike[str], split: str, x: np.ndarray, y: np.ndarray, start: int, stop: int
) -> None:
    """Read rows start … stop − 1 of a split into x [n, d] and y [n], which stand for all its rows.

    UserError names the row of the first value that is not finite or label that is not −1 or +1.
    """
    with opened(path) as file:
        if stop > start:
            file[f"{split}/y"].read_direct(y, np.s_[start:stop], np.s_[start:stop])
        for a, b in slabs(stop, x[:1].nbytes, start):
            file[f"{split}/x"].read_direct(x, np.s_[a:b], np.s_[a:b])
            finite = np.isfinite(x[a:b])  # [b − a, d]
            if not finite.all():
                row = a + int(np.argmin(finite.all(axis=1)))
                raise UserError(
                    f"{path}: row {row} of /{split}/x holds a value that is not finite; prepare it "
                    "again"
                )
    wrong = np.flatnonzero(np.abs(y[start:stop]) != 1)
    if wrong.size:
        row = start + int(wrong[0])
        raise UserError(
            f"{path}: label {y[row]} in row {row} of /{split}/y is not -1 or +1; prepare it again"
        )
