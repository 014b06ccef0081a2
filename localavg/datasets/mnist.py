"""Prepare MNIST, Fashion-MNIST, KMNIST or EMNIST from their four IDX files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from localavg.datasets import idx, progress
from localavg.datasets.dataset import Augment
from localavg.datasets.image_writer import write_images
from localavg.datasets.jpegs import pillow
from localavg.datasets.writer import Communicator, check_out, node_room, on_root, shuffled
from localavg.errors import UserError, amount, at_least

FASHION = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
KNOWN = {  # name, names of the classes: MD5 checksums of the unpacked files
    ("Fashion-MNIST", FASHION): {
        ("train", "images"): "f4a8712d7a061bf5bd6d2ca38dc4d50a",
        ("train", "labels"): "9018921c3c673c538a1fc5bad174d6f9",
        ("test", "images"): "8181f5470baa50b63fa0f6fddb340f0a",
        ("test", "labels"): "15d484375f8d13e6eb1aabb0c3f46965",
    }
}
ROLES = {"train": ("train",), "test": ("t10k", "test")}
"""what the names of a split's files contain"""
KINDS = ("images", "labels")


class Prepared(NamedTuple):
    """What was written: the name of the set if its files are the official ones, and the counts."""

    known: str
    rows: dict[str, int]
    shape: tuple[int, ...]
    empty: tuple[str, ...]
    """the classes that no training image has"""


def prepare_mnist(
    sources: Sequence[str | Path],
    out: str | Path,
    size: int | None = None,
    transpose: bool = False,
    augment: Augment = Augment(),  # noqa: B008  # it is frozen
    shuffle: int | None = None,
    name: str = "mnist",
    comm: Communicator | None = None,
) -> Prepared:
    """Write the prepared file `out` from IDX files, plain or .gz.

    sources: a folder with the files, or two or four files: images and labels to train on, and
    perhaps to test on. Their names say which is which: train, t10k or test; images or labels. size:
    resize the images to this height and width. transpose: swap the rows and columns of each image,
    as EMNIST needs it. augment: the random changes to train under. shuffle: a seed; training row i
    is then row numpy.random.default_rng(shuffle).permutation(n)[i] of the files. Rank 0 of `comm`
    works. UserError for a file that is missing, damaged or of another kind, for counts, sizes or
    labels that do not fit together, or if `out` exists.
    """
    at_least("size", size, 1)
    at_least("pad", augment.pad, 0)
    at_least("shuffle", shuffle, 0)
    how = size, transpose, augment, shuffle, name
    return on_root(comm, lambda: _write([Path(source) for source in sources], out, *how))


def _write(
    sources: list[Path],
    out: str | Path,
    size: int | None,
    transpose: bool,
    augment: Augment,
    shuffle: int | None,
    name: str,
) -> Prepared:
    check_out(out)
    if size is not None:
        pillow()
    files = _by_role(sources)
    found = {role: idx.read(path, role[1]) for role, path in files.items()}
    _check(files, found)
    if size is not None:
        _check_room(
            size, sum(len(values.values) for role, values in found.items() if role[1] == "images")
        )
    sums = {role: values.md5 for role, values in found.items()}
    known = next((key for key, official in KNOWN.items() if sums == official), None)
    splits = _splits(found, size, transpose, shuffle)
    x, y = splits["train"]
    classes = known[1] if known else tuple(map(str, range(int(y.max()) + 1)))
    attributes = {
        "name": name,
        "source": [path.name for path in files.values()],
        "md5": [*sums.values()],
        "official": known is not None,
        **shuffled(shuffle),
    }
    write_images(out, splits, classes, augment, attributes)
    counts = np.bincount(y, minlength=len(classes))
    return Prepared(
        known[0] if known else "",
        {split: len(y) for split, (_, y) in splits.items()},
        x.shape[1:3],
        tuple(name for name, n in zip(classes, counts, strict=True) if not n),
    )


