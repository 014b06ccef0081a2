"""What the headline is to show: averages often enough, too rarely, and too late."""

from collections.abc import Callable, Iterator
from typing import TypeAlias

from localavg.files.record import Run

from . import rule
from .comparisons import LOSS, room
from .rule import Decision, Values, all_of
from .select import Check, Claim, Finding, alike, loss, mean, of, where

VISIBLE = 0.1
"""part of the first loss by which one average at the end is to be worse than τ = 91"""
SLIGHT = 0.25
"""part of the distance between sync and one average at the end that τ = 91 may lose"""
NAMES = ("sync", "τ = 5", "τ = 91", "one-shot")
Decide: TypeAlias = Callable[[Values, Values, Values, Values, float], Decision]


def by_period(decide: Decide) -> Check:
    """Make the check that decides on the losses of sync, τ = 5, τ = 91 and one-shot."""

    def check(found: list[Run]) -> Iterator[Finding]:
        for group in alike(found):
            losses = [
                of(group, loss, "sync"),
                of(group, loss, "kavg", K=5),
                of(group, loss, "kavg", K=91),
                of(group, loss, "oneshot"),
            ]
            if all(losses):
                words = [f"{name} {mean(x, 4)}" for name, x in zip(NAMES, losses, strict=True)]
                decision = decide(*losses, room(group))
                yield Finding(
                    where(group[0], "learners"), decision, f"training loss: {'; '.join(words)}"
                )

    return check


def often_enough(sync: Values, five: Values, rare: Values, once: Values, room: float) -> Decision:
    """Is the loss with τ = 5 that of sync, neither above nor below it?"""
    return all_of(rule.less(five, sync, room, digits=4), rule.less(sync, five, room, digits=4))


def slightly_worse(sync: Values, five: Values, rare: Values, once: Values, room: float) -> Decision:
    """Is the loss with τ = 91 above that of sync, by less than SLIGHT of one-shot's distance?"""
    lost = {seed: rare[seed] - sync[seed] for seed in rare.keys() & sync.keys()}
    most = {seed: once[seed] - sync[seed] for seed in once.keys() & sync.keys()}
    return all_of(rule.less(sync, rare, digits=4), rule.times(lost, most, SLIGHT))


def visibly_worse(sync: Values, five: Values, rare: Values, once: Values, room: float) -> Decision:
    """Is the loss of one-shot above that with τ = 91, by VISIBLE of the first loss?"""
    return rule.less(rare, once, -room * VISIBLE / LOSS, digits=4)


REAL = "data of which learners hold other classes, or a longer run"
CLAIMS = [
    Claim(
        "Different classes: averages every 5 updates end at the loss of sync",
        "headline",
        by_period(often_enough),
        REAL,
    ),
    Claim(
        "Different classes: averages every 91 updates end slightly above sync",
        "headline",
        by_period(slightly_worse),
        REAL,
    ),
    Claim(
        "Different classes: one average at the end is visibly above τ = 91",
        "headline",
        by_period(visibly_worse),
        REAL,
    ),
]
