"""The flat weight matrix: one float32 row a learner, the named tensors of a model as views into it.

An average then needs no packing, no copying back and no call per tensor.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np

from localavg.interfaces import Array
from localavg.parallel.aligned import host_zeros


class Places:
    """Where the tensors of a model lie in a row: one after the other, each at a multiple of align.

    shapes: the tensors in their order, parameters first; a statistic that is averaged but not
    trained comes after them. parameters: how many of the tensors are trained (None: all). align: in
    floats. The gaps hold zeros, and every update and average leaves them zero.

    segments: the place of each tensor. d: the length of a row, a multiple of align. d_trained: the
    columns of the parameters, gaps included. size: the numbers in a row, without gaps.
    """

    def __init__(
        self, shapes: Mapping[str, tuple[int, ...]], parameters: int | None = None, align: int = 1
    ) -> None:
        self.shapes = dict(shapes)
        self.segments: dict[str, slice] = {}
        starts = [0]
        for name, shape in self.shapes.items():
            end = starts[-1] + math.prod(shape)
            self.segments[name] = slice(starts[-1], end)
            starts.append(-(-end // align) * align)
        self.d, self.d_trained = starts[-1], starts[-1 if parameters is None else parameters]
        self.size = sum(map(math.prod, self.shapes.values()))

    def gaps(self) -> np.ndarray:
        """Return the columns that no tensor has."""
        free = np.ones(self.d, bool)
        for segment in self._cuts():
            free[segment] = False
        return np.flatnonzero(free)

    def packed(self, row: np.ndarray) -> np.ndarray:
        """Return the numbers [size] of a row [d] without the gaps."""
        return row if self.size == self.d else np.concatenate([row[s] for s in self._cuts()])

    def unpacked(self, numbers: np.ndarray) -> np.ndarray:
        """Return the row [d] of these numbers [size], zero in the gaps."""
        row = np.zeros(self.d, numbers.dtype)
        first = 0
        for segment in self._cuts():
            n = segment.stop - segment.start
            row[segment] = numbers[first : first + n]
            first += n
        return row

    def _cuts(self) -> list[slice]:
        return list(self.segments.values())


class Flat(Places):
    """`w` [L, d], the weights of this rank's L learners, in the places of `Places`.

    `allocate(shape)` returns the float32 memory; the default is ordinary memory, transports give a
    shared window or a device array.
    """

    def __init__(
        self,
        shapes: Mapping[str, tuple[int, ...]],
        L: int,
        parameters: int | None = None,
        allocate: Callable[[tuple[int, int]], Array] | None = None,
        align: int = 1,
    ) -> None:
        super().__init__(shapes, parameters, align)
        self.w = (allocate or host_zeros)((L, self.d))  # [L, d]

    def view(self, l: int, name: str) -> Array:
        """Return tensor `name` of local learner l, a view into its row."""
        return self.w[l, self.segments[name]].reshape(self.shapes[name])

    def views(self, l: int) -> dict[str, Array]:
        """Return all tensors of local learner l by name."""
        return {name: self.view(l, name) for name in self.shapes}
