"""The parts of a dataset, and the way that the ranks of a node fill their one copy of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import DTypeLike

    from localavg.parallel.fleet import Fleet

Fill: TypeAlias = Callable[[str, np.ndarray, np.ndarray, int, int], None]
"""fill(split, x, y, start, stop) writes rows start … stop − 1 of x and y, which stand for all"""
COPY = "the node's one copy of the data"


@dataclass(frozen=True)
class Split:
    """Examples, one a row, shared by the ranks of a node: read only."""

    x: Any
    """the n examples

    Kind "features": an array float32 [n, d]; "images": uint8 [n, H, W, C]; "jpeg": a `jpegs.Jpegs`,
    n packed pictures.
    """
    y: np.ndarray
    """labels [n]: −1 or +1, float32, for "features"; else 0 … classes − 1, int64"""


@dataclass(frozen=True)
class Augment:
    """The random changes under which the papers train on a set of images."""

    pad: int = 0
    """pixels of zeros on every side before a crop of the image's own size at a random place

    The papers use 4 for CIFAR-10.
    """
    flip: bool = False
    """whether left and right are swapped with probability 1/2"""
    resized: bool = False
    """whether a random crop is resized to `Dataset.shape`

    Its place, area (0.08 … 1 of the picture) and aspect (3/4 … 4/3) are random.
    """

    def __bool__(self) -> bool:
        return bool(self.pad or self.flip or self.resized)


@dataclass(frozen=True)
class Dataset:
    """A dataset as every rank of a node sees it."""

    name: str
    """name, as recorded in the run file"""
    kind: str
    """kind of a row of x: "features", "images" or "jpeg" """
    train: Split
    """the examples to learn from"""
    test: Split | None
    """held-out examples, if the set has any"""
    classes: tuple[float, ...] | tuple[str, ...]
    """features: the labels as they were, (that of −1, that of +1); else the name of each class"""
    shuffled: bool
    """whether the training rows are in random order, so that consecutive ones are a fair sample"""
    shape: tuple[int, int, int] | None = None
    """(H, W, C) of an image as a network sees it; None for features"""
    mean: tuple[float, ...] = ()
    """mean of each channel, in units of the uint8 values: networks see (x − mean) / std"""
    std: tuple[float, ...] = ()
    """standard deviation of each channel, in units of the uint8 values"""
    augment: Augment = Augment()
    """random changes of its training images in the papers"""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """`shape` of a set of images; TypeError for features."""
        if self.shape is None:
            raise TypeError(f"{self.name} has no images")
        return self.shape


def filled(
    fleet: Fleet,
    shape: tuple[int, ...],
    types: tuple[DTypeLike, DTypeLike],
    block: int,
    name: str,
    fill: Fill,
) -> Split:
    """Make Split `name`, one copy a node, with x of `shape` [n, …] and y [n]. Collective.

    types: those of x and y. Each rank of the node fills its rows by `fill`; the rows are cut at
    multiples of `block`, and start = stop on a rank that has none.
    """
    n = shape[0]
    x = fleet.node_array(shape, types[0], what=COPY)
    y = fleet.node_array((n,), types[1], what=COPY)
    blocks, rank, ranks = -(-n // block), fleet.node.rank, fleet.node.size
    start, stop = (min(n, blocks * r // ranks * block) for r in (rank, rank + 1))
    fleet.together(lambda: fill(name, x, y, start, stop))
    fleet.node.Barrier()
    return Split(x, y)
