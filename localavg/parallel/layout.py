"""Which rank holds which learners, and what follows from it. Arithmetic alone: no MPI, no arrays.

P learners are numbered 0 … P − 1 and lie on R ranks in this order. Rank r holds the learners
⌊P r / R⌋ … ⌊P (r + 1) / R⌋ − 1: a run of consecutive ones, and no rank holds two more than another.
Nothing else in the package works this out.

    Layout(7, (0, 0, 1)): 7 learners on 3 ranks, the last rank alone on its node

    node                     0           1
    rank                 0       1       2
    learners            0 1     2 3    4 5 6
    rows of the rank    0 1     0 1    0 1 2    of the matrix [L, n] that each rank has
    rows of the node    0 1     2 3    0 1 2    of the matrix that the ranks of a node share

Learners that average together, a cluster or everyone, are consecutive: a `range` says who they are.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from localavg.errors import UserError


@dataclass(frozen=True)
class Layout:
    """P learners over the ranks. Raises UserError where a rank would hold none.

    >>> layout = Layout(7, (0, 0, 1))
    >>> [layout.learners(r) for r in range(layout.ranks)]
    [range(0, 2), range(2, 4), range(4, 7)]
    >>> layout.rank_of(3)
    1
    """

    P: int
    """learners in all"""
    node_of: tuple[int, ...]
    """[R] the node of every rank: 0, 1, …"""

    def __post_init__(self) -> None:
        P, R = self.P, self.ranks
        if P < R:
            raise UserError(
                f"{P} learner{'s' * (P != 1)} on {R} rank{'s' * (R != 1)}: every rank "
                f"must hold one at least; use {R} learners or more, or mpirun -n "
                f"{max(1, P)}"
            )

    # ------------------------------------------------------------------------------------- ranks

    @property
    def ranks(self) -> int:
        """R, the number of ranks."""
        return len(self.node_of)

    def learners(self, rank: int) -> range:
        """The learners that a rank holds."""
        return range(self.P * rank // self.ranks, self.P * (rank + 1) // self.ranks)

    def rank_of(self, j: int) -> int:
        """The rank r that holds learner j: first learner of r ≤ j < first learner of r + 1."""
        return ((j + 1) * self.ranks - 1) // self.P

    @cached_property
    def counts(self) -> tuple[int, ...]:
        """[R] how many learners each rank holds."""
        return tuple(len(self.learners(r)) for r in range(self.ranks))

    @property
    def per_rank(self) -> int | list[int]:
        """How many learners a rank holds; where ranks differ, the smaller and the larger number.

        >>> Layout(6, (0, 0, 0)).per_rank, Layout(7, (0, 0, 0)).per_rank
        (2, [2, 3])
        """
        few, many = min(self.counts), max(self.counts)
        return few if few == many else [few, many]

    def ranks_of(self, learners: range) -> range:
        """The ranks that hold some of these learners.

        >>> Layout(7, (0, 0, 1)).ranks_of(range(3, 6))
        range(1, 3)
        """
        return range(self.rank_of(learners[0]), self.rank_of(learners[-1]) + 1)

    def rows(self, rank: int, learners: range) -> slice:
        """The rows of a rank's matrix [L, n] that belong to these learners, some of whom it holds.

        >>> Layout(7, (0, 0, 1)).rows(2, range(3, 6))
        slice(0, 2, None)
        """
        held = self.learners(rank)
        start, stop = max(learners.start, held.start), min(learners.stop, held.stop)
        return slice(start - held.start, stop - held.start)

    # ---------------------------------------------------------------------------------- clusters

    def clusters(self, S: int) -> list[range]:
        """The P / S clusters of S consecutive learners. Raises UserError for another S."""
        if S < 1 or self.P % S:
            raise UserError(f"`S = {S}` with {self.P} learners: a cluster's size must divide P")
        return [range(j, j + S) for j in range(0, self.P, S)]

    # ------------------------------------------------------------------------------------- nodes

    @property
    def nodes(self) -> int:
        """The number of nodes."""
        return len(set(self.node_of))

    def by_node(self, ranks: Iterable[int]) -> dict[int, list[int]]:
        """Which of these ranks are on each node, in order of appearance."""
        found: dict[int, list[int]] = {}
        for r in ranks:
            found.setdefault(self.node_of[r], []).append(r)
        return found

    def node_learners(self, rank: int) -> int:
        """How many learners are on a rank's node: the rows of the matrix that the node shares."""
        return sum(self.counts[r] for r in self.by_node(range(self.ranks))[self.node_of[rank]])

    def first_row(self, rank: int) -> int:
        """Where a rank's rows begin in the matrix that its node shares: ranks lie in order."""
        before = self.by_node(range(rank)).get(self.node_of[rank], [])
        return sum(self.counts[r] for r in before)

    def node_rows(self, rank: int, learners: range) -> slice:
        """The rows of these learners in the matrix that the rank's node shares.

        The rank must hold at least one of them.

        >>> Layout(7, (0, 0, 1)).node_rows(0, range(1, 6))
        slice(1, 4, None)
        """
        here = self.by_node(self.ranks_of(learners))[self.node_of[rank]]
        first, last = here[0], here[-1]
        return slice(
            self.first_row(first) + self.rows(first, learners).start,
            self.first_row(last) + self.rows(last, learners).stop,
        )

    def handlers(self, learners: range) -> list[list[int]]:
        """The ranks that reduce each lane of the learners' mean, one on every node: [lanes][nodes].

        The columns are cut into as many lanes as the learners have ranks on their largest node; a
        rank of a smaller node takes several.

        >>> Layout(7, (0, 0, 1)).handlers(range(7))
        [[0, 2], [1, 2]]
        """
        nodes = self.by_node(self.ranks_of(learners)).values()
        lanes = max(len(ranks) for ranks in nodes)
        return [[ranks[lane % len(ranks)] for ranks in nodes] for lane in range(lanes)]


def fewest_ranks(P: int, most: int) -> int:
    """The fewest ranks on which P learners are as fast as on `most`.

    The rank with the most learners sets the pace; a rank that does not relieve it would only wait.

    >>> [fewest_ranks(6, most) for most in range(1, 9)]
    [1, 2, 3, 3, 3, 6, 6, 6]
    """
    slowest = -(-P // min(P, most))  # learners
    return -(-P // slowest)
