"""Hier-AVG, and averages over hierarchies of any depth.

Fan Zhou, Guojing Cong: A Distributed Hierarchical Averaging SGD Algorithm: Trading Local Reductions
for Global Reductions. 2019, Algorithm 1. The local sum is over the cluster of learner j (the index
in the paper is misprinted). K1 need not divide K2.

A hierarchy has levels l = 1, …, D: clusters of S_l consecutive learners, which average every K_l
updates. S_D = P is everyone. Hier-AVG is D = 2 with K1 = K_1, S = S_1 and K2 = K_2; K-AVG is D = 1.
With S = P a cluster of Hier-AVG is everyone, and an outer optimiser steps at K2 alone.

    after local update t:
        level D is due if K_D divides t
        level l is due if K_l divides the updates since the last average at any level above l
        at the highest level that is due: w_j ← mean of the cluster of j
    everyone averages after update T

HierarchicalModelAverager of torch.distributed (PyTorch 2) averages at the highest level whose K_l
divides its step, which counts from 0. Where each K_l divides the next one, that is this rule, one
update later.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from numbers import Integral
from typing import Annotated, Any, ClassVar, Unpack

from localavg.algorithms.about import about
from localavg.algorithms.base import Algorithm, Schedule, check_period
from localavg.algorithms.common import Common, composed
from localavg.algorithms.kavg import Every
from localavg.algorithms.parameters import Length, algorithm
from localavg.errors import LARGEST, UserError, bad
from localavg.interfaces import Settings
from localavg.scope import Scope

EVERYONE = "P"  # stands for the number of all learners
TWO_LEVELS = {"K1": 4, "K2": 16, "S": 4}  # by default
Level = tuple[int, int | str]  # (K, S); the last S may be EVERYONE


class Pairs(Length):
    """A period and a cluster's size for each level, K:S,K:S,…; in Python pairs (K, S)."""

    kind: ClassVar[type] = str

    def updates(self, value: str | None, T: int, epoch: float) -> list[Level] | None:
        return None if value is None else self.meaning(value)

    def meaning(self, value: str) -> list[Level]:
        try:
            pairs = [level.strip().split(":") for level in value.split(",")]
            return [(int(K), S if S == EVERYONE else int(S)) for K, S in pairs]
        except ValueError:
            raise bad(self.name, value, "must read K:S,K:S,… such as 4:2,16:8,64:P") from None


@about(
    take_if="links inside a node or rack are faster than the links between them",
    rounds="⌈T/K2⌉",
    source="hieravg Alg. 1",
)
@algorithm
def hieravg(
    K1: Annotated[
        int | None, "local updates between two averages of a cluster (default: 4)"
    ] = None,
    K2: Annotated[
        int | None, "local updates between two averages of everyone (default: 16)"
    ] = None,
    S: Annotated[
        int | None,
        "consecutive learners in a cluster; S must divide the number of learners (default: 4)",
    ] = None,
    levels: Annotated[
        Sequence[Level] | None,
        Pairs(
            "levels",
            None,
            "a hierarchy of any depth, in place of K1, K2 and S: K:S,K:S,… from the innermost "
            "level to everyone, such as 4:2,16:8,64:P; clusters of S consecutive learners average "
            "every K local updates, K grows, each S divides the next one, and the last S is the "
            "number of learners or the letter P, which stands for it",
        ),
    ] = None,
    **common: Unpack[Common],
) -> Algorithm:
    """Hier-AVG (hieravg Alg. 1): clusters average every K1 updates, everyone every K2.

    With `levels` a hierarchy has any depth; in Python [(4, 2), (16, 8), (64, "P")], pairs (K, S).
    """
    options: dict[str, Any] = {"K1": K1, "K2": K2, "S": S, "levels": levels}
    pairs = _two(filled_in(options)) if levels is None else _checked(options)
    periods, sizes = zip(*pairs, strict=True)
    *clusters, P = sizes
    schedule = Hierarchical(periods) if clusters else Every(*periods)
    everyone = None if P == EVERYONE else P
    return composed(schedule, tuple(clusters), everyone, **common)


