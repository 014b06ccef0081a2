"""What a matrix takes as two factors of low rank; `transport/low_rank.py` makes them.

Arithmetic alone: no MPI, no arrays.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from localavg.errors import UserError

Tensor = tuple[slice, tuple[int, ...]]
"""the columns of a tensor in a row, and its shape"""


def sides(shape: tuple[int, ...]) -> tuple[int, int]:
    """Return the sides m, k of a tensor as a matrix: shape[0] × rest; a vector has m = 1."""
    return (shape[0], math.prod(shape[1:])) if len(shape) > 1 else (1, math.prod(shape))


def coded(shape: tuple[int, ...], r: int) -> bool:
    """Return whether a product of rank r is smaller than the tensor."""
    m, k = sides(shape)
    return r * (m + k) < m * k


def nbytes(tensors: Sequence[Tensor], r: int) -> int:
    """Return the bytes of these tensors: both factors of each, or itself if it is not coded."""
    shapes = [(*sides(shape), coded(shape, r)) for _, shape in tensors]
    return 4 * sum(r * (m + k) if small else m * k for m, k, small in shapes)


def check_rank(tensors: Sequence[Tensor], r: int) -> None:
    """Raise UserError if no tensor would be sent as a product of rank r."""
    matrices = [sides(shape) for _, shape in tensors if min(sides(shape)) > 1]
    if not matrices:
        raise UserError(
            f"`wire = lowrank:{r}`: the weights have no matrix, so nothing would be coded; use "
            "int8 or bf16"
        )
    if not any(coded(shape, r) for _, shape in tensors):
        m, k = max(matrices, key=lambda sides: sides[0] * sides[1] / sum(sides))
        most = (m * k - 1) // (m + k)
        use = f"use at most lowrank:{most}" if most else "use int8 or bf16"
        raise UserError(
            f"`wire = lowrank:{r}`: no matrix is larger than its two factors of rank {r}; the "
            f"best for it is {m} × {k}; {use}"
        )
