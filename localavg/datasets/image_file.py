"""Read a prepared set of images: one HDF5 file, written once and whole by `image_writer`.

Kind "images": `/train` and, where the set has one, `/test` hold `x` uint8 [n, H, W, C] and `y`
int64 [n], the number of the class. Kind "jpeg": `bytes` uint8, the packed pictures one after
another, and perhaps an unused tail; `offsets` int64 [n + 1], picture i being bytes offsets[i] …
offsets[i + 1] − 1; `y`; and `names` [n], what each picture was called in its folder or archive,
which earlier versions did not write. All arrays are uncompressed and contiguous. `/classes` holds
the names of the classes. The root attributes are `schema`, `kind`, `name`, `source` (file names),
`shuffled`, `shuffle_seed` if the rows were permuted, and the fields `shape`, `mean`, `std` and
`augment` (`pad`, `flip`, `resized`) of `Dataset`.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

import h5py
import numpy as np

from localavg.datasets.dataset import Augment, Dataset, Fill, Split, filled
from localavg.datasets.jpegs import Jpegs, pillow
from localavg.datasets.prepared import SCHEMA, opened, slabs
from localavg.errors import UserError
from localavg.files.hdf5 import reason

if TYPE_CHECKING:
    from numpy.typing import DTypeLike

    from localavg.parallel.fleet import Fleet

KINDS = ("images", "jpeg")
Read: TypeAlias = Callable[[str, str, h5py.Group, np.ndarray, int, int], None]
"""read(path, split, group, x, start, stop) reads rows start … stop − 1 of x"""


@dataclass(frozen=True)
class Header:
    """The attributes of a file: fields of `Dataset`."""

    name: str
    kind: str
    shuffled: bool
    classes: tuple[str, ...]
    shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augment: Augment


def kind(path: str | os.PathLike) -> str | None:
    """Return the kind of a prepared file, None if it has none; UserError if it is unreadable."""
    with opened(path) as file:
        return str(file.attrs["kind"]) if "kind" in file.attrs else None


def load(path: str, fleet: Fleet) -> Dataset:
    """Load the dataset in a file of one of the `KINDS`. Collective over `fleet`.

    UserError on all ranks if the file is damaged.
    """
    about, sizes, first_bytes = fleet.together(lambda: header(path))
    splits, classes = {}, len(about.classes)
    for name, n in sizes.items():
        if about.kind == "images":
            fill = _filler(path, classes, _read_images)
            splits[name] = filled(fleet, (n, *about.shape), (np.uint8, np.int64), 1, name, fill)
        else:
            fleet.together(pillow)
            fill = _filler(path, classes, _read_places)
            places = filled(fleet, (n, 2), (np.int64, np.int64), 1, name, fill)
            called = partial(picture_name, path, name)
            opening = partial(Jpegs, path, name, first_bytes[name], places.x, called)
            splits[name] = Split(fleet.together(opening), places.y)
    return Dataset(train=splits["train"], test=splits.get("test"), **vars(about))


def picture_name(path: str, split: str, i: int) -> str:
    """Return what errors call picture i of a split: its number and, if the file has it, its name.

    It is for errors, so it raises none.
    """
    with contextlib.suppress(UserError), opened(path) as file:
        if f"{split}/names" in file:
            return f"{i} ({file[f'{split}/names'][i].decode()})"
    return str(i)


def header(path: str) -> tuple[Header, dict[str, int], dict[str, int]]:
    """Return a file's Header, {split: rows}, and {split: first byte of its pictures in the file}.

    UserError unless its attributes and arrays go together.
    """
    with opened(path) as file:
        about = _attributes(path, file)
        check = {"images": _checked_images, "jpeg": _checked_pictures}[about.kind]
        groups = {split: file[split] for split in ("train", "test") if split in file}
        if "train" not in groups:
            raise UserError(f"{path} holds no /train; prepare it again")
        sizes = {split: check(path, split, group, about.shape) for split, group in groups.items()}
        first = {}
        if about.kind == "jpeg":
            first = {split: group["bytes"].id.get_offset() for split, group in groups.items()}
    return about, sizes, first


def _attributes(path: str, file: h5py.File) -> Header:
    """Read a file's Header; UserError unless its values go together."""
    a = file.attrs
    if (schema := a.get("schema")) != SCHEMA:
        raise UserError(
            f"{path} has schema {schema}, this version reads {SCHEMA}; prepare it again"
        )
    try:
        H, W, C = (int(side) for side in a["shape"])
        about = Header(
            name=str(a["name"]),
            kind=str(a["kind"]),
            shuffled=bool(a["shuffled"]),
            classes=tuple(name.decode() for name in file["classes"][:]),
            shape=(H, W, C),
            mean=tuple(map(float, a["mean"])),
            std=tuple(map(float, a["std"])),
            augment=Augment(**{f.name: a[f.name].item() for f in fields(Augment)}),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{path} lacks a good attribute ({reason(error)}); prepare it again"
        ) from error
    mean, std, classes = about.mean, about.std, about.classes
    good = len(mean) == len(std) == C and min(H, W, C) > 0 and min(std) > 0 and classes
    if not good or not np.isfinite(mean + std).all():
        raise UserError(
            f"{path}: shape {about.shape}, mean {mean}, std {std} and {len(classes)} classes do "
            "not go together; prepare it again"
        )
    return about


