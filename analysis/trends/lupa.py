"""What LUPA-SGD's paper claims: its Fig. 1 to 4."""

from collections.abc import Iterator
from functools import partial

import numpy as np
import quantities
import results

from localavg.files.record import Run

from . import rule
from .comparisons import equal_loss, fewer_rounds, room, versus
from .select import Check, Claim, Finding, alike, chosen, loss, mean, of, settings_of, where

LEVEL = 0.35
"""training loss of Fig. 3, where all runs reach it"""
EFFICIENCY = 0.8
"""part of the ideal speed-up that counts as linear"""
TIME = 0.8
"""part of synchronous SGD's time that counts as sooner"""


def larger_batches(equal_updates: bool) -> Check:
    """Make the check that the larger mini-batch ends worse, at equal epochs or equal updates."""

    def check(found: list[Run]) -> Iterator[Finding]:
        for group in alike(chosen(found, "sync"), "learners"):
            if len(Ps := settings_of(group, "learners", "sync")) < 2:
                continue
            T = min(run.eval.t.max() for run in group)
            at = partial(loss_at, t=T) if equal_updates else loss
            small, large = of(group, at, learners=Ps[0]), of(group, at, learners=Ps[-1])
            B = group[0].config["batch_size"]
            words = f"training loss: {mean(small, 4)} with {Ps[0] * B}, {mean(large, 4)} with"
            after = f"after {T:.0f} updates" if equal_updates else "after as many epochs"
            decision = rule.less(small, large, -room(group), digits=4)
            yield Finding(where(group[0]), decision, f"{words} {Ps[-1] * B}, {after}")

    return check


def loss_at(run: Run, t: float) -> float:
    """Return the training loss after t updates, interpolated between two evaluations."""
    if quantities.diverged(run):
        return loss(run)
    rows = run.eval.dropna(subset="train_loss")
    return float(np.interp(t, rows.t, rows.train_loss))


def sooner(found: list[Run]) -> Iterator[Finding]:
    """Does τ = 91 come to the end loss of sync, but for the room, in at most TIME of its time?"""
    for some in results.by_clock(found).values():
        for group in alike(some):
            ends = of(group, loss, "sync")
            if not (ends and chosen(group, "kavg", K=91)):
                continue
            level = max(ends.values()) + room(group)
            reach = partial(quantities.reach, level=level)
            ours, theirs = of(group, reach, "kavg", K=91), of(group, reach, "sync")
            words = f"seconds to loss {level:.3f}: τ = 91 {mean(ours, 3)}, sync {mean(theirs, 3)}"
            yield Finding(quantities.clock(group[0]), rule.times(ours, theirs, TIME), words)


def linear(found: list[Run]) -> Iterator[Finding]:
    """Is the time to a common loss with the most learners P at most 1 / (0.8 P) of one's?"""
    averaged = [run for run in chosen(found, "kavg") if not run.config.get("model")]
    for some in results.by_clock(averaged).values():
        for group in alike(some, "learners"):
            Ps = settings_of(group, "learners", "kavg")
            if len(Ps) < 2 or Ps[0] > 1:
                continue
            level = quantities.common_level(group, LEVEL)
            reach = partial(quantities.reach, level=level)
            times = {P: of(group, reach, learners=P) for P in Ps}
            words = "; ".join(f"P = {P}: {mean(seconds, 3)}" for P, seconds in times.items())
            decision = rule.times(times[Ps[-1]], times[1], 1 / (EFFICIENCY * Ps[-1]))
            place = f"{quantities.clock(group[0])}, B = {group[0].config.get('batch_size')}"
            yield Finding(place, decision, f"seconds to loss {level:g}: {words}")


REAL = "--scale paper, on Epsilon itself"
CLAIMS = [
    Claim(
        "Synchronous SGD is worse with a larger mini-batch, at equal epochs (Fig. 1)",
        "lupa-fig1",
        larger_batches(equal_updates=False),
        REAL,
    ),
    Claim(
        "Synchronous SGD is worse with a larger mini-batch, update for update (Fig. 1)",
        "lupa-fig1",
        larger_batches(equal_updates=True),
        REAL,
    ),
    Claim(
        "LUPA τ = 91 is at the level of sync with 1/91 of the rounds (Fig. 2)",
        "lupa-fig2",
        versus(
            {"algorithm": "kavg", "K": 91}, {"algorithm": "sync"}, equal_loss(), fewer_rounds(0.012)
        ),
        REAL,
    ),
    Claim("LUPA τ = 91 is sooner at sync's loss (Fig. 2)", "lupa-fig2", sooner, REAL),
    Claim("LUPA speeds up linearly in P (Fig. 3)", "lupa-fig3", linear, REAL),
    Claim(
        "ADA-LUPA is at LUPA's level with a fifth of the rounds (Fig. 4)",
        "lupa-fig4",
        versus(
            {"algorithm": "adalupa"},
            {"algorithm": "kavg", "K": 91},
            equal_loss(),
            fewer_rounds(0.2),
            name="τ = 91",
        ),
        REAL,
    ),
]
