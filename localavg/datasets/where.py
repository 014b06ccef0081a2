"""Where a prepared file lies, and how many rows it has to train on. No MPI."""

from __future__ import annotations

import os
from pathlib import Path

STAGED = "LOCALAVG_DATA"
"""environment variable with the folder of a node's own copies"""
SUFFIXES = (".h5", ".hdf5")
CHECKOUT = Path(__file__).resolve().parents[2]


def places(spec: str | Path) -> list[Path]:
    """Return the paths at which a prepared file is looked for, the first one first.

    A name without a folder, such as cifar10.h5, is looked for in the folder that LOCALAVG_DATA
    names, where a job has put a copy of it, and in the current folder; then as
    data/cifar10/cifar10.h5, where the Makefile writes it, here and in the checkout.
    """
    path = Path(spec)
    if path.suffix not in SUFFIXES or path.parent != Path():
        return [path]
    made = Path("data", path.stem, path.name)
    staged = [Path(folder, path)] if (folder := os.environ.get(STAGED)) else []
    return [*staged, path, made, CHECKOUT / made]


def found(spec: str | Path) -> Path | None:
    """Return the first of these paths that is a file, None if there is none."""
    return next((path for path in places(spec) if path.is_file()), None)


def rows(spec: str) -> int | None:
    """Return the rows to train on of a prepared file or a named set; None if they are not known."""
    name, _, size = spec.partition(":")
    if name == "epsilon-like":
        from localavg.datasets import epsilon_like

        size = size.partition("x")[0] or str(epsilon_like.ROWS)
        return epsilon_like.sizes(int(size))["train"] if size.isdecimal() else None
    if name == "cifar10-like":
        from localavg.datasets import cifar10_like

        size = size or str(cifar10_like.ROWS)
        return cifar10_like.sizes(int(size))["train"] if size.isdecimal() else None
    if name == "digits":
        from localavg.datasets import digits

        return digits.SIZES["train"]
    path = found("fashion-mnist.h5" if name == "fashion-mnist" else spec)
    return None if path is None else _rows_of(path)


def _rows_of(path: Path) -> int | None:
    import h5py

    try:
        with h5py.File(path, "r") as file:
            return len(file["train/y"])
    except (OSError, KeyError):
        return None