def _array(
    path: str, split: str, group: object, name: str, dtype: DTypeLike, ndim: int
) -> h5py.Dataset:
    """Return an array of a split; UserError unless it has this type and number of dimensions."""
    found = group.get(name) if isinstance(group, h5py.Group) else None
    if not isinstance(found, h5py.Dataset) or found.dtype != dtype or found.ndim != ndim:
        what = "missing"
        if isinstance(found, h5py.Dataset):
            what = f"{found.dtype} {list(found.shape)}"
        raise UserError(
            f"{path}: /{split}/{name} is {what}, not {np.dtype(dtype)} of {ndim} dimensions; "
            "prepare it again"
        )
    return found


def _checked_images(path: str, split: str, group: object, shape: tuple[int, int, int]) -> int:
    """Return the number of images in a split; UserError unless its arrays go together."""
    x = _array(path, split, group, "x", np.uint8, 4)
    y = _array(path, split, group, "y", np.int64, 1)
    if x.shape != (len(y), *shape) or not len(y):
        raise UserError(
            f"{path}: /{split} has x {x.shape} and y {y.shape} of images {shape}; prepare it again"
        )
    return len(y)


def _checked_pictures(path: str, split: str, group: object, shape: tuple[int, int, int]) -> int:
    """Return the number of pictures in a split; UserError unless its arrays go together."""
    packed = _array(path, split, group, "bytes", np.uint8, 1)
    y = _array(path, split, group, "y", np.int64, 1)
    offsets = _array(path, split, group, "offsets", np.int64, 1)
    contiguous = not packed.chunks and packed.id.get_offset() is not None
    if offsets.shape != (len(y) + 1,) or not len(y) or shape[2] != 3 or not contiguous:
        raise UserError(
            f"{path}: /{split} has {len(offsets)} offsets and {len(y)} labels, of images {shape}; "
            "it must have one offset more than labels and three colours; prepare it again"
        )
    if offsets[0] < 0 or offsets[-1] > len(packed):
        raise UserError(
            f"{path}: /{split}/offsets reach beyond the {len(packed)} bytes of the pictures; "
            "prepare it again"
        )
    return len(y)


def _filler(path: str, classes: int, read: Read) -> Fill:
    """Return the function that fills rows of x and y of a split from the file.

    It raises UserError for a label that is not 0 … classes − 1.
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
    """Read images into rows start … stop − 1 of x uint8 [n, H, W, C]."""
    for a, b in slabs(stop, x[:1].nbytes, start):
        group["x"].read_direct(x, np.s_[a:b], np.s_[a:b])


def _read_places(
    path: str, split: str, group: h5py.Group, x: np.ndarray, start: int, stop: int
) -> None:
    """Read the first and the last byte of pictures into rows start … stop − 1 of x int64 [n, 2]."""
    offsets = group["offsets"][start : stop + 1]
    x[start:stop, 0], x[start:stop, 1] = offsets[:-1], offsets[1:]
    empty = np.flatnonzero(np.diff(offsets) <= 0)
    if empty.size:
        raise UserError(
            f"{path}: picture {start + int(empty[0])} of /{split} has no bytes; prepare it again"
        )
