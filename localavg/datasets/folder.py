"""Prepare any folder of pictures, one subfolder a class, as a file of packed pictures."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from localavg.datasets import progress
from localavg.datasets.image_writer import write_pictures
from localavg.datasets.writer import Communicator, check_out, on_root, shuffled
from localavg.errors import UserError

SIDE = 224
SUFFIXES = (".jpg", ".jpeg", ".png")


def prepare_folder(
    train: str | Path,
    out: str | Path,
    test: str | Path | None = None,
    size: int = SIDE,
    shuffle: int | None = None,
    name: str | None = None,
    comm: Communicator | None = None,
) -> None:
    """Write the prepared file `out` from folders of .jpg, .jpeg and .png pictures.

    They have one subfolder a class. Classes are the subfolders of `train` in the order of their
    names; `test` has some of them. Networks see `size` x `size` pixels. Pictures lie in the order
    of their names, class by class. shuffle: a seed; picture i is then picture
    numpy.random.default_rng(shuffle).permutation(n)[i] of those of `train`. Other files are
    ignored. UserError if a class has no pictures, a picture does not begin as one, or `out` exists.
    Rank 0 of `comm` works.
    """
    if size < 1:
        raise UserError(f"`size = {size}` must be at least 1 pixel")
    if shuffle is not None and shuffle < 0:
        raise UserError(f"`shuffle = {shuffle}` is a seed and must not be negative")
    folders = {"train": Path(train)} | ({"test": Path(test)} if test else {})
    on_root(comm, lambda: _write_folder(folders, out, size, shuffle, name))


def _write_folder(
    folders: dict[str, Path], out: str | Path, size: int, shuffle: int | None, name: str | None
) -> None:
    """Write the pictures of {split: folder}."""
    check_out(out)
    train = folders["train"]
    classes = sorted(_subfolders(train))
    if not classes:
        raise UserError(f"{train} has no subfolders; pictures must lie in one subfolder a class")
    for folder in folders.values():
        if strange := sorted(_subfolders(folder) - set(classes)):
            raise UserError(f"{folder / strange[0]} is a class that {train} has not")
    files = {split: _pictures(folder, classes) for split, folder in folders.items()}
    if shuffle is not None:
        order = np.random.default_rng(shuffle).permutation(len(files["train"]))  # [n]
        files["train"] = [files["train"][i] for i in order]
    lengths = {
        split: sum(path.stat().st_size for path, _ in found) for split, found in files.items()
    }
    attributes = {
        "name": name or train.resolve().name,
        "source": ", ".join(map(str, folders.values())),
        **shuffled(shuffle),
    }
    with (
        write_pictures(out, lengths, tuple(classes), size, attributes) as target,
        progress.bar(sum(lengths.values()), f"write {Path(out).name}") as bar,
    ):
        for split, found in files.items():
            for path, label in found:
                packed = path.read_bytes()
                target.add(split, packed, label, str(path))
                bar.update(len(packed))


def _subfolders(folder: Path) -> set[str]:
    """Return the names of the subfolders that are not hidden."""
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder; give one that has one subfolder a class")
    return {
        entry.name
        for entry in os.scandir(folder)
        if entry.is_dir() and not entry.name.startswith(".")
    }


def _pictures(folder: Path, classes: list[str]) -> list[tuple[Path, int]]:
    """Return (file, class) of every picture, in the order of class and name."""
    found: list[tuple[Path, int]] = []
    for label, name in enumerate(classes):
        if not (folder / name).is_dir():
            continue  # a test set may lack a class
        here = sorted(
            path
            for path in (folder / name).iterdir()
            if path.suffix.lower() in SUFFIXES and path.is_file()
        )
        if not here:
            raise UserError(
                f"{folder / name} has no {', '.join(SUFFIXES)} files; remove the folder or fill it"
            )
        found += [(path, label) for path in here]
    return found
