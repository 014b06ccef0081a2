"""The modelled clock of learners that wait for each other, and its times in a run file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np

from localavg.algorithms.participants import Participants
from localavg.files import record
from localavg.scope import Scope, sizes
from localavg.simulate.timing import StepTimes, Timing

Seconds: TypeAlias = Callable[[Scope, int], tuple[int, float]]


class Synchronous:
    """The clock of P learners that wait for each other: an average starts with the slowest of them.

    seconds: (scope, t) → (learners, duration) of an exchange over it at update t. participants: who
    works in each round, from the first round on; the other learners wait for its end.
    """

    def __init__(
        self,
        timing: Timing,
        P: int,
        seed: int,
        seconds: Seconds,
        participants: Participants | None = None,
    ) -> None:
        self.P, self.times, self.seconds = P, StepTimes(timing, seed), seconds
        self.participants = participants
        self.t, self.now = 0, np.zeros(P)  # [P] time of each learner
        self.compute_s = self.wait_s = self.communicate_s = 0.0  # means over the learners

    @property
    def wall_s(self) -> float:
        """The time of the slowest learner."""
        return float(self.now.max())

    def advance(self, t: int) -> None:
        """Let every learner that works compute up to update t."""
        weights = None if self.participants is None else self.participants.weights
        took = np.zeros(self.P)
        for j in range(self.P):
            if weights is None or weights[j]:
                took[j] = self.times.sum(j, self.t, t)
        self.t, self.now = t, self.now + took
        self.compute_s += float(took.mean())

    def average(self, scope: Scope) -> tuple[float, float]:
        """Let the learners exchange over `scope`.

        Return the duration without the waiting, and the waiting, a mean over the learners.
        """
        S, seconds = self.seconds(scope, self.t)
        clusters = self.now.reshape(-1, S)  # [P / S, S]
        latest = np.repeat(clusters.max(axis=1), S)  # [P]
        waited = float((latest - self.now).mean())
        self.wait_s += waited
        self.communicate_s += seconds
        self.now = latest + seconds
        if scope is Scope.WORLD and self.participants is not None:
            self.participants.next_()
        return seconds, waited

    def mix(self, W: np.ndarray, nbytes: float) -> tuple[float, float]:
        """Let the learners mix nbytes each by W [P, P]: learner j waits for those with W_ji ≠ 0.

        Its link is full duplex, so it is busy as long as the larger of the two takes: what it gets,
        and what others get from it. Return means over the learners of the duration without the
        waiting, and of the waiting.
        """
        takes = (W != 0) & ~np.eye(self.P, dtype=bool)  # [P, P]
        others = np.where(takes, self.now, -np.inf).max(axis=1)  # [P]
        latest = np.maximum(self.now, others)
        messages = np.maximum(takes.sum(axis=0), takes.sum(axis=1))  # [P]
        seconds = messages * self.times.timing.message_s(nbytes)
        waited = float((latest - self.now).mean())
        self.wait_s += waited
        self.communicate_s += float(seconds.mean())
        self.now = latest + seconds
        return float(seconds.mean()), waited

    def meet(self, scope: Scope, begun: int, t: int) -> tuple[float, float]:
        """Let the learners compute up to update t, and average at once or as `merge` does."""
        if begun < t:
            return self.merge(scope, begun, t)
        self.advance(t)
        return self.average(scope)

    def merge(self, scope: Scope, begun: int, t: int) -> tuple[float, float]:
        """Let the learners compute up to update t, and merge an average that began after `begun`.

        Between the two the learners have met no other. Return its duration, and the time that the
        learners waited for it, a mean over them.
        """
        if self.t < begun:
            self.advance(begun)
        back = np.array([self.times.sum(j, begun, self.t) for j in range(self.P)])  # [P]
        S, seconds = self.seconds(scope, begun)
        latest = (self.now - back).reshape(-1, S).max(axis=1)  # [P / S] when the last one began
        self.advance(t)
        arrived = np.maximum(self.now, np.repeat(latest + seconds, S))
        waits = arrived - self.now  # [P]
        self.now = arrived
        self.communicate_s += float(waits.min())
        self.wait_s += float(waits.mean() - waits.min())
        return seconds, float(waits.mean())


def averages(
    timing: Timing,
    P: int,
    nbytes: float | Callable[[int, Scope], float],
    clusters: Sequence[int] = (),
) -> Seconds:
    """Return (scope, t) → (learners, duration) of an exchange of nbytes a learner.

    nbytes: a number, or (t, scope) → that of update t. clusters: learners in a cluster of each
    level, innermost first. A coded mean takes as long as a mean of as many bytes: its all-to-all
    and its gather move what the two halves of the mean move.
    """
    learners = sizes(clusters, P)
    at = nbytes if callable(nbytes) else lambda t, scope: nbytes
    return lambda scope, t: (learners[scope], timing.mean_s(learners[scope], at(t, scope)))


class Modelled:
    """A run file whose rows carry the times of a modelled clock in place of measured ones.

    matrix(t): W of an average of neighbours after update t, which takes nbytes(t) of a learner.
    """

    def __init__(
        self,
        file: record.Record,
        clock: Synchronous,
        matrix: Callable[[int], np.ndarray],
        nbytes: Callable[[int], float],
    ) -> None:
        self.file, self.clock, self.matrix, self.nbytes = file, clock, matrix, nbytes

    def append(self, group: str, **row: Any) -> None:
        """Buffer one row of `group`, as `Record.append`, once the clock is at its update.

        What was chosen is known before the rows of the averages are: it has no time of its own.
        """
        if group == "periods":
            self.file.append(group, **row)
            return
        clock, t = self.clock, int(row["t"])
        if group == "averages":
            scope, begun = Scope.recorded(int(row["scope"]), int(row["level"])), int(row["begun"])
            if scope is Scope.NEIGHBOURS:
                clock.advance(t)
                found = clock.mix(self.matrix(t), self.nbytes(t))
            else:
                found = clock.meet(scope, begun, t)
            row["seconds"], row["wait_s"] = found
            row["hidden_s"] = max(0.0, found[0] - found[1]) if begun < t else 0.0
        else:
            clock.advance(t)
            row["wall_s"] = clock.wall_s
        if group == "train":
            row |= {
                "compute_s": clock.compute_s,
                "communicate_s": clock.communicate_s,
                "wait_s": clock.wait_s,
                "data_s": 0.0,
            }
        self.file.append(group, **row)

    def flush(self) -> bool:
        """Write the buffered rows if due, as `Record.flush`."""
        return self.file.flush()
