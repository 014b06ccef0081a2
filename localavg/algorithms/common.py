"""The options that are common to the rows of the table, and how a row is put together from them.

A row says when learners average. What an average does, who takes part in it and what comes before
the first one is common to all rows. A row's function takes these options by name,

    def kavg(K: … = 16, **common: Unpack[Common]) -> Algorithm:
        return composed(Every(K), **common)

so they mean the same on the command line, in `attach`, in sweeps and in run files. A row that has
its own form of the outer optimiser takes `Others` alone, and a row without them refuses them.
"""

from __future__ import annotations

from typing import Annotated, Any, TypedDict

from localavg.algorithms import delay as delays
from localavg.algorithms import fragments
from localavg.algorithms import wire as wires
from localavg.algorithms.base import Algorithm, Average, Exchange, Mean, NoExchange, Schedule
from localavg.algorithms.outer import RULES
from localavg.algorithms.parameters import Epochs
from localavg.algorithms.participants import Participants
from localavg.algorithms.switch import Switched
from localavg.algorithms.sync import MeanGradient
from localavg.errors import UserError, bad, check_choice, whole
from localavg.interfaces import Settings

OUTER_LR = "step size η of the outer optimiser, α of slowmo"
MU = "momentum μ of the outer optimiser, in [0, 1); β₁ of adam and yogi, β of slowmo"


class Before(Epochs):
    """A number of epochs that ends before the run does."""

    def updates(self, value: float | None, T: int, epoch: float) -> int | None:
        t = super().updates(value, T, epoch)
        if t is not None and t >= T:
            raise UserError(
                f"`{self.name} = {value:g}` epochs are {t} updates, and the run has {T}: nothing "
                f"would follow; train for longer, lower `{self.name}`, or use sync"
            )
        return t


class Switch(TypedDict, total=False):
    """The common option of rows whose averages may be of neighbours alone."""

    switch: Annotated[
        int | None,
        Before(
            "switch",
            None,
            "take the mean gradient at every update of the first X epochs, as sync does, and begin "
            "with local updates and averages of weights after them; the lengths of the algorithm's "
            "own options count from there (default: 0, for postlocal the first change of the step "
            "size)",
        ),
    ]


class Others(Switch, total=False):
    """The common options beside the outer optimiser's; None stands for one that is not given."""

    participants: Annotated[
        int | None,
        "number m of learners that work in a round, from one average to the next; they are drawn "
        "anew for each round, the other learners make no updates and count nothing in the mean, "
        "and all get it (default: all learners, for fedavg a tenth of them)",
    ]
    weights: Annotated[
        str | None,
        "how much a learner counts in the mean: as much as any other (equal), or by the number of "
        "its training rows (rows), if the sampling gives it rows of its own (default: equal, for "
        "fedavg rows where that is possible)",
    ]
    fragments: Annotated[
        int | None,
        "cut the weights into F pieces of equal length, which average in turn, each once in K "
        "local updates; at most K, for fixed periods (default: 1)",
    ]
    delay: Annotated[
        int | None,
        "merge an average τ local updates after its beginning, and let it travel meanwhile "
        "(default: 0, average at once)",
    ]
    merge: Annotated[
        str | None,
        "how a delayed average is merged: moved by what the learner did since (cocod), or as a "
        "weighted mean with the learner's weights (lerp, daso) (default: cocod)",
    ]
    pull: Annotated[
        float | None,
        "weight a of the average in --merge lerp, in (0, 1] (default: 0.6, with --outer 1)",
    ]
    anchor_mu: Annotated[
        float | None,
        "momentum β of what --merge lerp pulls to, in [0, 1), as in Overlap-Local-SGD, where it is "
        "0.7 (default: 0)",
    ]
    wire: Annotated[
        str | None,
        "how averages cross nodes: as float32, or as changes since the last average in 16 bits "
        "(bf16), in 8 bits (int8) or as matrices of rank r (lowrank:r); what a code loses is kept "
        "and sent later (default: float32)",
    ]


class Common(Others, total=False):
    """The common options of a row that has no outer optimiser of its own."""

    outer: Annotated[
        str | None,
        "outer optimiser, which steps from the last average of everyone towards the new mean: "
        "none, momentum (BMUF, FedAvgM), nesterov (DiLoCo), adam (FedAdam), yogi (FedYogi) or "
        "slowmo (default: none; momentum if --mu is above 0)",
    ]
    outer_lr: Annotated[
        float | None,
        f"{OUTER_LR} (default: momentum and slowmo 1, nesterov 0.7, adam and yogi 0.01)",
    ]
    mu: Annotated[float | None, f"{MU} (default: 0.9, slowmo 0.5)"]


COMMON = tuple(Common.__annotations__)
"""the names of the common options"""


