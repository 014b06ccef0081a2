"""Which engine computes the gradients of a rank's learners."""

from __future__ import annotations

from localavg.errors import UserError
from localavg.interfaces import Book, Engine, Feed, Problem
from localavg.problems.engines.loop import Loop


def make(name: str, problem: Problem, feed: Feed, learners: range, book: Book) -> Engine:
    """Make the engine `name`. Raises UserError if it cannot work for this problem."""
    if name == Loop.name:
        return Loop(problem, feed, learners, book)
    makers = problem.engines()
    if name not in makers:
        offered = ", ".join([Loop.name, *makers])
        raise UserError(
            f"`engine = {name}`: {type(problem).__name__.lower()} on this device has {offered}; "
            "choose one of these, or auto"
        )
    return makers[name](feed, learners, book)
