"""What is before and after a sum that crosses nodes in code: changes added up, the mean written."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from localavg.interfaces import Rows, Step
from localavg.parallel.transport.lanes import CHUNK, Weights, counted


def add_deltas(
    rows: Sequence[np.ndarray],
    base: np.ndarray,
    total: np.ndarray,
    scratch: np.ndarray,
    weights: Weights | None,
) -> None:
    """Add Σ_j (row_j − base) to total [m], in the order of the rows.

    With weights add Σ_j (n_j / Σ n) (row_j − base): what codes lose of it, the next mean can add,
    whose Σ n may be another. `divisor` is what is left to divide by.
    """
    for row, n in zip(rows, weights.of_rows if weights else [1] * len(rows), strict=True):
        if n:
            delta = np.subtract(row, base, scratch[: len(base)])
            if weights is not None:
                delta *= n / weights.total
            total += delta


def divisor(P: int, weights: Weights | None) -> int:
    """Return what the sum of `add_deltas` over the nodes is to be divided by."""
    return P if weights is None else 1


def land_(
    rows: np.ndarray,
    columns: slice,
    base: np.ndarray | None,
    mean: np.ndarray,
    spread: Callable[[Rows, np.ndarray], float] | None,
    step: Step | None,
    weights: Weights | None,
) -> float:
    """Write the mean [m], or what the step makes of it, to rows [l, m] and, if given, to base [m].

    Return Σ ‖w̄ − w_j‖² of the rows that count where `spread` computes it, else NaN.
    """
    found = np.nan if spread is None else 0.0
    for i in range(0, len(mean), CHUNK):
        part = slice(i, i + CHUNK)
        piece, some = mean[part], rows[:, part]
        if spread is not None:
            found += spread(counted(list(some), weights), piece)
        where = slice(columns.start + i, columns.start + i + len(piece))
        new = piece if step is None else step(piece, where)
        some[...] = new
        if base is not None:
            base[part] = new
    return found
