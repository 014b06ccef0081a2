"""MATCHA: gossip over some matchings of a base graph, drawn anew at every gossip.

Jianyu Wang, Anit Kumar Sahu, Zhouyi Yang, Gauri Joshi, Soummya Kar: MATCHA: Speeding Up
Decentralized SGD via Matching Decomposition Sampling. 2019, arXiv 1905.09435.

    cut the base graph into M matchings, whose Laplacians are L_i        no two edges meet
    find p_i with Σ_i p_i ≤ M · budget                                   all equal, or λ₂ maximal
    find α that minimises ρ, the norm of E[WᵀW] − J                      J = 1/P
    at the k-th gossip: each matching is on with probability p_i
                        W ← I − α Σ_on L_i

λ₂ is the second smallest eigenvalue of Σ_i p_i L_i, L̄ below. As L_i² = 2L_i,
E[WᵀW] = I − 2αL̄ + α²(L̄² + 2L̃) with L̃ = Σ_i p_i(1 − p_i)L_i.

The matchings of a torus are those of its rings, which may be one more than the paper's M.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from localavg.algorithms.graphs import exact, sides
from localavg.errors import bad, check_choice
from localavg.streams import Stream, generator

Edges = list[tuple[int, int]]
BASES = ("ring", "torus", "complete")
PROBABILITIES = ("optimal", "equal")
MOST_CUTS, CLOSE = 500, 1e-7
"""linear programs in the search of p, and the distance to the largest λ₂ at which it ends"""
LEAST = 1e-6
"""the smallest λ₂ of a budget, as a part of that of all links"""
KEPT = 64
"""matrices of combinations of matchings that are kept"""


def cut(base: str, P: int) -> list[Edges]:
    """Return the matchings of a base graph of P learners, none empty.

    Raises UserError for a torus that is a ring.
    """
    if base == "complete":
        return _tournament(P)
    if base == "ring":
        return _around(list(range(P)))
    rows, columns = sides(P)
    levels = [_around([row * columns + c for c in range(columns)]) for row in range(rows)]
    uprights = [_around([r * columns + column for r in range(rows)]) for column in range(columns)]
    turns = [turn for rings in (levels, uprights) for turn in zip(*rings, strict=True)]
    return [[edge for part in turn for edge in part] for turn in turns]


def _around(ring: list[int]) -> list[Edges]:
    """Return the matchings of a ring of learners: every other edge; a third for an odd length."""
    n = len(ring)
    edges = [(ring[i], ring[(i + 1) % n]) for i in range(n if n > 2 else n - 1)]
    even = len(edges) // 2 * 2
    return [part for part in (edges[0:even:2], edges[1:even:2], edges[even:]) if part]


def _tournament(P: int) -> list[Edges]:
    """Return the rounds in which everyone of P meets everyone else once, by the circle method."""
    n = P - 1 + P % 2  # odd; one more sits in the middle
    rounds = [
        [(i, j) for i in range(n) for j in range(i + 1, n) if (i + j) % n == turn]
        + ([(i, n) for i in range(n) if 2 * i % n == turn] if P > n else [])
        for turn in range(n)
    ]
    return [edges for edges in rounds if edges]


def laplacian(edges: Edges, P: int) -> np.ndarray:
    """Return the Laplacian [P, P] of a graph."""
    L = np.zeros((P, P))
    for i, j in edges:
        L[[i, j], [i, j]] += 1
        L[[i, j], [j, i]] -= 1
    return L


def optimal(Ls: np.ndarray, total: float) -> np.ndarray:
    """Return p [M] in [0, 1], Σ p ≤ total, that maximises λ₂(Σ_i p_i L_i); Ls [M, P, P].

    λ₂ is the minimum of Σ_i p_i vᵀL_i v over unit vectors v of mean 0: a linear program with one
    condition for each v. The worst v of the last solution is added until no condition is broken.
    """
    from scipy.optimize import linprog

    M = len(Ls)
    p, bound, conditions = [total / M] * M, np.inf, [[0.0] + [1.0] * M]  # Σ p ≤ total
    for _ in range(MOST_CUTS):
        values, vectors = np.linalg.eigh(np.tensordot(p, Ls, 1))
        if bound - values[1] < CLOSE:
            break
        for v in vectors[:, 1 : 1 + M].T:  # the worst, and the next worst: fewer rounds
            conditions.append([1.0, *(-(v @ L @ v) for L in Ls)])  # λ ≤ Σ p_i vᵀL_i v
        limits = [total] + [0.0] * (len(conditions) - 1)
        found = linprog([-1.0] + [0.0] * M, conditions, limits, bounds=[(0, None)] + [(0, 1)] * M)
        bound, *p = np.asarray(found.x).tolist()
    return np.array(p)


def contraction(Ls: np.ndarray, p: np.ndarray, alpha: float) -> float:
    """Return ρ = ‖E[WᵀW] − J‖, by which the squared distance to the mean shrinks in a gossip."""
    P = Ls.shape[1]
    mean, spread = np.tensordot(p, Ls, 1), np.tensordot(p * (1 - p), Ls, 1)  # L̄, L̃
    second = np.eye(P) - 2 * alpha * mean + alpha**2 * (mean @ mean + 2 * spread)
    return float(np.linalg.eigvalsh(second - 1 / P)[-1])  # all of its eigenvalues are ≥ 0


def connectivity(Ls: np.ndarray, p: np.ndarray) -> float:
    """Return λ₂ of Σ_i p_i L_i, 0 where the links that are on at times connect not everyone."""
    return float(np.linalg.eigvalsh(np.tensordot(p, Ls, 1))[1])


def best_alpha(Ls: np.ndarray, p: np.ndarray) -> float:
    """Return the α that minimises ρ, which is convex in α."""
    from scipy.optimize import minimize_scalar

    # ρ ≥ 1 beyond 2/λ₂: there 1 − 2αλ₂ + α²λ₂² ≥ 1
    found = minimize_scalar(
        lambda a: contraction(Ls, p, float(a)),
        bounds=(0.0, 2 / connectivity(Ls, p)),
        method="bounded",
        options={"xatol": 1e-10},
    )
    return float(found.x)


@dataclass(frozen=True)
class Matchings:
    """The W of MATCHA for P learners: matchings of `base` that are on by (seed, k)."""

    P: int
    seed: int
    base: str = "ring"
    budget: float = 0.5
    probabilities: str = "optimal"
    Ls: np.ndarray = field(init=False)
    """[M, P, P]"""
    p: np.ndarray = field(init=False)
    """[M]"""
    alpha: float = field(init=False)
    _made: dict[bytes, np.ndarray] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        edges = cut(self.base, self.P)
        Ls = np.array([laplacian(each, self.P) for each in edges]).reshape(-1, self.P, self.P)
        p = np.full(len(Ls), self.budget)
        if self.probabilities == "optimal" and self.budget < 1 and len(Ls) > 1:
            p = optimal(Ls, len(Ls) * self.budget).round(3)  # digits on which all machines agree
        if len(Ls) and not connectivity(Ls, p) > LEAST * connectivity(Ls, np.ones(len(Ls))):
            raise bad("budget", self.budget, "so few links gossip that nothing spreads; use more")
        alpha = round(best_alpha(Ls, p), 6) if len(Ls) else 0.0
        for name, value in (("Ls", Ls), ("p", p), ("alpha", alpha)):
            object.__setattr__(self, name, value)

    def __call__(self, k: int) -> np.ndarray:
        if not len(self.p):
            return np.eye(1)
        on = generator(self.seed, 0, k, Stream.GOSSIP).random(len(self.p)) < self.p  # [M]
        if (key := on.tobytes()) not in self._made:
            if len(self._made) >= KEPT:
                self._made.clear()
            self._made[key] = exact(np.eye(self.P) - self.alpha * self.Ls[on].sum(axis=0))
        return self._made[key]


def check(base: str | None, budget: float | None, probabilities: str | None) -> None:
    """Raise UserError for a base graph, a budget or probabilities that break their rules."""
    check_choice("base", base, BASES)
    check_choice("probabilities", probabilities, PROBABILITIES)
    if budget is not None and not 0 < budget <= 1:
        raise bad("budget", budget, "the part of the edges that gossip must lie in (0, 1]")
