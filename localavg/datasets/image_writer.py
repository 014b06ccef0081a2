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

from localavg.datasets.dataset import Augment
from localavg.datasets.prepared import SCHEMA
from localavg.datasets.writer import Layout, need_room, new_file
from localavg.errors import UserError
from localavg.files.hdf5 import laid_out, put

MAGIC = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")
"""first bytes of a picture: JPEG, and PNG too, because one of ImageNet's .JPEG files is a PNG"""
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
    """Appends pictures to the splits of a new file, one at a time.

    It keeps 16 bytes in memory for each.
    """

    def __init__(self, file: BinaryIO, first: dict[str, int]) -> None:
        self._file, self._first = file, first
        self.offsets = {split: array("q", [0]) for split in first}
        self.labels = {split: array("q") for split in first}

    def add(self, split: str, packed: bytes, label: int, name: str) -> None:
        """Append a picture of class `label`.

        UserError, in which the picture is called `name`, unless it begins as one.
        """
        if not packed.startswith(MAGIC):
            raise UserError(
                f"{name} is no picture: it begins with {packed[:4]!r}, not as JPEG or PNG; fetch "
                "it again"
            )
        offsets = self.offsets[split]
        self._file.seek(self._first[split] + offsets[-1])
        self._file.write(packed)
        offsets.append(offsets[-1] + len(packed))
        self.labels[split].append(label)


@contextlib.contextmanager
def write_pictures(
    out: str | Path,
    most_bytes: dict[str, int],
    classes: tuple[str, ...],
    size: int,
    attributes: Mapping[str, object],
) -> Iterator[PictureWriter]:
    """Yield the PictureWriter of a new file of kind "jpeg".

    most_bytes: {split: largest number of bytes}; bytes that a split does not need are a hole at the
    end of its array, which takes no disk. The network's images are [size, size, 3]. attributes and
    errors as in `write_images`.
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
    with new_file(out, sum(most_bytes.values())) as part:
        with laid_out(part, layout, attributes, _names(classes)) as (file, first):
            writer = PictureWriter(file, {split: first[f"{split}/bytes"] for split in most_bytes})
            yield writer
        for split, labels in writer.labels.items():
            if not labels:
                raise UserError(
                    f"{out}: there are no pictures for /{split}; is it the right archive or folder?"
                )
        _append_labels(part, writer)


def _append_labels(part: Path, writer: PictureWriter) -> None:
    """Append to a file of pictures where each of them begins, and its label."""
    need_room(part, 3 * 8 * sum(map(len, writer.labels.values())))
    with h5py.File(part, "r+", locking=False) as file:
        for split, labels in writer.labels.items():
            file[f"{split}/offsets"] = np.asarray(writer.offsets[split])
            file[f"{split}/y"] = np.asarray(labels)


def _names(classes: tuple[str, ...]) -> dict[str, tuple[np.ndarray, dict[str, object]]]:
    """Return the array /classes."""
    return {"classes": (np.array(classes, dtype=h5py.string_dtype()), {})}
