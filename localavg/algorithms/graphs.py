"""The graphs of gossip: with whom a learner mixes at the k-th gossip, and with which weights.

A graph is a function k → W [P, P], k = 0, 1, …: at the k-th gossip w_j ← Σ_i W_ji w_i.

    ring            j − 1, j, j + 1, a third each                                          [1]
    torus           the four neighbours on the most square torus, and j: a fifth each      [1]
    exp             j and j − 2^i, i = 0, …, L − 1, equal weights, L = ⌊log₂(P − 1)⌋ + 1     [2]
    one-peer-exp    w_j ← ½w_j + ½w_i, i = j − 2^(k mod L)                                 [2]
    matching        I − α Σ L_i over the matchings of a base graph that are on             [3]
    push            every learner keeps a half, and sends a half to one learner at random  [4]

All indices are modulo P. The rows and the columns of W sum to 1, but those of `push` have only such
columns, so that Σ_j w_j stays. On the diagonal of `matching`, 1 − α · degree may be below 0.

[1] Lian et al.: Can Decentralized Algorithms Outperform Centralized Algorithms? A Case Study for
Decentralized Parallel Stochastic Gradient Descent. NeurIPS 2017, arXiv 1705.09056.
[2] Assran et al.: Stochastic Gradient Push for Distributed Deep Learning. ICML 2019, arXiv
1811.10792.
[3] Wang et al.: MATCHA: Speeding Up Decentralized SGD via Matching Decomposition Sampling. 2019,
arXiv 1905.09435; `matchings.py`.
[4] Kempe, Dobra, Gehrke: Gossip-Based Computation of Aggregate Information. FOCS 2003: Push-Sum.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from localavg.errors import UserError
from localavg.streams import Stream, generator

Graph = Callable[[int], np.ndarray]
"""k → W [P, P]"""
GRID = 2.0**-24
"""weights are multiples of it, which float32 holds"""


def exact(W: np.ndarray) -> np.ndarray:
    """Return W [P, P] with weights that float32 holds, and columns that sum to 1 exactly.

    Without this 1/3 + 1/3 + 1/3 is above 1 in float32, and models grow at every gossip.
    """
    W = np.round(W / GRID) * GRID
    np.fill_diagonal(W, 0)
    np.fill_diagonal(W, 1 - W.sum(axis=0))
    return W


def from_neighbours(neighbours: Sequence[Sequence[int]]) -> np.ndarray:
    """Return W [P, P] of a graph: 1/(1 + largest degree) for each edge, the rest for the learner.

    neighbours: those of each learner.
    """
    weight = 1 / (1 + max(map(len, neighbours)))
    W = np.zeros((len(neighbours), len(neighbours)))
    for j, others in enumerate(neighbours):
        W[j, list(others)] = weight
    return exact(W)


@dataclass(frozen=True)
class Cycle:
    """Some W [P, P] in turn."""

    matrices: tuple[np.ndarray, ...]

    def __call__(self, k: int) -> np.ndarray:
        return self.matrices[k % len(self.matrices)]


def ring(P: int) -> Cycle:
    """Return the ring of P learners."""
    return Cycle((from_neighbours([{(j - 1) % P, (j + 1) % P} - {j} for j in range(P)]),))  # type: ignore[misc]


def torus(P: int) -> Cycle:
    """Return the most square torus of P learners: row after row, all rows are equally long.

    Raises UserError if it would be a ring.
    """
    rows, columns = sides(P)
    return Cycle((from_neighbours([_around(j, rows, columns) for j in range(P)]),))


def sides(P: int) -> tuple[int, int]:
    """Return the sides of the most square torus of P learners, the shorter one first."""
    shorter = max(a for a in range(1, math.isqrt(P) + 1) if P % a == 0)
    if shorter == 1 and P > 1:
        raise UserError(
            f"`graph = torus` with {P} learners: {P} is a prime, so the torus is a ring; use "
            "`graph = ring`, or a number of learners that is a product"
        )
    return shorter, P // shorter


def _around(j: int, rows: int, columns: int) -> list[int]:
    """Return the neighbours of learner j; where a side is 2, two of them are the same learner."""
    row, column = divmod(j, columns)
    vertical = {(row + step) % rows * columns + column for step in (-1, 1)}
    level = {row * columns + (column + step) % columns for step in (-1, 1)}
    return sorted((vertical | level) - {j})


def jumps(P: int) -> list[int]:
    """Return 2^i, i = 0, …, ⌊log₂(P − 1)⌋: the powers of 2 below P."""
    return [1 << i for i in range((P - 1).bit_length())]


def exp(P: int) -> Cycle:
    """Return the directed exponential graph of P learners."""
    return Cycle((from_neighbours([[(j - jump) % P for jump in jumps(P)] for j in range(P)]),))


def one_peer_exp(P: int) -> Cycle:
    """Return the directed exponential graph of P learners, one jump of it at a time.

    After as many gossips as there are jumps all learners have the exact mean if P is a power of 2.
    """
    turns = [from_neighbours([[(j - jump) % P] for j in range(P)]) for jump in jumps(P)]
    return Cycle(tuple(turns) or (np.eye(1),))


@dataclass(frozen=True)
class Push:
    """Every learner keeps a half and sends a half to another one, drawn by (seed, k)."""

    P: int
    seed: int

    def __call__(self, k: int) -> np.ndarray:
        P, everyone = self.P, np.arange(self.P)
        if P == 1:
            return np.eye(1)
        draws = generator(self.seed, 0, k, Stream.GOSSIP)
        receivers = (everyone + 1 + draws.integers(P - 1, size=P)) % P  # [P], nobody itself
        W = np.eye(P) / 2
        W[receivers, everyone] += 0.5
        return W


GRAPHS: dict[str, Callable[[int], Cycle]] = {
    "ring": ring,
    "torus": torus,
    "exp": exp,
    "one-peer-exp": one_peer_exp,
}
"""P → the graph, of those that draw nothing"""


def rho(W: np.ndarray) -> float:
    """Return ‖W − J‖, J = 1/P: the factor by which a gossip shrinks the distance to the mean."""
    return float(np.linalg.norm(W - 1 / len(W), 2))


def gap(W: np.ndarray) -> float:
    """Return the spectral gap of W [P, P], 1 − |λ₂|."""
    return 1 - float(np.abs(np.linalg.eigvals(W - 1 / len(W))).max())
