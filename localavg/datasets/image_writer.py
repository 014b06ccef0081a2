"""Write a prepared set of images (see `image_file`): atomically, never over another file."""

from __future__ import annotations

import contextlib
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import BinaryIO

import h5py
import numpy as np

from localavg.datasets.damage import Checker
from localavg.datasets.dataset import Augment
from localavg.datasets.prepared import SCHEMA
from localavg.datasets.writer import Layout, need_room, new_file
from localavg.errors import UserError, shown
from localavg.files.hdf5 import laid_out, put

IMAGENET_MEAN, IMAGENET_STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
"""of red, green and blue over ImageNet's training pictures

They are 255 · (0.485, 0.456, 0.406) and 255 · (0.229, 0.224, 0.225).
"""


def write_images(
    out: str | Path,
    splits: dict[str, tuple[np.ndarray, np.ndarray]],
    classes: tuple[str, ...],
    augment: Augment,
    attributes: Mapping[str, object],
) -> None:
    """Write a file of kind "images" from {split: (x uint8 [n, H, W, C], y [n])}.

    Mean and std are those of the split train. attributes: those at the root, with `name`, `source`
    and `shuffled`. UserError if `out` exists, its folder is missing or the disk is too small.
    """
    arrays: dict[str, np.ndarray] = {}
    for split, (x, y) in splits.items():
        arrays |= {f"{split}/x": x, f"{split}/y": y.astype(np.int64)}
    mean, std = moments(splits["train"][0])
    attributes = {
        "schema": SCHEMA,
        "kind": "images",
        "shape": splits["train"][0].shape[1:],
        "mean": mean,
        "std": std,
        **asdict(augment),
        **attributes,
    }
    layout: Layout = {name: (values.shape, values.dtype, {}) for name, values in arrays.items()}
    with (
        new_file(out, sum(values.nbytes for values in arrays.values())) as part,
        laid_out(part, layout, attributes, _names(classes)) as (file, first),
    ):
        for name, values in arrays.items():
            put(file, first[name], values)


def moments(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and standard deviation [C] of each channel of x uint8 [n, H, W, C].

    They come from exact counts of the values.
    """
    values, channels = np.arange(256), range(x.shape[-1])
    counts = [np.bincount(x[..., c].ravel(), minlength=256) for c in channels]  # C times [256]
    mean = np.array([(count @ values) / count.sum() for count in counts])
    square = np.array([(count @ values**2) / count.sum() for count in counts])
    std = np.sqrt(square - mean**2)
    return mean, np.where(std > 0, std, 1.0)


class PictureWriter:
    """Appends pictures to the splits of a new file, one at a time, and has each of them decoded.

    It keeps the place, the label and the name of each in memory. After the first damaged picture
    it writes no more.
    """

    def __init__(
        self, file: BinaryIO, first: dict[str, int], sources: Mapping[str, str], checker: Checker
    ) -> None:
        self._file, self._first, self._sources, self._checker = file, first, sources, checker
        self.names: dict[str, list[bytes]] = {split: [] for split in first}
        self.offsets = {split: array("q", [0]) for split in first}
        self.labels = {split: array("q") for split in first}

    def add(self, split: str, packed: bytes, label: int, name: str) -> None:
        """Append a picture of class `label`, called `name` within the split's source."""
        self._checker.add(f"{self._sources[split]}/{name}", packed)
        offsets = self.offsets[split]
        if not self._checker.damaged:
            self._file.seek(self._first[split] + offsets[-1])
            self._file.write(packed)
        offsets.append(offsets[-1] + len(packed))
        self.labels[split].append(label)
        self.names[split].append(shown(name).encode())

    def finish(self) -> None:
        """Wait until all pictures are decoded; UserError lists those that cannot be."""
        self._checker.finish()


@contextlib.contextmanager
def write_pictures(
    out: str | Path,
    most_bytes: dict[str, int],
    sources: Mapping[str, str],
    classes: tuple[str, ...],
    size: int,
    attributes: Mapping[str, object],
) -> Iterator[PictureWriter]:
    """Yield the PictureWriter of a new file of kind "jpeg".

    most_bytes: {split: largest number of bytes}; bytes that a split does not need are a hole at the
    end of its array, which takes no disk. sources: {split: folder or archive of its pictures}. The
    network's images are [size, size, 3]. attributes and errors as in `write_images`; in addition,
    one UserError lists all pictures that cannot be decoded.
    """
    attributes = {
        "schema": SCHEMA,
        "kind": "jpeg",
        "shape": (size, size, 3),
        "mean": IMAGENET_MEAN,
        "std": IMAGENET_STD,
        **asdict(Augment(flip=True, resized=True)),
        **attributes,
    }
    layout: Layout = {
        f"{split}/bytes": ((nbytes,), np.dtype(np.uint8), {})
        for split, nbytes in most_bytes.items()
    }
    with Checker() as checker, new_file(out, sum(most_bytes.values())) as part:
        with laid_out(part, layout, attributes, _names(classes)) as (file, first):
            starts = {split: first[f"{split}/bytes"] for split in most_bytes}
            yield (writer := PictureWriter(file, starts, sources, checker))
            writer.finish()
        for split, labels in writer.labels.items():
            if not labels:
                raise UserError(
                    f"{out}: there are no pictures for /{split}; is it the right archive or folder?"
                )
        _append_labels(part, writer)


def _append_labels(part: Path, writer: PictureWriter) -> None:
    """Append to a file of pictures where each of them begins, its label and its name."""
    names = {split: np.array(found) for split, found in writer.names.items()}  # [n] of type S
    named_bytes = sum(found.nbytes for found in names.values())
    need_room(part, 3 * 8 * sum(map(len, writer.labels.values())) + named_bytes)
    with h5py.File(part, "r+", locking=False) as file:
        for split, labels in writer.labels.items():
            file[f"{split}/offsets"] = np.asarray(writer.offsets[split])
            file[f"{split}/y"] = np.asarray(labels)
            file[f"{split}/names"] = names[split]


def _names(classes: tuple[str, ...]) -> dict[str, tuple[np.ndarray, dict[str, object]]]:
    """Return the array /classes."""
    return {"classes": (np.array([*map(shown, classes)], dtype=h5py.string_dtype()), {})}
