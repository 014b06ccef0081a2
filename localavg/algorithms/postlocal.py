"""Post-local SGD as a row of its own: K-AVG with `switch`, whose source is in `switch.py`."""

from __future__ import annotations

from typing import Annotated, Unpack

from localavg.algorithms.about import about
from localavg.algorithms.base import Algorithm
from localavg.algorithms.common import Common, composed
from localavg.algorithms.kavg import every
from localavg.algorithms.parameters import OR_AUTO, Period, algorithm
from localavg.errors import UserError


@about(
    take_if="a large batch P·B generalises badly",
    rounds="t₀ + ⌈(T − t₀)/K⌉, t₀ = --switch",
    source="arXiv 1808.07217",
)
@algorithm
def postlocal(
    K: Annotated[
        int | str, Period("K", 16, f"local updates between two averages, H of the paper; {OR_AUTO}")
    ] = 16,
    **common: Unpack[Common],
) -> Algorithm:
    """Post-local SGD (Lin et al. 2020): sync up to `switch`, K-AVG after it.

    The same as kavg with `switch`, which is needed here: in Python a number of updates.
    """
    if not common.get("switch"):
        raise UserError(
            "postlocal needs `switch`, the length of its first phase with mean gradients, above 0; "
            "by default it is the first of `milestones` or `decay_every`, and there is none"
        )
    return composed(every(K), **common)
