"""A prepared set of images: one HDF5 file, written once and whole by `image_writer`.

Kind "images": `/train` and, where the set has one, `/test` hold `x` uint8 [n, H, W, C] and `y`
int64 [n], the number of the class. Kind "jpeg": `bytes` uint8, the packed pictures one after
another, and perhaps an unused tail; `offsets` int64 [n + 1], picture i being bytes offsets[i] …
offsets[i + 1] − 1; and `y`. All uncompressed and contiguous. `/classes` holds the names of the
classes. The root attributes are `schema`, `kind`, `name`, `source` (file names), `shuffled`, where
the rows were permuted `shuffle_seed`, and what `Dataset` says of `shape`, `mean`, `std` and
`augment` (`pad`, `flip`, `resized`).
"""

from __future__ import annotations

import os
from dataclasses import fields
from functools import partial
from typing import Any

import h5py
import numpy as np

from localavg.datasets.dataset import Augment, Dataset, Split, filled
from localavg.datasets.jpegs import Jpegs, pillow
from localavg.datasets.prepared import SCHEMA, opened, slabs
from localavg.errors import UserError
from localavg.files.hdf5 import reason

KINDS = ("images", "jpeg")


def kind(path: str | os.PathLike) -> str | None:
    """The kind that a prepared file says it is, if it says so; UserError if it cannot be read."""
    with opened(path) as file:
        return str(file.attrs["kind"]) if "kind" in file.attrs else None


def load(path: str, fleet: Any) -> Dataset:
    """The Dataset in a file of one of the `KINDS`. Collective over `fleet`; UserError on all ranks
    if it is spoilt.
    """
    about, sizes, first_bytes = fleet.together(lambda: _header(path))
    splits, classes = {}, len(about["classes"])
    for name, n in sizes.items():
        if about["kind"] == "images":
            fill = _filler(path, classes, _read_images)
            splits[name] = filled(fleet, (n, *about["shape"]), (np.uint8, np.int64), 1, name, fill)
        else:
            fleet.together(pillow)
            places = filled(
                fleet, (n, 2), (np.int64, np.int64), 1, name, _filler(path, classes, _read_places)
            )
            splits[name] = Split(
                fleet.together(partial(Jpegs, path, name, first_bytes[name], places.x)), places.y
            )
    return Dataset(train=splits["train"], test=splits.get("test"), **about)


def _header(path: str) -> tuple[dict[str, Any], dict[str, int], dict[str, int]]:
    """What a file says of itself, fields of Dataset; {split: rows}; {split: first byte of its
    pictures in the file}.
    """
    with opened(path) as file:
        a = file.attrs
        if (schema := a.get("schema")) != SCHEMA:
            raise UserError(
                f"{path} has schema {schema}, this version reads {SCHEMA}; prepare it again"
            )
        try:
            about = {
                "name": str(a["name"]),
                "kind": str(a["kind"]),
                "shuffled": bool(a["shuffled"]),
                "classes": tuple(name.decode() for name in file["classes"][:]),
                "shape": tuple(int(side) for side in a["shape"]),
                "mean": tuple(map(float, a["mean"])),
                "std": tuple(map(float, a["std"])),
                "augment": Augment(**{f.name: a[f.name].item() for f in fields(Augment)}),
            }
            H, W, C = about["shape"]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(
                f"{path} lacks a good attribute ({reason(error)}); prepare it again"
            ) from error
        good = (
            len(about["mean"]) == len(about["std"]) == C
            and min(H, W, C) > 0
            and min(about["std"]) > 0
            and about["classes"]
        )
        if not good or not np.isfinite(about["mean"] + about["std"]).all():
            raise UserError(
                f"{path}: shape {about['shape']}, mean {about['mean']}, std {about['std']} and "
                f"{len(about['classes'])} classes do not go together; prepare it again"
            )
        check = {"images": _checked_images, "jpeg": _checked_pictures}[about["kind"]]
        groups = {split: file[split] for split in ("train", "test") if split in file}
        if "train" not in groups:
            raise UserError(f"{path} holds no /train; prepare it again")
        sizes = {
            split: check(path, split, group, about["shape"]) for split, group in groups.items()
        }
        first = (
            {split: g["bytes"].id.get_offset() for split, g in groups.items()}
            if about["kind"] == "jpeg"
            else {}
        )
    return about, sizes, first