def _splits(
    found: dict[tuple[str, str], idx.Idx], size: int | None, transpose: bool, shuffle: int | None
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return the images [n, H, W, 1] and labels [n] of each split as they are written."""
    splits = {}
    for split in dict.fromkeys(role[0] for role in found):
        x, y = found[split, "images"].values, found[split, "labels"].values
        x = x.transpose(0, 2, 1) if transpose else x
        splits[split] = _resized(x, size)[..., None], y.astype(np.int64)
    if shuffle is not None:
        x, y = splits["train"]
        order = np.random.default_rng(shuffle).permutation(len(y))
        splits["train"] = x[order], y[order]
    return splits


def _by_role(sources: list[Path]) -> dict[tuple[str, str], Path]:
    """Return the files by (split, kind); UserError where one is missing or there are several."""
    folder = sources[0] if len(sources) == 1 and sources[0].is_dir() else None
    paths = sources if folder is None else _idx_files(folder)
    roles: dict[tuple[str, str], Path] = {}
    for path in paths:
        role = _role(path.name)
        if role is None:
            if not path.exists():
                raise UserError(f"{path}: there is no such file or folder")
            if folder is None:
                raise UserError(
                    f"{path}: its name does not say what it holds; it must contain train, t10k or "
                    "test, and images or labels"
                )
        elif role not in roles:
            roles[role] = path
        elif path.stem != roles[role].name:  # else plain and .gz of one file lie side by side
            raise UserError(
                f"{path} and {roles[role]} both hold the {role[1]} to {role[0]} on, by their "
                "names; give the files of one set"
            )
    wanted = [(split, kind) for split in ROLES for kind in KINDS]
    wanted = wanted if any(split == "test" for split, _ in roles) else wanted[:2]
    for split, kind in wanted:
        if (split, kind) not in roles:
            where = f"{folder} has" if folder else "there is"
            raise UserError(
                f"{where} no file of the {kind} to {split} on, such as "
                f"{ROLES[split][0]}-{kind}-idx{3 if kind == 'images' else 1}-ubyte.gz; give it too"
            )
    return {role: roles[role] for role in wanted}


def _idx_files(folder: Path) -> list[Path]:
    """Return the files of a folder whose names are of this format, in order."""
    names = ("ubyte", "idx")
    files = (path for path in folder.iterdir() if not path.is_dir())  # a link may lead nowhere
    return sorted(path for path in files if any(word in path.name.lower() for word in names))


def _role(name: str) -> tuple[str, str] | None:
    """Return the (split, kind) that the name of a file tells; None if it does not."""
    lower = name.lower()
    splits = [split for split, words in ROLES.items() if any(word in lower for word in words)]
    kinds = [kind for kind in KINDS if kind in lower]
    return (splits[0], kinds[0]) if len(splits) == len(kinds) == 1 else None


def _check(files: dict[tuple[str, str], Path], found: dict[tuple[str, str], idx.Idx]) -> None:
    """Raise UserError where counts, sizes or labels do not fit together."""
    classes = int(found["train", "labels"].values.max()) + 1
    shape = found["train", "images"].values.shape[1:]
    if (ys := found["train", "labels"].values).min() == ys.max():
        raise UserError(
            f"{files['train', 'labels']}: all labels are {ys[0]}, and a set has two classes at "
            "least; is it the right file?"
        )
    for split in dict.fromkeys(role[0] for role in found):
        x, y = (found[split, kind].values for kind in KINDS)
        images, labels = (files[split, kind] for kind in KINDS)
        if len(x) != len(y):
            raise UserError(
                f"{images} has {len(x)} images and {labels} {len(y)} labels; give the files of one "
                "set"
            )
        if x.shape[1:] != shape:
            raise UserError(
                f"{images} has images of {_by(x.shape[1:])} pixels, and those to train on have "
                f"{_by(shape)}; give the files of one set"
            )
        if (largest := int(y.max())) >= classes:
            raise UserError(
                f"{labels}: label {largest} of image {int(y.argmax())} is not 0 … {classes - 1}, "
                "the labels to train on; give the files of one set"
            )


def _check_room(size: int, images: int) -> None:
    """Raise UserError for resized images that this machine cannot hold."""
    nbytes, room = images * size**2, node_room()
    if room is not None and nbytes > room:
        raise UserError(
            f"`size = {size}`: {images} images of that size take {amount(nbytes)}, and this "
            f"machine has {amount(room)} of memory; use a smaller size"
        )


def _by(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def _resized(x: np.ndarray, size: int | None) -> np.ndarray:
    """Return images uint8 [n, H, W] as [n, size, size], averaged where they shrink."""
    if size is None or x.shape[1:] == (size, size):
        return np.ascontiguousarray(x)
    from PIL import Image

    out = np.empty((len(x), size, size), np.uint8)
    with progress.bar(len(x), f"resize to {size}", unit="image") as bar:
        for image, small in zip(x, out, strict=True):
            shrunk = Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR)
            small[...] = np.asarray(shrunk)
            bar.update(1)
    return out
