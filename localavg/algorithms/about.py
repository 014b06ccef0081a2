"""What the table of algorithms in docs/algorithms.md and `--help` say about each of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

Given = ParamSpec("Given")
Made = TypeVar("Made")


@dataclass(frozen=True)
class About:
    """When to take an algorithm, what it costs, and where it is described."""

    take_if: str
    """a clause, which ends the sentence that begins with "Take it if\""""
    rounds: str
    """number of rounds in T updates: meetings of everyone, after which the learners are equal"""
    source: str
    """the paper, by its row in docs/algorithms.md or its number at arXiv"""
    sent: str = "4d"
    """bytes that a learner alone on its rank hands over in a round, for d float32 weights"""

    def __str__(self) -> str:
        costs = f"Rounds in T updates: {self.rounds}. Bytes in a round: {self.sent}"
        return f"Take it if {self.take_if}. {costs}. Source: {self.source}."


def about(
    take_if: str, rounds: str, source: str, sent: str = "4d"
) -> Callable[[Callable[Given, Made]], Callable[Given, Made]]:
    """Decorate a function of the table with what is said about it."""

    def note(function: Callable[Given, Made]) -> Callable[Given, Made]:
        function.about = About(take_if, rounds, source, sent)  # type: ignore[attr-defined]
        return function

    return note


def about_of(function: Callable[..., object]) -> About | None:
    """Return what is said about an algorithm; None where its function says nothing."""
    found: About | None = getattr(function, "about", None)
    return found
