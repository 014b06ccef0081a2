"""Evaluation of one model over the data. The ranks share the rows.

The results do not depend on the number of ranks. A split is cut into parts in a way that does not
depend on the ranks, and the sums over the parts are added up in the order of the parts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from mpi4py import MPI

from localavg.datasets import Split
from localavg.interfaces import UNTIMED, Array, Laps, Problem
from localavg.parallel.device import on_host
from localavg.parallel.fleet import Fleet

X = TypeVar("X")
PIECES = 8  # of a learner's part of a split, where only some examples are evaluated
PARTS = 16  # of a split, where it is not cut by learners


@dataclass(frozen=True)
class Shares:
    """How the rows of a split are shared: in `parts` parts, of which this rank takes `mine`.

    pieces: the number of pieces of a part, if only some rows are evaluated; the first rows of each
    piece are taken. in_order: whether the gradients are added up in the order of the parts, too.
    All parts' gradients travel then; else only each rank's sum does, and MPI decides the order.
    """

    parts: int
    mine: Sequence[int]
    pieces: int = 1
    in_order: bool = False

    def rows(self, n: int, examples: int | None) -> list[list[tuple[int, int]]]:
        """Return the pieces lo … hi − 1 of each part of n rows; None: all rows."""
        pieces = 1 if examples is None else self.pieces
        N = self.parts * pieces
        most = n if examples is None else max(1, examples // N)  # rows of a piece
        cut = [(n * i // N, min(n * (i + 1) // N, n * i // N + most)) for i in range(N)]
        return [cut[k * pieces : (k + 1) * pieces] for k in range(self.parts)]


def by_learner(fleet: Fleet) -> Shares:
    """Give every learner a part, on its rank: the results are the same for any layout."""
    return Shares(fleet.P, fleet.learners, PIECES)


def by_rank(world: MPI.Intracomm, ranks: int) -> Shares:
    """Give the first `ranks` ranks PARTS parts in turn; the results are the same for any number."""
    mine = range(world.rank, PARTS, ranks) if world.rank < ranks else range(0)
    return Shares(PARTS, mine, in_order=True)


class Evaluator:
    """Evaluates models w [d] of a problem. Its methods are collective over `world`.

    examples: about how many rows of each split to evaluate, spread over the split (None: all).
    grad_norm: whether to compute ‖∇F‖².
    """

    def __init__(
        self,
        problem: Problem,
        world: MPI.Intracomm,
        shares: Shares,
        *,
        examples: int | None = None,
        grad_norm: bool = False,
    ) -> None:
        self.problem, self.world, self.shares = problem, world, shares
        self.examples, self.grad_norm = examples, grad_norm

    def row(self, w: Array) -> dict[str, float]:
        """Calibrate the model w [d] in place, and return the columns of /eval for it."""
        problem, data, examples = self.problem, self.problem.data, self.examples
        if self.shares.mine:
            problem.calibrate_(w)
        ridge = problem.regulariser(w)
        train_loss, train_accuracy, grad = self._means(w, data.train, examples, self.grad_norm)
        test_loss = test_accuracy = math.nan
        if data.test is not None:
            test_loss, test_accuracy, _ = self._means(w, data.test, examples)
        if grad is not None:
            grad += problem.l2 * on_host(w[: len(grad)])
        return {
            "train_loss": train_loss + ridge,
            "train_accuracy": train_accuracy,
            "test_loss": test_loss + ridge,
            "test_accuracy": test_accuracy,
            "grad_norm_sq": math.nan if grad is None else float(grad @ grad),
        }

    def objective(self, w: Array, laps: Laps = UNTIMED) -> float:
        """Return F at w [d] over all training data. laps: the clock of its parts."""
        F = self._means(w, self.problem.data.train, laps=laps)[0]
        return F + self.problem.regulariser(w)

    def _means(
        self,
        w: Array,
        split: Split,
        examples: int | None = None,
        gradient: bool = False,
        laps: Laps = UNTIMED,
    ) -> tuple[float, float, Array | None]:
        """Return the mean loss without regulariser, the accuracy and the mean gradient [d]."""
        shares, sums = self.shares, self.problem.sums
        rows = shares.rows(len(split.y), examples)
        mine = {k: [sums(w, split, lo, hi, gradient) for lo, hi in rows[k]] for k in shares.mine}
        n = sum(hi - lo for pieces in rows for lo, hi in pieces)
        laps.computed()
        found = self._in_order({k: [part[:2] for part in parts] for k, parts in mine.items()})
        laps.met()
        loss, right = sum(part[0] for part in found) / n, sum(part[1] for part in found) / n
        if not gradient:
            return loss, right, None
        grads = {k: [part[2] for part in parts if part[2] is not None] for k, parts in mine.items()}
        if shares.in_order:
            return loss, right, self._sum_in_order(grads) / n
        grad = np.asarray(on_host(sum(g for parts in grads.values() for g in parts)))  # [d] float64
        self.world.Allreduce(MPI.IN_PLACE, grad)
        return loss, right, grad / n

    def _sum_in_order(self, mine: dict[int, list[Array]]) -> Array:
        """Return the sum of all ranks' gradients [d] in the order of the parts, one at a time."""
        here = {k: [np.ascontiguousarray(on_host(g)) for g in grads] for k, grads in mine.items()}
        kinds = {k: [(len(g), g.dtype.str) for g in grads] for k, grads in here.items()}
        owner = {
            k: (rank, kind)
            for rank, each in enumerate(self.world.allgather(kinds))
            for k, kind in each.items()
        }
        total = np.zeros((), np.float32)  # the type of the sum is that of the gradients
        for k in range(self.shares.parts):
            rank, kind = owner[k]
            for i, (d, dtype) in enumerate(kind):
                grad = here[k][i] if rank == self.world.rank else np.empty(d, dtype)
                self.world.Bcast(grad, rank)
                total = total + grad
        return total

    def _in_order(self, mine: dict[int, list[X]]) -> list[X]:
        """Return the values of all ranks, in the order of the parts."""
        parts = {k: values for each in self.world.allgather(mine) for k, values in each.items()}
        return [value for k in range(self.shares.parts) for value in parts[k]]
