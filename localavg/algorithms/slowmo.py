"""SlowMo: slow momentum at the average, in units of gradients.

Jianyu Wang, Vinayak Tantia, Nicolas Ballas, Michael Rabbat: SlowMo: Improving
Communication-Efficient Distributed SGD with Slow Momentum. ICLR 2020, arXiv 1910.00643,
Algorithm 1, in the symbols of `outer.py`:

    for every round:
        K times: update w_j                              the base optimiser with step size γ
        w̄ ← (1/P) Σ_j w_j                                "exact average"
        u ← βu + (w̃ − w̄)/γ                              u = 0 first
        w̃ ← w̃ − αγu                                     `outer.SlowMo`
        w_j ← w̃                                         on every learner j

γ is that of the last update. At each average the paper sets the buffers of momentum to zero and
keeps those of Adam: `state` is reset or keep. With α = 1 and a constant γ this is M-AVG, μ = β.
"""

from __future__ import annotations

from typing import Annotated, Unpack

from localavg.algorithms.about import about
from localavg.algorithms.base import Algorithm
from localavg.algorithms.common import MU, OUTER_LR, Others, composed
from localavg.algorithms.kavg import every
from localavg.algorithms.parameters import OR_AUTO, Period, algorithm


@about(
    take_if="you want block momentum and a step size that falls",
    rounds="⌈T/K⌉",
    source="Alg. 1 of arXiv 1910.00643",
)
@algorithm
def slowmo(
    K: Annotated[
        int | str, Period("K", 16, f"local updates between two averages, τ of the paper; {OR_AUTO}")
    ] = 16,
    outer_lr: Annotated[float, OUTER_LR] = 1.0,
    mu: Annotated[float, MU] = 0.5,
    **others: Unpack[Others],
) -> Algorithm:
    """SlowMo (Wang et al. 2020): K-AVG with momentum that follows the step size.

    outer_lr is α, and mu is β. The same as kavg with the outer optimiser slowmo.
    """
    return composed(every(K), outer="slowmo", outer_lr=outer_lr, mu=mu, **others)
