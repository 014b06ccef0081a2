"""Datasets: prepared files and named sets, held once per node."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from localavg.config import UserError


@dataclass(frozen=True)
class Split:
    """Examples, one a row, shared by the ranks of a node: read only."""

    x: np.ndarray
    """features [n, d] float32"""
    y: np.ndarray
    """labels [n] float32, −1 or +1"""


@dataclass(frozen=True)
class Dataset:
    """A dataset as every rank of a node sees it."""

    name: str
    """name, as recorded in the run file"""
    kind: str
    """what a row of x is: "features" """
    train: Split
    """the examples to learn from"""
    test: Split | None
    """held-out examples, if the set has any"""
    classes: tuple[float, float]
    """the labels as they were, (that of −1, that of +1)"""
    shuffled: bool
    """the training rows are in random order, so that consecutive rows are a fair sample"""


def load(spec: str | Path, fleet: Any) -> Dataset:
    """Return the Dataset `spec` names: a prepared file, or a named set (`NAMED`). Collective over `fleet`.

    The arrays are `fleet.node_array`s, one copy a node, each rank filling its part of the rows; nothing else as large
    is allocated. Every rank raises the same UserError if any rank cannot read its part.
    """
    name, colon, size = str(spec).partition(":")
    if name in NAMED:
        return NAMED[name](size if colon else None, fleet)
    if Path(spec).suffix not in (".h5", ".hdf5") and not Path(spec).is_file():
        named = ", ".join(NAMED_FORMS)
        raise UserError(f"--data {spec} is no file and no named set; give a prepared .h5 file or one of: {named}")
    return _load_prepared(str(spec), fleet)


def _load_prepared(path: str, fleet: Any) -> Dataset:
    from localavg.datasets import prepared

    header = fleet.together(lambda: prepared.header(path))
    if header.kind != "features":
        raise UserError(f"{path} is of kind {header.kind!r}; this version reads 'features'")

    def fill(split, x, y, start, stop):
        prepared.read(path, split, x, y, start, stop)

    splits = {name: _filled(fleet, *shape, 1, name, fill) for name, shape in header.shapes.items()}
    return Dataset(header.name, header.kind, splits["train"], splits.get("test"), header.classes, header.shuffled)


def _load_epsilon_like(size: str | None, fleet: Any) -> Dataset:
    from localavg.datasets import epsilon_like

    rows, features = epsilon_like.ROWS, epsilon_like.FEATURES
    if size is not None:
        match = re.fullmatch(r"(\d+)x(\d+)", size)
        rows, features = (int(number) for number in match.groups()) if match else (0, 0)
        if not (rows and features):
            raise UserError(f"--data epsilon-like:{size} must read epsilon-like:ROWSxFEATURES, as in 20000x200")
    teacher = epsilon_like.teacher(features)  # [d]

    def fill(split, x, y, start, stop):
        epsilon_like.generate(x[start:stop], y[start:stop], start, teacher=teacher, split=split)

    splits = {name: _filled(fleet, n, features, epsilon_like.BLOCK, name, fill)
              for name, n in epsilon_like.sizes(rows).items()}
    name = f"epsilon-like:{rows}x{features}"
    return Dataset(name, "features", splits["train"], splits.get("test"), (-1.0, 1.0), shuffled=True)


def _filled(fleet: Any, n: int, features: int, block: int, name: str, fill: Callable) -> Split:
    """Return Split `name`, each rank of the node filling its rows, cut at multiples of `block`, of x [n, d], y [n]."""
    x = fleet.node_array((n, features), np.float32)  # [n, d]
    y = fleet.node_array((n,), np.float32)  # [n]
    blocks, rank, ranks = -(-n // block), fleet.node.rank, fleet.node.size
    start, stop = (min(n, blocks * r // ranks * block) for r in (rank, rank + 1))
    fleet.together(lambda: fill(name, x, y, start, stop))
    fleet.node.Barrier()
    return Split(x, y)


NAMED = {"epsilon-like": _load_epsilon_like}
"""Sets that need no file: name → loader(size after the colon or None, fleet)."""

NAMED_FORMS = ["epsilon-like[:ROWSxFEATURES]"]
"""How the names are written, for messages and help."""
