"""What a dataset is, and how the ranks of a node fill their one copy of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Split:
    """Examples, one a row, shared by the ranks of a node: read only."""

    x: Any
    """"features": float32 [n, d]; "images": uint8 [n, H, W, C]; "jpeg": a `jpegs.Jpegs`, n packed
    pictures
    """
    y: np.ndarray
    """labels [n]: −1 or +1, float32, for "features"; else 0 … classes − 1, int64"""


@dataclass(frozen=True)
class Augment:
    """The random changes under which the papers train on a set of images."""

    pad: int = 0
    """zeros put on every side before a crop of the image's own size at a random place, in pixels
    (CIFAR-10: 4)
    """
    flip: bool = False
    """left and right swapped with probability 1/2"""
    resized: bool = False
    """a crop of random place, area (0.08 … 1 of the picture) and aspect (3/4 … 4/3), resized to
    `Dataset.shape`
    """

    def __bool__(self) -> bool:
        return bool(self.pad or self.flip or self.resized)


@dataclass(frozen=True)
class Dataset:
    """A dataset as every rank of a node sees it."""

    name: str
    """name, as recorded in the run file"""
    kind: str
    """what a row of x is: "features", "images" or "jpeg" """
    train: Split
    """the examples to learn from"""
    test: Split | None
    """held-out examples, if the set has any"""
    classes: tuple[float, float] | tuple[str, ...]
    """features: the labels as they were, (that of −1, that of +1); else the name of each class"""
    shuffled: bool
    """the training rows are in random order, so that consecutive rows are a fair sample"""
    shape: tuple[int, int, int] | None = None
    """(H, W, C) of what a network sees; None for features"""
    mean: tuple[float, ...] = ()
    """of each channel, in units of the uint8 values: networks see (x − mean) / std"""
    std: tuple[float, ...] = ()
    """of each channel, in units of the uint8 values"""
    augment: Augment = Augment()
    """how the papers augment its training images"""


def filled(
    fleet: Any,
    shape: tuple[int, ...],
    types: tuple[Any, Any],
    block: int,
    name: str,
    fill: Callable,
) -> Split:
    """Return Split `name` with x of `shape` [n, …] and y [n] of two types, one copy a node.
    Collective over `fleet`.

    Each rank of the node fills its rows, cut at multiples of `block`, by fill(name, x, y, start,
    stop), where x and y stand for all rows; start = stop on a rank that has none.
    """
    n = shape[0]
    x = fleet.node_array(shape, types[0])
    y = fleet.node_array((n,), types[1])
    blocks, rank, ranks = -(-n // block), fleet.node.rank, fleet.node.size
    start, stop = (min(n, blocks * r // ranks * block) for r in (rank, rank + 1))
    fleet.together(lambda: fill(name, x, y, start, stop))
    fleet.node.Barrier()
    return Split(x, y)