def composed(
    schedule: Schedule,
    clusters: tuple[int, ...] = (),
    P: int | None = None,
    C: float = 1.0,
    own: Average | None = None,
    **common: Any,
) -> Algorithm:
    """Make an algorithm that averages weights by `schedule`, with the options `Common`.

    clusters, P: as of Algorithm. C: the part of the learners that works in a round by default.
    own: what an average does in a row that takes `Switch` alone. Raises UserError for a value that
    breaks a rule, and for one that means nothing.
    """
    participants = Participants(common.get("participants"), common.get("weights"), C)
    if participants.asked and clusters:
        raise UserError(
            f"`{participants.asked}` means nothing to an algorithm with clusters, which average "
            "within a round too; leave it out, or use an algorithm whose averages are of everyone"
        )
    if participants.asked and common.get("switch"):
        raise UserError(
            f"`switch` with `{participants.asked}`: mean gradients are of everyone, each counting "
            "alike; leave one of them out"
        )
    outer = common.get("outer"), common.get("outer_lr"), common.get("mu")
    made = own or average(*outer)
    if participants.asked and common.get("delay"):
        raise UserError(
            f"`delay` with `{participants.asked}`: a mean on its way is of the round before, and "
            "other learners work in this one; leave one of them out"
        )
    F, tau = common.get("fragments"), common.get("delay") or 0
    refused = [participants.asked] if participants.asked else []
    schedule.delayed(tau)
    fragments.check(F, schedule.fixed, schedule.needs == "pace", tau, refused)
    delay = delays.of(common, plain=not made.kept, shortest=schedule.shortest)
    if delay is not None and common.get("anchor_mu"):
        outer = "slowmo", 1.0, common["anchor_mu"]
        made = average(*outer)
    exchange: Exchange = NoExchange()
    t0 = begins(common)
    wire = wires.of(common.get("wire"))
    if wire is not None and wire.code is None and (F or 1) > 1:
        raise UserError(
            f"`wire = {wire.name}` with `fragments`: a matrix may lie in two pieces of the "
            "weights; use int8 or bf16, or leave `fragments` out"
        )
    if F is not None and F > 1 and schedule.fixed is not None:
        schedule = fragments.InTurn(schedule.fixed, F)
        made = fragments.Fragmented(lambda: average(*outer), schedule, t0)
    if t0:
        schedule, exchange = Switched(schedule, t0), MeanGradient(until=t0)
    return Algorithm(schedule, made, exchange, clusters, P, participants, delay, wire)


def begins(common: Settings) -> int:
    """Return t₀ = `switch`, the number of updates before the schedule begins."""
    t0: int = common.get("switch") or 0
    whole("switch", t0)
    if t0 < 0:
        raise bad("switch", t0, "must be at least 0")
    return t0


def effective(
    outer: str | None, lr: float | None, mu: float | None
) -> tuple[str | None, float | None, float | None]:
    """Return the rule, η and μ that these options stand for; three None for the plain mean.

    An argument that is None was not given. Raises UserError for an unknown rule, for numbers that
    break theirs, and for numbers that mean nothing.
    """
    if outer is None:
        outer, mu = ("momentum", mu) if mu else ("none", None)
    check_choice("outer", outer, ("none", *RULES))
    if outer != "none":
        rule = RULES[outer](lr, mu)
        return outer, rule.lr, rule.mu
    for name, value in (("outer_lr", lr), ("mu", mu)):
        if value is not None:
            raise UserError(
                f"`{name} = {value:g}` means nothing to a run without `outer`; add `outer` with "
                f"one of {', '.join(RULES)}, or leave it out"
            )
    return None, None, None


def filled_in(options: Settings) -> Settings:
    """Return the options of a row with its outer optimiser and its delay as they take effect."""
    made = {**options}
    if "outer" in options:
        names = "outer", "outer_lr", "mu"
        made |= zip(names, effective(*map(options.get, names)), strict=True)
    if wires.of(made.get("wire")) is None and "wire" in made:
        made["wire"] = None
    if made.get("fragments") == 1:
        made["fragments"] = None
    plain = made.get("outer") is None and made.get("outer_lr") is None
    if (delay := delays.of(options, plain, shortest=None)) is not None:
        made |= {"merge": delay.merge, "pull": delay.pull if delay.merge == "lerp" else None}
    return made


def average(outer: str | None, lr: float | None, mu: float | None) -> Mean:
    """Make what an average of everyone does, for any schedule; the options as in `effective`."""
    outer, lr, mu = effective(outer, lr, mu)
    if outer is None or (outer in ("momentum", "nesterov") and (lr, mu) == (1, 0)):
        return Mean()  # w̃ + (w̄ − w̃) is the mean, with less rounding and no state
    return RULES[outer](lr, mu)
