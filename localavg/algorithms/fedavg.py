"""FedAvg: K-AVG in which a part of the learners works in each round.

McMahan et al. 2017, arXiv 1602.05629, Algorithm 1, which is written out in `participants.py`:

    for each round: m ← max(C P, 1) learners make K updates from w̃; w̃ ← their mean, by rows

The paper's client makes E passes over its n_j rows with mini-batches of B, which are E n_j/B
updates, and C is 0.1 in most of its experiments. Here every learner that works makes K updates, so
that ranks do not wait for the largest one. K = 60 is a pass over the 600 rows of the paper's
clients with B = 10. A client of the paper starts each round with a new local optimiser: `state` of
a run is reset by default. The weights of the mean are the numbers of rows where the sampling gives
each learner rows of its own.
"""

from __future__ import annotations

from typing import Annotated, Unpack

from localavg.algorithms.about import about
from localavg.algorithms.base import Algorithm
from localavg.algorithms.common import Common, composed
from localavg.algorithms.kavg import every
from localavg.algorithms.parameters import OR_AUTO, Period, algorithm

C = 0.1
"""the part of the learners that works in a round, unless told"""


@about(
    take_if="learners have data of their own, and only some of them work in a round",
    rounds="⌈T/K⌉",
    source="Alg. 1 of arXiv 1602.05629",
)
@algorithm
def fedavg(
    K: Annotated[
        int | str, Period("K", 60, f"local updates of a round, E n/B of the paper; {OR_AUTO}")
    ] = 60,
    **common: Unpack[Common],
) -> Algorithm:
    """FedAvg (McMahan et al. 2017): a tenth of the learners works in each round of K updates.

    The same as kavg with `participants`, and `weights = rows` where learners have rows of their
    own. With all learners and equal numbers of rows it is kavg. FedAvgM, FedAdam and FedYogi are
    its outer optimisers momentum, adam and yogi. In a user's own loop (`attach`) the local
    optimiser is new in every round with state="reset".
    """
    return composed(every(K), C=C, **common)
