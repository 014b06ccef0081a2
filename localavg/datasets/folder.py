"""Prepare any folder of pictures, one subfolder a class, as a file of packed pictures."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from localavg.datasets import progress
from localavg.datasets.image_writer import write_pictures
from localavg.datasets.writer import Communicator, check_out, on_root, shuffled
from localavg.errors import UserError, shown
from localavg.files.hdf5 import clear_errors

SIDE = 224
SUFFIXES = (".jpg", ".jpeg", ".png")
LARGEST_SIDE = 65_500
"""pixels: no JPEG is larger"""
SHOWN = 3
"""files passed over that are named"""


class Found(NamedTuple):
    """What one folder holds."""

    pictures: list[tuple[Path, int]]
    """(file, class) of every picture, in the order of class and name"""
    passed: list[Path]
    """files and folders that are neither pictures nor folders of a class"""


def prepare_folder(
    train: str | Path,
    out: str | Path,
    test: str | Path | None = None,
    size: int = SIDE,
    shuffle: int | None = None,
    name: str | None = None,
    comm: Communicator | None = None,
) -> str:
    """Write the prepared file `out` from folders of .jpg, .jpeg and .png pictures.

    They have one subfolder a class. Classes are the subfolders of `train` in the order of their
    names; `test` has some of them. Networks see `size` x `size` pixels. Pictures lie in the order
    of their names, class by class. The orientation that a camera writes into a picture (EXIF) is
    not applied, and transparency is dropped. shuffle: a seed; picture i is then picture
    numpy.random.default_rng(shuffle).permutation(n)[i] of those of `train`. Return in one line
    which other files were passed over, "" if none: hidden ones, those of other suffixes, and those
    that lie elsewhere than in the folder of a class. UserError if there is one class only, if a
    class has no pictures, if pictures cannot be decoded, which are all listed, or if `out` exists.
    Rank 0 of `comm` works.
    """
    if not 1 <= size <= LARGEST_SIDE:
        raise UserError(f"`size = {size}` must be from 1 to {LARGEST_SIDE} pixels")
    if shuffle is not None and shuffle < 0:
        raise UserError(f"`shuffle = {shuffle}` is a seed and must not be negative")
    folders = {"train": Path(train)} | ({"test": Path(test)} if test else {})
    return on_root(comm, lambda: _write_folder(folders, out, size, shuffle, name))


def _write_folder(
    folders: dict[str, Path], out: str | Path, size: int, shuffle: int | None, name: str | None
) -> str:
    """Write the pictures of {split: folder}; return which files were passed over."""
    check_out(out)
    train = folders["train"]
    classes = sorted(_subfolders(train))
    if not classes:
        raise UserError(f"{train} has no subfolders; pictures must lie in one subfolder a class")
    if len(classes) == 1:
        raise UserError(
            f"{train} has one class only ({classes[0]}), and there is nothing to tell apart; give "
            "the folder that holds one subfolder a class"
        )
    for folder in folders.values():
        if strange := sorted(_subfolders(folder) - set(classes)):
            raise UserError(f"{folder / strange[0]} is a class that {train} has not")
    found = {split: _found(folder, classes) for split, folder in folders.items()}
    files = {split: here.pictures for split, here in found.items()}
    if shuffle is not None:
        order = np.random.default_rng(shuffle).permutation(len(files["train"]))  # [n]
        files["train"] = [files["train"][i] for i in order]
    lengths = {split: sum(path.stat().st_size for path, _ in here) for split, here in files.items()}
    attributes = {
        "name": name or train.resolve().name,
        "source": ", ".join(map(str, folders.values())),
        **shuffled(shuffle),
    }
    sources = {split: str(folder) for split, folder in folders.items()}
    with (
        write_pictures(out, lengths, sources, tuple(classes), size, attributes) as target,
        progress.bar(sum(lengths.values()), f"write {Path(out).name}") as bar,
    ):
        for split, here in files.items():
            for path, label in here:
                with clear_errors(f"{path} cannot be read", "make it readable, or remove it"):
                    packed = path.read_bytes()
                target.add(split, packed, label, f"{path.parent.name}/{path.name}")
                bar.update(len(packed))
    return _passed_over([path for here in found.values() for path in here.passed])


def _subfolders(folder: Path) -> set[str]:
    """Return the names of the subfolders that are not hidden."""
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder; give one that has one subfolder a class")
    return {entry.name for entry in folder.iterdir() if entry.is_dir() and not _hidden(entry)}


def _hidden(path: Path) -> bool:
    """Return whether the name begins with a dot, as of the files that macOS puts beside others."""
    return path.name.startswith(".")


def _found(folder: Path, classes: list[str]) -> Found:
    """Return the pictures of a folder, and what else is there."""
    found = Found([], sorted(entry for entry in folder.iterdir() if entry.name not in classes))
    for label, name in enumerate(classes):
        if not (folder / name).is_dir():
            continue  # a test set may lack a class
        entries = sorted((folder / name).iterdir())
        here = [path for path in entries if _is_picture(path)]
        if not here:
            raise UserError(
                f"{folder / name} has no {', '.join(SUFFIXES)} files; remove the folder or fill it"
            )
        found.pictures.extend((path, label) for path in here)
        found.passed.extend(path for path in entries if not _is_picture(path))
    return found


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not _hidden(path) and path.is_file()


def _passed_over(paths: list[Path]) -> str:
    """Return a line on the files and folders that were passed over, "" if there are none."""
    if not paths:
        return ""
    hidden = sum(map(_hidden, paths))
    named = ", ".join(shown(str(path)) for path in sorted(paths, key=_hidden)[:SHOWN])
    more = ", …" if len(paths) > SHOWN else ""
    return (
        f"passed over {hidden} hidden and {len(paths) - hidden} other files and folders that are "
        f"no {', '.join(SUFFIXES)} files of a class: {named}{more}"
    )
