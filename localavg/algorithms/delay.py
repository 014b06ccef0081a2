"""Delayed averages: the mean of a snapshot travels while the learners go on, and is merged later.

At an average after update t every learner's weights are copied, and the mean of the copies begins.
It arrives after τ = `delay` more updates, and is merged into the weights of then. z is what arrived
(the mean of the copies, or w̃ of an outer optimiser that stepped with it), s_j the learner's copy:

    merge      w_j at t + τ                                            source
    cocod      z + (w_j − s_j)                                         [1]
    lerp       (1 − a) w_j + a z                                       [2], [3] with a = 1 − α
    daso       (2τ w_j + P z) / (2τ + P), lerp with a = P/(2τ + P)     [4]

a is `pull`. With cocod the mean of the learners stays as it was. A new mean begins no earlier than
the one before has been merged: an average that falls due before is made right after it. At T a mean
that has not arrived is dropped, and the learners take the plain average of T.

[1] Shen et al.: Faster Distributed Deep Net Training: Computation and Communication Decoupled
Stochastic Gradient Descent. IJCAI 2019, arXiv 1906.12043: CoCoD-SGD, where τ = K.
[2] Wang, Liang, Joshi: Overlap Local-SGD: An Algorithmic Approach to Hide Communication Delays in
Distributed SGD. ICASSP 2020, arXiv 2002.09539, where τ = K. There z begins as the initial weights,
and every learner is pulled to the last z right before its next copy is made: at t = K to the start.
Its anchor momentum v ← βv + (z − m)/γ, z ← z − γv, m the mean, is slowmo with α = 1 as the outer
optimiser, `anchor_mu` = β.
[3] Douillard et al.: Streaming DiLoCo with overlapping communication. 2025, arXiv 2501.18512; its α
weighs the learner's own weights.
[4] Coquelin et al.: Accelerating Neural Network Training with Distributed Asynchronous and
Selective Optimization (DASO). J. Big Data 2022; Heat's dp_optimizer, where one rank a node sends.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from localavg.errors import UserError, bad, check_choice, whole
from localavg.interfaces import Array, Settings
from localavg.parallel import kernels

MERGES = ("cocod", "lerp", "daso")
PIECE = 1 << 15  # elements merged at a time: they stay in a core's cache


@dataclass(frozen=True)
class Delay:
    """When a mean is merged, and how.

    tau: the updates after which it is merged. pull: a of lerp. anchored: whether the first copies
    are pulled to the weights at the beginning.
    """

    tau: int
    merge: str = "cocod"
    pull: float = 1.0
    anchored: bool = False

    def __post_init__(self) -> None:
        whole("delay", self.tau)
        if self.tau < 1:
            raise bad("delay", self.tau, "must be at least 1 update; 0 averages without a delay")
        check_choice("merge", self.merge, MERGES)
        if not 0 < self.pull <= 1:
            raise bad("pull", self.pull, "must lie in (0, 1]")

    @property
    def keeps_copies(self) -> bool:
        """Whether a merge needs the learners' own copies s_j."""
        return self.merge == "cocod"

    def merge_(self, w: Array, z: Array, own: Array | None, learners: int) -> None:
        """Merge z [L, n] into the weights w [L, n]; z is overwritten.

        own [L, n]: the learners' copies, if the merge needs them. learners: those whose mean it is.
        """
        xp = kernels.array_module(w)
        if own is not None and xp is not None:
            kernels.follow_(xp, w, z, own)
            return
        if own is not None:
            for i in range(0, w.shape[1], PIECE):
                piece = w[:, i : i + PIECE]  # z + (w_j − s_j)
                piece -= own[:, i : i + PIECE]
                piece += z[:, i : i + PIECE]
            return
        self.pull_(w, z, None if self.merge == "lerp" else learners / (2 * self.tau + learners))

    def pull_(self, w: Array, z: Array, a: float | None = None) -> None:
        """w ← (1 − a) w + a z, by default with a = `pull`; z [L, n] is overwritten."""
        a = self.pull if a is None else a
        if a == 1:
            w[...] = z
            return
        if (xp := kernels.array_module(w)) is not None:
            kernels.pull_(xp, w, z, a)
            return
        for i in range(0, w.shape[1], PIECE):
            way = z[:, i : i + PIECE]
            way -= w[:, i : i + PIECE]
            way *= np.float32(a)
            w[:, i : i + PIECE] += way


def of(options: Settings, plain: bool, shortest: int | None) -> Delay | None:
    """Make the delay of a row's options `delay`, `merge`, `pull` and `anchor_mu`; None without one.

    plain: whether an average is the plain mean. shortest: the shortest period, if it is known.
    Raises UserError for a value that breaks a rule or means nothing.
    """
    tau, merge, pull, beta = map(options.get, ("delay", "merge", "pull", "anchor_mu"))
    if not tau:
        for name in ("merge", "pull", "anchor_mu"):
            if options.get(name) is not None:
                raise UserError(
                    f"`{name} = {options[name]}` means nothing without `delay`; add `delay`, a "
                    "number of updates, or leave it out"
                )
        return None
    merge = merge or "cocod"
    for name, value in (("pull", pull), ("anchor_mu", beta)):
        if value is not None and merge != "lerp":
            raise UserError(
                f"`{name} = {value:g}` means nothing to `merge = {merge}`; add `merge = lerp`, or "
                "leave it out"
            )
    if merge == "daso" and not plain:
        raise UserError(
            "`merge = daso` weighs the plain mean, and `outer` makes another; use cocod or lerp"
        )
    if beta is not None and not plain:
        raise UserError(
            "`anchor_mu` is an outer optimiser of its own (slowmo with `outer_lr = 1`); leave it "
            "out, or `outer`"
        )
    if beta is not None and not 0 <= beta < 1:
        raise bad("anchor_mu", beta, "must lie in [0, 1)")
    if pull is None:
        pull = 0.6 if merge == "lerp" and plain else 1.0
    made = Delay(tau, merge, pull, anchored=merge == "lerp" and plain and tau == shortest)
    if shortest is not None and tau > shortest:
        raise UserError(
            f"`delay = {tau}` is longer than the shortest period of {shortest} updates: a mean "
            f"would arrive after the next one is due; use at most {shortest}"
        )
    return made
