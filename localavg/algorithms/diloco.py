"""DiLoCo: Nesterov momentum as the outer optimiser.

Arthur Douillard, Qixuan Feng, Andrei A. Rusu, Rachita Chhaparia, Yani Donchev, Adhiguna Kuncoro,
Marc'Aurelio Ranzato, Arthur Szlam, Jiajun Shen: DiLoCo: Distributed Low-Communication Training of
Language Models. 2023, arXiv 2311.08105, Algorithm 1, in the symbols of `outer.py`:

    for every round:
        w_j ← w̃                                         on every learner j
        K times: update w_j                              the inner optimiser, whose state is kept
        Δ ← (1/P) Σ_j (w̃ − w_j)                         the outer gradient, −D
        w̃ ← OuterOpt(w̃, Δ)                              `outer.Nesterov`, η = 0.7, μ = 0.9

H of the paper is K here. Its inner optimiser is AdamW: optimizer = adamw, weight_decay = 0.1.
"""

from __future__ import annotations

from typing import Annotated, Unpack

from localavg.algorithms.about import about
from localavg.algorithms.base import Algorithm
from localavg.algorithms.common import MU, OUTER_LR, Others, composed
from localavg.algorithms.kavg import every
from localavg.algorithms.parameters import OR_AUTO, Period, algorithm


@about(take_if="rounds must be very rare", rounds="⌈T/K⌉", source="Alg. 1 of arXiv 2311.08105")
@algorithm
def diloco(
    K: Annotated[
        int | str,
        Period("K", 500, f"local updates between two averages, H of the paper; {OR_AUTO}"),
    ] = 500,
    outer_lr: Annotated[float, OUTER_LR] = 0.7,
    mu: Annotated[float, MU] = 0.9,
    **others: Unpack[Others],
) -> Algorithm:
    """DiLoCo (Douillard et al. 2023): K-AVG with Nesterov momentum as the outer optimiser.

    The same as kavg with the outer optimiser nesterov.
    """
    return composed(every(K), outer="nesterov", outer_lr=outer_lr, mu=mu, **others)