@dataclass(frozen=True)
class Hierarchical(Schedule):
    """Clusters of level l average every K_l updates, everyone every K_D; K = (K_1, …, K_D).

    If several levels are due at the same t, only the highest averages. The count to K_l restarts at
    every average of a higher level. A pure function of t.
    """

    K: tuple[int, ...]

    @property
    def shortest(self) -> int:
        return self.K[0]

    def after(self, t: int) -> Scope:
        since = t  # updates since the last average of a higher level
        for level in range(len(self.K), 0, -1):
            since %= self.K[level - 1]
            if not since:
                return Scope.WORLD if level == len(self.K) else Scope(level)
        return Scope.NONE


def filled_in(options: Settings) -> Settings:
    """Return the options of hieravg with K1, K2 and S as they take effect."""
    if "levels" not in options or options["levels"] is not None:
        return options
    given = {name: options[name] for name in TWO_LEVELS if options[name] is not None}
    return {**options, **TWO_LEVELS, **given}


def _two(options: Settings) -> list[Level]:
    """Return the levels of Hier-AVG; a cluster of one learner has nothing to average."""
    K1, K2, S = (options[name] for name in TWO_LEVELS)
    check_period("K1", K1)
    check_period("K2", K2)
    if K1 > K2:
        raise UserError(
            f"`K1 = {K1}` exceeds `K2 = {K2}`: clusters average at least as often as everyone, "
            "K1 <= K2"
        )
    if S < 1:
        raise bad("S", S, "a cluster has at least 1 learner")
    return [(K1, S), (K2, EVERYONE)] if S > 1 else [(K2, EVERYONE)]


def _checked(options: Settings) -> list[Level]:
    """Return the levels. Raises UserError if they are no hierarchy, or for options beside them."""
    levels = options["levels"]
    if stray := [name for name in TWO_LEVELS if options[name] is not None]:
        raise UserError(
            f"`{stray[0]} = {options[stray[0]]}` means nothing beside `levels`, which has all "
            f"periods and sizes; leave `{stray[0]}` out"
        )
    try:
        pairs: list[Level] = [(K, S) for K, S in levels]
    except (TypeError, ValueError):
        pairs = []
    if not pairs or isinstance(levels, str) or not isinstance(levels, Sequence):
        raise bad(
            "levels",
            " ".join(repr(levels).split()),
            "must be pairs (K, S) such as [(4, 2), (16, 8), (64, 64)]",
        )
    if fault := _fault(pairs):
        raise bad("levels", ",".join(f"{K}:{S}" for K, S in pairs), fault)
    return pairs


def _fault(pairs: Sequence[Level]) -> str:
    """Return why these levels are no hierarchy, "" if they are one."""
    periods: list[Any] = [K for K, _ in pairs]
    sizes: list[Any] = [S for _, S in pairs]
    numbers = sizes[:-1] if sizes[-1] == EVERYONE else sizes
    if not all(map(_counts, periods)):
        return "each K must be a whole number of at least 1"
    if not all(map(_counts, numbers)):
        return "each S must be a whole number of at least 1; the last one may be the letter P"
    if len(pairs) > 1 and sizes[0] == 1:
        return "a cluster of 1 learner has nothing to average; leave the first level out"
    for K, longer in pairwise(periods):
        if K >= longer:
            return f"K must grow from each level to the next one, and {longer} follows {K}"
    for S, larger in pairwise(numbers):
        if S >= larger or larger % S:
            return f"each S must divide the next one, which is larger, and {larger} follows {S}"
    return ""


def _counts(value: object) -> bool:
    """Return whether a value is a whole number of at least 1."""
    return (
        isinstance(value, Integral) and not isinstance(value, bool) and 1 <= int(value) <= LARGEST
    )
