"""Comparisons of two lines of a figure: a loss is lower, an accuracy no worse, a time shorter."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import quantities

from localavg.files.record import Run

from . import rule
from .rule import Decision, Values, all_of
from .select import Check, Finding, Quantity, alike, loss, mean, of, settings_of, where

LOSS = 0.01
"""part of the first loss up to which losses count as equal"""
POINTS = 0.5
"""points of accuracy up to which an accuracy is no worse"""
Line: TypeAlias = Mapping[str, Any]  # algorithm and settings of a line of a figure
Decide: TypeAlias = Callable[[Values, Values, float], Decision]  # of ours, theirs, room for loss


@dataclass(frozen=True)
class Comparison:
    """A comparison of one quantity. what: its name; digits: after the point."""

    what: str
    of: Quantity
    decide: Decide
    digits: int = 2


def lower_loss(by: float = 0.0) -> Comparison:
    """Make the comparison: our loss is lower, by a part of theirs."""
    if by:
        return Comparison("training loss", loss, lambda a, b, _: rule.times(a, b, 1 - by), 4)
    return Comparison("training loss", loss, lambda a, b, _: rule.less(a, b, digits=4), 4)


def equal_loss() -> Comparison:
    """Make the comparison: our loss is no higher, but for a hundredth of the first loss."""
    return Comparison("training loss", loss, lambda a, b, room: rule.less(a, b, room, digits=4), 4)


def no_less_accurate(points: float = POINTS, of: Quantity = quantities.accuracy) -> Comparison:
    """Make the comparison: our test accuracy is at most so many points lower."""
    return Comparison("test accuracy (%)", of, lambda a, b, _: rule.less(b, a, points, " points"))


def more_accurate(points: float = 0.0, of: Quantity = quantities.accuracy) -> Comparison:
    """Make the comparison: our test accuracy is higher, by more than so many points."""
    return no_less_accurate(-points, of)


def fewer_rounds(most: float = 1.0) -> Comparison:
    """Make the comparison: we make fewer averages of everyone, at most so many times theirs."""
    return Comparison("averages", quantities.rounds, lambda a, b, _: rule.times(a, b, most), 0)


def sooner(of: Quantity, most: float = 1.0, what: str = "seconds") -> Comparison:
    """Make the comparison: our time is at most so many times theirs."""
    return Comparison(what, of, lambda a, b, _: rule.times(a, b, most), 3)


def versus(
    ours: Line, theirs: Line, *comparisons: Comparison, name: str = "", each: str = ""
) -> Check:
    """Make the check that all comparisons hold between two lines, wherever a sweep has both.

    name: of the other line. each: a setting of our line, whose values are compared one by one; the
    other line has the same value if it has that setting.
    """

    def check(found: list[Run]) -> Iterator[Finding]:
        for group in alike(found):
            values = settings_of(group, each, ours["algorithm"]) if each else [None]
            for value in values:
                mine = {**ours, **({each: value} if each else {})}
                same = each and settings_of(group, each, theirs["algorithm"])
                other = {**theirs, **({each: value} if same else {})}
                if all(of(group, loss, **line) for line in (mine, other)):
                    place = where(group[0], "learners", **({each: value} if each else {}))
                    yield compare(group, mine, other, comparisons, name, place)

    return check


def compare(
    group: list[Run],
    ours: Line,
    theirs: Line,
    comparisons: tuple[Comparison, ...],
    name: str,
    place: str,
) -> Finding:
    """Make all comparisons of two lines of a group of runs."""
    decisions, words = [], []
    for one in comparisons:
        a, b = (of(group, one.of, **line) for line in (ours, theirs))
        decisions.append(one.decide(a, b, room(group)))
        other = name or theirs["algorithm"]
        words.append(f"{one.what} {mean(a, one.digits)}, {other} {mean(b, one.digits)}")
    return Finding(place, all_of(*decisions), "; ".join(words))


def room(found: list[Run]) -> float:
    """Return the difference up to which losses count as equal."""
    return LOSS * float(np.nanmean([run.eval.train_loss.iloc[0] for run in found if len(run.eval)]))
