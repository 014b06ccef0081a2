"""Checkpoints of an asynchronous run, which the first server writes.

A checkpoint has the center x̃, how far each learner has come, and the log. A run that resumes starts
every learner from x̃, at the updates that had reached it, so it may have another number of ranks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from time import monotonic
from typing import Any, TypeAlias, TypeVar

import numpy as np

from localavg.errors import SharedError, UserError
from localavg.files import checkpoint
from localavg.files.checkpoint import Saved
from localavg.interfaces import Array
from localavg.training.asynchronous.log import Log
from localavg.training.keeper import Listener

X = TypeVar("X")
Kept: TypeAlias = tuple[int, float, Array]
"""a copy of the center to evaluate: (U, wall_s, x̃ [d])"""


class _Alone:
    """One rank that writes a checkpoint for all."""

    rank, ranks, learners = 0, 1, range(0)

    def together(self, work: Callable[[], X]) -> X:
        """Run `work`; a mistake or an error of the system becomes a SharedError."""
        try:
            return work()
        except (UserError, OSError, MemoryError) as e:
            raise SharedError(str(e) or type(e).__name__) from e


class Saver:
    """Saves a run in `folder` on time, and stops it at a signal or at a time limit.

    every_s, every_steps: seconds, and updates of each learner, between two checkpoints (both None:
    save only before a stop). limit_s: the seconds after began_s, a time of the clock `monotonic`.
    """

    def __init__(
        self,
        folder: Path,
        listener: Listener,
        *,
        every_s: float | None,
        every_steps: int | None,
        limit_s: float | None,
        began_s: float,
    ) -> None:
        self.folder, self.listener = folder, listener
        self.every_s, self.every_steps = every_s or math.inf, every_steps or math.inf
        self.limit_s, self.began_s = limit_s or math.inf, began_s
        self._saved_s, self._saved = monotonic(), 0

    def told(self) -> str:
        """Return why the run must stop, "" if it need not."""
        late = monotonic() - self.began_s >= self.limit_s
        if not (why := self.listener.told or late * "the time limit"):
            return ""
        return (
            f"stopped by {why}, saved in {self.folder}; the same command with `resume` resumes it"
        )

    def due(self, t: int) -> bool:
        """Return whether it is time to save the run, of which t updates have reached the center."""
        return monotonic() - self._saved_s >= self.every_s or t - self._saved >= self.every_steps

    def save(self, center: Array, t: Sequence[int], log: Log, copies: Sequence[Kept]) -> None:
        """Write a checkpoint with the center [d]. Raises UserError where that fails.

        t: by learner the updates that the center has. copies: those to evaluate.
        """
        assert log.file is not None, "the first server writes the run file"
        log.file.flush(force=True)
        state: dict[str, Mapping[str, Any]] = {
            "center": {"x": center},
            "learners": {"t": np.array(t)},
            "log": log.state_dict(),
            "record": log.file.rows,
            "copies": {
                "at": np.array([x for U, wall_s, _ in copies for x in (U, wall_s)], np.float64),
                "w": np.concatenate([np.zeros(0, np.float32), *(w for *_, w in copies)]),
            },
        }
        try:
            checkpoint.write(self.folder, log.t, _Alone(), state)
        except SharedError as e:
            raise UserError(str(e)) from e
        self._saved_s, self._saved = monotonic(), log.t


def copies_of(saved: Saved, d: int) -> list[Kept]:
    """Return the copies of the center that a checkpoint has, to be evaluated."""
    at, w = saved.state["copies"]["at"].reshape(-1, 2).tolist(), saved.state["copies"]["w"]
    return [(int(U), wall_s, x) for (U, wall_s), x in zip(at, w.reshape(-1, d), strict=True)]


def progress(saved: Saved | None, P: int) -> Sequence[int]:
    """Return by learner the updates that have reached the center, 0 without a checkpoint."""
    return [0] * P if saved is None else saved.state["learners"]["t"].tolist()
