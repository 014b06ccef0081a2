"""What averages and updates cost, for a schedule that chooses the period by it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from time import perf_counter
from typing import Any

import numpy as np

from localavg.algorithms.base import Costs
from localavg.interfaces import Array, Laps
from localavg.parallel.fleet import Fleet
from localavg.simulate.clock import Synchronous

Write = Callable[..., None]


class Pace:
    """The costs of the rounds since the schedule chose, alike on all ranks.

    A round is what lies from an average to the next.

    settle: waits until all queued work is done. laps: the clock. outside_s: returns the seconds of
    the run so far that are of neither, such as those of evaluations. write(group, **row): writes
    what was chosen, on the rank that writes. modelled: the clock of modelled time, which then
    counts in place of measured time.
    """

    def __init__(
        self,
        fleet: Fleet,
        settle: Callable[[], None],
        laps: Laps,
        outside_s: Callable[[], float],
        write: Write | None,
        modelled: Synchronous | None = None,
    ) -> None:
        self.fleet, self.settle, self.laps, self.outside_s = fleet, settle, laps, outside_s
        self.write, self.modelled = write, modelled
        self.begin(0)

    def begin(self, t: int) -> None:
        """Begin after update t. The first round does not count: it has start-up, or a part."""
        self.t, self.whole = t, False
        self.rounds: list[Array] = []  # [L, 5] as of Costs, with each learner's losses
        self._last, self._out_s = perf_counter(), self.outside_s()
        self.average_s = self.update_s = 0.0
        self._before_s = 0.0, 0.0  # of the modelled clock, at the last average

    def timed(
        self, before: Callable[..., None], after: Callable[..., None]
    ) -> tuple[Callable[..., None], Callable[..., None]]:
        """Return the hooks `before` and `after` of an average, with its time taken between them."""

        def timed_before(*about: Any) -> None:
            self.update_s += self._lap()
            before(*about)
            self._lap()  # where ranks agree first, they wait for each other there

        return timed_before, self.timed_after(after)

    def timed_after(self, after: Callable[..., None]) -> Callable[..., None]:
        """Return the hook `after` of a part of an average."""

        def timed_after(*about: Any) -> None:
            self.average_s += self._lap()
            after(*about)
            self._lap()

        return timed_after

    def pause(self) -> None:
        """Stop the clock: what comes is neither update nor average, such as an evaluation."""
        self.update_s += self._lap()

    def go_on(self) -> None:
        """Start the clock again after a pause."""
        self._lap()

    def _lap(self) -> float:
        """Return the seconds since the last lap, without those outside."""
        self.settle()
        now, out_s = perf_counter(), self.outside_s()
        took = now - self._last - (out_s - self._out_s)
        self._last, self._out_s = now, out_s
        return took

    def end(self, t: int, ends: Array) -> None:
        """End the round after update t. ends [L, 2]: losses in its first and in its last update."""
        times = self._times(t) if self.modelled is None else self._modelled_times(t)
        self.rounds.append(np.column_stack([np.tile((t - self.t, *times), (len(ends), 1)), ends]))
        self.t, self.whole = t, True
        self.average_s = self.update_s = 0.0
        self._lap()

    def _times(self, t: int) -> tuple[float, float]:
        """Return the seconds of an average and of an update, NaN in a round that does not count."""
        updates = t - self.t
        known = self.whole and updates > 0
        return (self.average_s, self.update_s / updates) if known else (math.nan, math.nan)

    def _modelled_times(self, t: int) -> tuple[float, float]:
        """Return the same by the modelled clock: means over the learners that work."""
        clock = self.modelled
        assert clock is not None
        working = clock.P if clock.participants is None else clock.participants.working
        now = clock.communicate_s, clock.compute_s * clock.P / working
        before, self._before_s = self._before_s, now
        updates = t - self.t
        if not self.whole or updates <= 0:
            return math.nan, math.nan
        return now[0] - before[0], (now[1] - before[1]) / updates

    def take(self) -> list[Costs]:
        """Return the rounds since the last call. Collective.

        The rank that comes last does not wait, so the least time of an average counts; of updates
        that of the slowest rank.
        """
        rounds = np.array(self.rounds).reshape(-1, self.fleet.L, 5)
        mine = np.column_stack([rounds[:, 0, :3], rounds[..., 3:].sum(1)])  # [rounds, 5]
        self.laps.computed()
        found = np.array(self.fleet.world.allgather(mine))  # [R, rounds, 5]
        self.laps.met()
        self.rounds = []
        self._lap()
        P = self.fleet.P
        columns = [found[..., 1].min(0), found[..., 2].max(0), *(found[..., 3:].sum(0) / P).T]
        costs = np.array(columns).T.tolist()  # [rounds, 4]
        return [Costs(int(n), *of) for n, of in zip(mine[:, 0], costs, strict=True)]

    def state_dict(self) -> dict[str, Array]:
        """Return the rounds since the last choice, a row a learner, and the present one."""
        rows = np.array(self.rounds).reshape(-1, self.fleet.L, 5).swapaxes(0, 1)
        return {"costs": rows.reshape(self.fleet.L, -1), **self.present()}

    def present(self) -> dict[str, Array]:
        """Return where the present round began; the same on all ranks."""
        return {"pace": np.array([self.t, self.whole, *self._before_s], np.float64)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume from `state`, after a recovery from what `present` returned.

        The time of a round that was measured in part does not count.
        """
        if "costs" in state:
            rows = np.asarray(state["costs"], np.float64).reshape(self.fleet.L, -1, 5)
            self.rounds = list(rows.swapaxes(0, 1))
        t, whole, *before_s = np.asarray(state["pace"]).tolist()
        self.t, self._before_s = int(t), (before_s[0], before_s[1])
        self.whole = bool(whole) and self.modelled is not None

    def note(self, t: int, decision: Mapping[str, float | str]) -> None:
        """Write what was chosen at the average after update t, and why."""
        if self.write is not None:
            self.write("periods", t=t, **decision)
