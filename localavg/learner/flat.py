"""The flat weight matrix: one float32 row a learner, the named tensors of a model as views into it.

An average then needs no packing, no copying back and no call per tensor.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np

from localavg.interfaces import Array


def layout(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, slice]:
    """Return the place of each named tensor in a row: one after the other."""
    ends = np.cumsum([0, *(math.prod(shape) for shape in shapes.values())]).tolist()
    return {name: slice(a, b) for name, a, b in zip(shapes, ends, ends[1:], strict=False)}


class Flat:
    """`w` [L, d], the weights of this rank's L learners, and the place of each tensor in a row.

    shapes: the tensors in the order they are laid out, parameters first; a statistic that is
    averaged but not trained comes after them. parameters: how many of the tensors are trained
    (None: all). `allocate(shape)` returns the float32 memory; the default is ordinary memory,
    transports give a shared window or a device array.
    """

    def __init__(
        self,
        shapes: Mapping[str, tuple[int, ...]],
        L: int,
        parameters: int | None = None,
        allocate: Callable[[tuple[int, int]], Array] | None = None,
    ) -> None:
        self.shapes = dict(shapes)
        self.segments = layout(self.shapes)
        ends = [0, *(segment.stop for segment in self.segments.values())]
        self.d = ends[-1]
        self.d_trained = ends[-1 if parameters is None else parameters]
        shape = L, self.d
        self.w = np.zeros(shape, np.float32) if allocate is None else allocate(shape)  # [L, d]

    def view(self, l: int, name: str) -> Array:
        """Return tensor `name` of local learner l, a view into its row."""
        return self.w[l, self.segments[name]].reshape(self.shapes[name])

    def views(self, l: int) -> dict[str, Array]:
        """Return all tensors of local learner l by name."""
        return {name: self.view(l, name) for name in self.shapes}
