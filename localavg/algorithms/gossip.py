"""Gossip: every learner averages with its neighbours in a graph, and nobody with everyone.

Xiangru Lian et al.: Can Decentralized Algorithms Outperform Centralized Algorithms? A Case Study
for Decentralized Parallel Stochastic Gradient Descent. NeurIPS 2017, arXiv 1705.09056: D-PSGD.
Mahmoud Assran, Nicolas Loizou, Nicolas Ballas, Michael Rabbat: Stochastic Gradient Push for
Distributed Deep Learning. ICML 2019, arXiv 1811.10792: SGP. MATCHA is in `matchings.py`.

    for t = 1, …, T, on every learner j:
        g_j ← gradient at w_j
        w_j ← w_j − γ g_j                    the local optimiser
        if K divides t:
            w_j ← Σ_i W_ji w_i               W of `graphs.py`, another one at every gossip or not
    w_j ← (1/P) Σ_i w_i                      at T

This is (X − γG)W, as SGP's and MATCHA's programs have it. With `mix = first` the weights are mixed
before the update, with gradients from before the mix: XW − γG, as D-PSGD has it.

Push-sum, for graphs whose W has columns that sum to 1, but no such rows (SGP, Algorithm 1): w is x
there, and every learner has a weight s_j, 1 at the start. x and s are mixed alike. Gradients are
those at z = x/s, updates are made on x, and the run ends in Σ_j x_j / P. For the other graphs s_j
stays 1. Momentum and BatchNorm's statistics: a mixed state is Σ_i W_ji v_i / Σ_i W_ji.

S, the consensus distance (1/P) Σ_j ‖w̄ − w_j‖², is that of the weights before they are mixed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Any, Unpack

import numpy as np

from localavg.algorithms import matchings
from localavg.algorithms.about import about
from localavg.algorithms.base import Algorithm, Due, Gradients, Mean
from localavg.algorithms.common import Switch, begins, composed
from localavg.algorithms.graphs import GRAPHS, Graph, Push
from localavg.algorithms.kavg import Every
from localavg.algorithms.parameters import algorithm
from localavg.errors import bad, check_choice
from localavg.interfaces import Array, Transport
from localavg.scope import Scope

MATCHING, PUSH, COMPLETE = "matching", "push", "complete"
NAMES = (*GRAPHS, MATCHING, PUSH, COMPLETE)
AFTER, FIRST = "after", "first"


@about(
    take_if="a meeting of everyone is expensive, and learners may meet their neighbours only",
    rounds="1, at T",
    source="arXiv 1705.09056, arXiv 1811.10792, arXiv 1905.09435",
    sent="4d for each neighbour",
)
@algorithm
def gossip(
    K: Annotated[int, "local updates between two gossips"] = 1,
    graph: Annotated[
        str,
        "who mixes with whom: ring (D-PSGD), torus, exp (SGP), one-peer-exp (SGP with one peer), "
        "matching (MATCHA), push (push-sum, to one learner at random) or complete (K-AVG)",
    ] = "ring",
    mix: Annotated[
        str, "mix the weights after the update, or first, before it (D-PSGD's XW − γG)"
    ] = AFTER,
    base: Annotated[
        str | None,
        "graph that matching cuts into matchings: ring, torus or complete (default: ring)",
    ] = None,
    budget: Annotated[
        float | None,
        "part of its edges that gossip at a time, in (0, 1], a mean of matching (default: 0.5)",
    ] = None,
    probabilities: Annotated[
        str | None,
        "of its matchings: optimal for the spread of information, or equal (default: optimal)",
    ] = None,
    **common: Unpack[Switch],
) -> Algorithm:
    """Gossip: D-PSGD, SGP, MATCHA: every learner averages with its neighbours every K updates.

    D-PSGD: Lian et al. 2017; SGP: Assran et al. 2019; MATCHA: Wang et al. 2019. The run ends with
    an average of everyone. On the complete graph it is K-AVG.
    """
    check_choice("graph", graph, NAMES)
    check_choice("mix", mix, (AFTER, FIRST))
    matchings.check(base, budget, probabilities)
    given = {"base": base, "budget": budget, "probabilities": probabilities}
    stray = [name for name, value in given.items() if value is not None]
    if stray and graph != MATCHING:
        raise bad(stray[0], given[stray[0]], f"`graph = {graph}` does not use it; leave it out")
    first = mix == FIRST
    if graph == COMPLETE:
        return composed(Every(K), own=MeanOfAll(first), **common)
    made: dict[str, Any] = {name: value for name, value in given.items() if value is not None}

    def on(P: int, seed: int) -> Graph:
        if graph == MATCHING:
            return matchings.Matchings(P, seed, **made)
        return Push(P, seed) if graph == PUSH else GRAPHS[graph](P)

    mixed = (PushSum if graph == PUSH else Gossip)(K, on, first, begins(common))
    return composed(Gossips(K), own=mixed, **common)


class Gossips(Every):
    """Neighbours after every K local updates."""

    def after(self, t: int) -> Scope:
        return Scope.NEIGHBOURS if super().after(t) else Scope.NONE


class MeanOfAll(Mean):
    """w_j ← w̄, before the update or after it: gossip on the complete graph."""

    def __init__(self, before_update: bool) -> None:
        self.before_update = self.apart = before_update
        if before_update:
            self.not_attached = (
                "`mix = first` averages between backward() and step(), where your loop makes no "
                "call; leave it out, or train with localavg train"
            )


class Gossip(MeanOfAll):
    """w_j ← Σ_i W_ji w_i, and the mean of everyone at the end.

    K: updates between two gossips. on(P, seed): the graph of P learners. t0: updates before K
    counts.
    """

    neighbours = True

    def __init__(
        self, K: int, on: Callable[[int, int], Graph], before_update: bool = False, t0: int = 0
    ) -> None:
        super().__init__(before_update)
        self.apart = True
        self.K, self.on, self.t0 = K, on, t0

    def lay_out(self, learners: range, P: int, seed: int) -> None:
        self.graph = self.on(P, seed)

    def matrix(self, t: int) -> Array:
        return self.graph((t - self.t0) // self.K - 1)  # the first gossip, k = 0, is at t0 + K

    def average_(self, w: Array, due: Due, transport: Transport) -> float:
        if due.scope is not Scope.NEIGHBOURS:
            return super().average_(w, due, transport)
        S = transport.variance(w[:, : self.trained]) if due.variance else math.nan
        transport.mix_(w, self.matrix(due.t))
        return S

    def average_state_(self, s: Array, scope: Scope, transport: Transport, t: int = 0) -> None:
        if scope is not Scope.NEIGHBOURS:
            return super().average_state_(s, scope, transport, t)
        W = self.matrix(t)
        sums = W.sum(axis=1, keepdims=True)
        transport.mix_(s, W if (sums == 1).all() else W / sums)


class PushSum(Gossip):
    """Gossip by a W whose rows do not sum to 1: w holds x, and s [P] the learners' weights."""

    not_attached = (
        "`graph = push` needs gradients at x/s and updates of x, and your model holds one of them; "
        "use another graph, or train with localavg train"
    )

    def lay_out(self, learners: range, P: int, seed: int) -> None:
        super().lay_out(learners, P, seed)
        self.learners, self.s = learners, np.ones(P)

    def start(self, w: Array, trained: int, transport: Transport) -> None:
        super().start(w, trained, transport)
        self.x = w  # [L, d], without the statistics that learners keep to themselves

    def gradients_at(self, gradients_: Gradients) -> Gradients:
        def at_z(w: Array, t: int, **how: Any) -> object:
            own = self.s[self.learners.start : self.learners.stop].astype(np.float32)  # [L]
            for x, s in zip(self.x, own, strict=True):
                x /= s  # z = x/s
            losses = gradients_(w, t, **how)
            for x, s in zip(self.x, own, strict=True):
                x *= s
            return losses

        return at_z

    def average_(self, w: Array, due: Due, transport: Transport) -> float:
        S = super().average_(w, due, transport)
        mixed = due.scope is Scope.NEIGHBOURS
        self.s = self.matrix(due.t) @ self.s if mixed else np.ones_like(self.s)
        return S

    def state_dict(self) -> dict[str, Array]:
        return {"s": self.s}

    def load_state_dict(self, state: dict[str, Array]) -> None:
        self.s = np.array(state["s"], np.float64)
