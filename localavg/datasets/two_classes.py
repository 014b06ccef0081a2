"""Make a feature matrix of two classes from a set of images, for logistic regression."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from localavg.datasets import digits, image_file, progress, writer
from localavg.datasets.prepared import opened, slabs
from localavg.errors import UserError

DIGITS = "digits"
"""the name of the set of images that needs no file"""


class _Images(NamedTuple):
    """A set of images: its name, the names of its classes, (H, W, C), and the rows of each split.

    path: its file, "" for the digits. order: attributes that say in which order the rows are.
    """

    name: str
    classes: Sequence[str]
    shape: Sequence[int]
    rows: dict[str, int]
    path: str
    order: Mapping[str, object]

    def read(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        """Return x uint8 [n, H, W, C] and y int64 [n] of a split."""
        if self.path:
            with opened(self.path) as file:
                return file[f"{split}/x"][()], file[f"{split}/y"][()]
        n = self.rows[split]
        x, y = np.empty((n, *self.shape), np.uint8), np.empty(n, np.int64)
        digits.fill(split, x, y, 0, n)
        return x, y


def prepare_features(
    images: str | Path,
    out: str | Path,
    positive: Sequence[str],
    sort: bool = False,
    name: str | None = None,
    comm: writer.Communicator | None = None,
) -> None:
    """Write the prepared file `out` of kind "features" from one of kind "images", or the digits.

    A row is an image's pixels divided by their Euclidean norm; a black image is a row of zeros.
    images: the path of the file, or DIGITS. positive: the classes labelled +1, by name or by
    number; the others are labelled −1. sort: put the training rows in the order of their classes,
    so that shards hold different ones. Rank 0 of `comm` works. UserError for a file of another
    kind, a class that the set does not have, no class left on one of the sides, or if `out` exists.
    """
    writer.on_root(comm, lambda: _write(str(images), out, positive, sort, name))


def _write(
    images: str, out: str | Path, positive: Sequence[str], sort: bool, name: str | None
) -> None:
    writer.check_out(out)
    found = _found(images)
    features = math.prod(found.shape)
    chosen = _chosen(positive, found.classes, images)
    attributes = {
        "name": name or f"{found.name}: {'+'.join(found.classes[c] for c in chosen)}",
        "source": Path(images).name,
        "classes": [-1.0, 1.0],
        "positive": [found.classes[c] for c in chosen],
        "sorted": sort,
        **({"shuffled": False} if sort else found.order),
    }
    with (
        writer.create(out, features, found.rows, attributes) as target,
        progress.bar(sum(found.rows.values()), f"write {out}", unit="row") as bar,
    ):
        for split in found.rows:
            x, y = found.read(split)
            if sort and split == "train":
                order = np.argsort(y, kind="stable")
                x, y = x[order], y[order]
            signs = np.where(np.isin(y, chosen), 1.0, -1.0)
            for a, b in slabs(len(y), 4 * features):
                target.write(split, a, _unit(x[a:b]), signs[a:b])
                bar.update(b - a)


def _found(images: str) -> _Images:
    """Return the set of images of a name or path; UserError if it is none."""
    if images == DIGITS:
        classes = tuple("0123456789")
        return _Images(DIGITS, classes, digits.SHAPE, digits.SIZES, "", {"shuffled": True})
    if (kind := image_file.kind(images)) != "images":
        raise UserError(
            f"{images} is of kind {kind or 'unknown'}, not images; prepare images first"
        )
    about, rows, _ = image_file.header(images)
    with opened(images) as file:
        order = {key: file.attrs[key] for key in ("shuffled", "shuffle_seed") if key in file.attrs}
    return _Images(about.name, about.classes, about.shape, rows, images, order)


def _unit(x: np.ndarray) -> np.ndarray:
    """Return images [m, H, W, C] as rows [m, d] of norm 1, float32; black images stay zero."""
    rows = x.reshape(len(x), -1).astype(np.float32)
    norms = np.sqrt(np.einsum("md,md->m", rows, rows))  # [m]
    return rows / np.where(norms > 0, norms, 1)[:, None]


def _chosen(positive: Sequence[str], classes: Sequence[str], images: str) -> list[int]:
    """Return the numbers of the classes; UserError if one does not exist or no others are left."""
    known = ", ".join(f"{i} ({name})" if name != str(i) else name for i, name in enumerate(classes))
    chosen = set()
    for each in positive:
        numbers = [i for i, name in enumerate(classes) if each in (name, str(i))]
        if not numbers:
            raise UserError(f"`positive`: {images} has no class {each}; it has {known}")
        chosen.add(classes.index(each) if each in classes else numbers[0])
    if not 0 < len(chosen) < len(classes):
        raise UserError(
            f"`positive` must name some of the classes and not all; {images} has {known}"
        )
    return sorted(chosen)
