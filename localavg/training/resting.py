"""What does not go with learners that rest for some rounds."""

from __future__ import annotations

from localavg.algorithms.participants import Participants
from localavg.config import TrainConfig
from localavg.config.state import MOMENTS, by_moment
from localavg.errors import UserError
from localavg.problems.engines import choose as engines
from localavg.problems.engines.loop import Loop


def check_resting(c: TrainConfig, participants: Participants) -> None:
    """Raise UserError for a setting that does not go with learners that rest for some rounds."""
    if participants.at_work is None:
        return
    asked = f"`participants = {participants.m}`"
    if c.engine not in (engines.AUTO, Loop.name):
        raise UserError(
            f"`engine = {c.engine}` with {asked}: it computes all learners of a rank, also those "
            "that rest; use `engine = loop`"
        )
    if c.statistics == "keep":
        raise UserError(
            f"`statistics = keep` with {asked}: learners that rest would have old statistics; use "
            "`statistics = average`"
        )
    moments = MOMENTS[c.optimizer]
    kept = "keep" in by_moment(c.state, moments, c.optimizer).values()
    if c.optimizer in ("adam", "adamw") and kept:
        raise UserError(
            f"`optimizer = {c.optimizer}` with {asked}: the moments of learners that rest would "
            "have other step counts; use `state = reset` or `state = average`"
        )
