"""Datasets: prepared files and named sets, held once per node."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from localavg.datasets import where
from localavg.datasets.dataset import Augment, Dataset, Split, filled
from localavg.errors import UserError, amount

if TYPE_CHECKING:
    from localavg.parallel.fleet import Fleet

__all__ = ["NAMED", "NAMED_FORMS", "Augment", "Dataset", "Split", "load"]


def load(spec: str | Path, fleet: Fleet) -> Dataset:
    """Load the dataset that `spec` names: a prepared file, or a named set (`NAMED`). Collective.

    `where.places` says where a prepared file is looked for.

    The arrays are `fleet.node_array`s, one copy a node, of which each rank fills its part of the
    rows; nothing else as large is allocated. Packed pictures ("jpeg") stay in their file. Every
    rank raises the same UserError if any rank cannot read its part.
    """
    name, colon, size = str(spec).partition(":")
    if name in NAMED:
        return NAMED[name](size if colon else None, fleet)

    def find() -> str:
        path = where.found(spec)
        if path is None and Path(spec).suffix not in where.SUFFIXES:
            raise UserError(
                f"`data = {spec}` is no file and no named set; give a prepared .h5 file or one of: "
                f"{', '.join(NAMED_FORMS)}"
            )
        return str(path or spec)

    return _load_prepared(fleet.together(find), fleet)


def _load_prepared(path: str, fleet: Fleet) -> Dataset:
    from localavg.datasets import image_file, prepared

    kind = fleet.together(lambda: image_file.kind(path))
    if kind in image_file.KINDS:
        return image_file.load(path, fleet)
    if kind not in (None, "features"):
        kinds = ", ".join(("features", *image_file.KINDS))
        raise UserError(f"{path} is of kind {kind!r}; this version reads {kinds}")
    header = fleet.together(lambda: prepared.header(path))

    def fill(split: str, x: np.ndarray, y: np.ndarray, start: int, stop: int) -> None:
        prepared.read(path, split, x, y, start, stop)

    splits = {
        name: filled(fleet, shape, (np.float32, np.float32), 1, name, fill)
        for name, shape in header.shapes.items()
    }
    train, test = splits["train"], splits.get("test")
    return Dataset(header.name, header.kind, train, test, header.classes, header.shuffled)


def _load_epsilon_like(size: str | None, fleet: Fleet) -> Dataset:
    from localavg.datasets import epsilon_like

    rows, features = epsilon_like.ROWS, epsilon_like.FEATURES
    if size is not None:
        match = re.fullmatch(r"(\d+)x(\d+)", size)
        rows, features = (int(number) for number in match.groups()) if match else (0, 0)
        if not (rows and features):
            raise UserError(
                f"`data = epsilon-like:{size}` must read epsilon-like:ROWSxFEATURES, as in "
                "20000x200"
            )
    lengths = epsilon_like.sizes(rows)
    _check_room(
        f"epsilon-like:{rows}x{features}", sum(lengths.values()) * (features + 1) * 4, fleet
    )
    teacher = epsilon_like.teacher(features)  # [d]

    def fill(split: str, x: np.ndarray, y: np.ndarray, start: int, stop: int) -> None:
        epsilon_like.generate(x[start:stop], y[start:stop], start, teacher=teacher, split=split)

    splits = {
        name: filled(fleet, (n, features), (np.float32, np.float32), epsilon_like.BLOCK, name, fill)
        for name, n in lengths.items()
    }
    name, train, test = f"epsilon-like:{rows}x{features}", splits["train"], splits.get("test")
    return Dataset(name, "features", train, test, (-1.0, 1.0), shuffled=True)


def _check_room(spec: str, nbytes: int, fleet: Fleet) -> None:
    """Raise UserError on every rank for a named set that no machine of this size can hold."""
    from localavg.datasets.writer import node_room

    def check() -> None:
        if (room := node_room()) is not None and nbytes > room:
            raise UserError(
                f"`data = {spec}` needs {amount(nbytes)} a node, and this machine has "
                f"{amount(room)} of memory or /dev/shm; ask for less data"
            )

    fleet.together(check)


def _load_digits(size: str | None, fleet: Fleet) -> Dataset:
    from localavg.datasets import digits

    if size is not None:
        raise UserError(f"`data = digits:{size}`: the digits come in one size; write digits")
    splits = {
        name: filled(fleet, (n, *digits.SHAPE), (np.uint8, np.int64), n, name, digits.fill)
        for name, n in digits.SIZES.items()
    }
    return Dataset(
        "digits",
        "images",
        splits["train"],
        splits["test"],
        tuple("0123456789"),
        shuffled=True,
        shape=digits.SHAPE,
        mean=digits.MEAN,
        std=digits.STD,
    )


def _load_cifar10_like(size: str | None, fleet: Fleet) -> Dataset:
    from localavg.datasets import cifar10_like as like

    if size is not None and not (size.isdecimal() and int(size)):
        raise UserError(
            f"`data = cifar10-like:{size}` must read cifar10-like:ROWS, as in cifar10-like:5000"
        )
    rows = like.ROWS if size is None else int(size)
    lengths = like.sizes(rows)
    _check_room(f"cifar10-like:{rows}", sum(lengths.values()) * math.prod(like.SHAPE), fleet)

    def fill(split: str, x: np.ndarray, y: np.ndarray, start: int, stop: int) -> None:
        like.generate(x[start:stop], y[start:stop], start, split=split)

    splits = {
        name: filled(fleet, (n, *like.SHAPE), (np.uint8, np.int64), like.BLOCK, name, fill)
        for name, n in lengths.items()
    }
    classes = tuple(f"pattern {k}" for k in range(like.CLASSES))
    return Dataset(
        f"cifar10-like:{rows}",
        "images",
        splits["train"],
        splits.get("test"),
        classes,
        shuffled=True,
        shape=like.SHAPE,
        mean=like.MEAN,
        std=like.STD,
        augment=Augment(pad=4, flip=True),
    )


def _load_fashion_mnist(size: str | None, fleet: Fleet) -> Dataset:
    def find() -> str:
        if size is not None:
            raise UserError(
                f"`data = fashion-mnist:{size}`: the set comes in one size; write fashion-mnist"
            )
        if path := where.found("fashion-mnist.h5"):
            return str(path)
        raise UserError(
            "`data = fashion-mnist`: there is no data/fashion-mnist/fashion-mnist.h5, here or in "
            "the checkout; run `make fashion-mnist` in the checkout, or give a prepared .h5 file"
        )

    return _load_prepared(fleet.together(find), fleet)


NAMED: dict[str, Callable[[str | None, Fleet], Dataset]] = {
    "epsilon-like": _load_epsilon_like,
    "digits": _load_digits,
    "cifar10-like": _load_cifar10_like,
    "fashion-mnist": _load_fashion_mnist,
}
"""sets that are given without a file: name → loader(size after the colon or None, fleet)"""

NAMED_FORMS = ["epsilon-like[:ROWSxFEATURES]", "digits", "cifar10-like[:ROWS]", "fashion-mnist"]
"""the forms of their names, for messages and help"""