def _array(path: str, split: str, group: Any, name: str, dtype: Any, ndim: int) -> h5py.Dataset:
    found = group.get(name) if isinstance(group, h5py.Group) else None
    if not isinstance(found, h5py.Dataset) or found.dtype != dtype or found.ndim != ndim:
        what = (
            f"{found.dtype} {list(found.shape)}" if isinstance(found, h5py.Dataset) else "missing"
        )
        raise UserError(
            f"{path}: /{split}/{name} is {what}, not {np.dtype(dtype)} of {ndim} dimensions; "
            "prepare it again"
        )
    return found


def _checked_images(path: str, split: str, group: Any, shape: tuple[int, int, int]) -> int:
    x, y = (
        _array(path, split, group, "x", np.uint8, 4),
        _array(path, split, group, "y", np.int64, 1),
    )
    if x.shape != (len(y), *shape) or not len(y):
        raise UserError(
            f"{path}: /{split} has x {x.shape} and y {y.shape} of images {shape}; prepare it again"
        )
    return len(y)


def _checked_pictures(path: str, split: str, group: Any, shape: tuple[int, int, int]) -> int:
    packed, y = (
        _array(path, split, group, "bytes", np.uint8, 1),
        _array(path, split, group, "y", np.int64, 1),
    )
    offsets = _array(path, split, group, "offsets", np.int64, 1)
    if (
        offsets.shape != (len(y) + 1,)
        or not len(y)
        or shape[2] != 3
        or packed.chunks
        or packed.id.get_offset() is None
    ):
        raise UserError(
            f"{path}: /{split} has {len(offsets)} offsets and {len(y)} labels, of images {shape}; "
            f"it must have one offset more than labels and three colours; prepare it again"
        )
    if offsets[0] < 0 or offsets[-1] > len(packed):
        raise UserError(
            f"{path}: /{split}/offsets reach beyond the {len(packed)} bytes of the pictures; "
            "prepare it again"
        )
    return len(y)


def _filler(path: str, classes: int, read: Any) -> Any:
    """What fills rows start … stop − 1 of x and y of a split from the file, and checks the
    labels.
    """

    def fill(split: str, x: np.ndarray, y: np.ndarray, start: int, stop: int) -> None:
        if start == stop:
            return
        with opened(path) as file:
            file[f"{split}/y"].read_direct(y, np.s_[start:stop], np.s_[start:stop])
            wrong = np.flatnonzero((y[start:stop] < 0) | (y[start:stop] >= classes))
            if wrong.size:
                row = start + int(wrong[0])
                raise UserError(
                    f"{path}: label {y[row]} in row {row} of /{split}/y is not 0 … {classes - 1}; "
                    "prepare it again"
                )
            read(path, split, file[split], x, start, stop)

    return fill


def _read_images(
    path: str, split: str, group: h5py.Group, x: np.ndarray, start: int, stop: int
) -> None:
    for a, b in slabs(stop, x[:1].nbytes, start):
        group["x"].read_direct(x, np.s_[a:b], np.s_[a:b])


def _read_places(
    path: str, split: str, group: h5py.Group, x: np.ndarray, start: int, stop: int
) -> None:
    offsets = group["offsets"][start : stop + 1]
    x[start:stop, 0], x[start:stop, 1] = offsets[:-1], offsets[1:]
    empty = np.flatnonzero(np.diff(offsets) <= 0)
    if empty.size:
        raise UserError(
            f"{path}: picture {start + int(empty[0])} of /{split} has no bytes; prepare it again"
        )
