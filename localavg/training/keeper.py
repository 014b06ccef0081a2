"""Keeps a run safe: checkpoints on time, and a tidy end when it is told to stop.

Signals and clocks strike every rank at its own moment, so they only set a wish; about twice a
second the ranks meet after the same update, `due`, and decide together. Between two meetings an
update costs one comparison.
"""

from __future__ import annotations

import math
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
from mpi4py import MPI

from localavg.files import checkpoint
from localavg.files.record import Record
from localavg.interfaces import Array
from localavg.parallel.fleet import Fleet
from localavg.training.ending import Interrupted
from localavg.training.monitor import Monitor
from localavg.training.resume import Part

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
MEET_S = 0.5  # seconds between two meetings of the ranks
GROWTH = 8  # at most so many times more updates to the next meeting than to the last


class Keeper:
    """Saves checkpoints of one run in `folder`, and stops it, saved, at a signal or after limit_s
    seconds.

    every_s, every_steps: how often to save (None: only when told to stop). record: the run file on
    rank 0.
    """

    def __init__(
        self,
        fleet: Fleet,
        record: Record | None,
        folder: Path,
        *,
        every_s: float | None = None,
        every_steps: int | None = None,
        limit_s: float | None = None,
    ) -> None:
        self.fleet, self.record, self.folder = fleet, record, folder
        self.every_s, self.every_steps = every_s or math.inf, every_steps
        self.limit_s = limit_s or math.inf
        self.due = math.inf  # t of the next meeting
        self.told = ""  # the signal that said stop
        self._started = self._saved_s = monotonic()

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Within it a signal to stop is a wish, where signals can be caught: in the main thread."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        deaf = (
            signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        )  # a shell's background job: Ctrl-C is not for it
        before = {
            number: signal.signal(number, self._hear)
            for number in SIGNALS
            if not (deaf and number == signal.SIGINT)
        }
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _hear(self, number: int, frame: Any) -> None:
        if number == signal.SIGINT and self.told:  # Ctrl-C once more: at once
            raise KeyboardInterrupt
        self.told = signal.Signals(number).name

    def start(self, begun: int, w: Array, monitor: Monitor, parts: Mapping[str, Part]) -> None:
        """Say what is to be saved: the weights w [L, d] and the parts; `begun` updates are made.

        monitor: one of the parts, which keeps the clock.
        """
        self.w, self.monitor, self.parts = w, monitor, parts
        self.saved, self._met, self._met_s, self._stride = begun, begun, monotonic(), 1
        self._plan(begun)

    def visit(self, t: int) -> None:
        """Meet after update t: save if it is time, stop if anyone was told to. Raises Interrupted
        on every rank. Collective.
        """
        now = monotonic()
        late = now - self._started >= self.limit_s
        wishes = np.array(
            [
                bool(self.told) or late,
                now - self._saved_s >= self.every_s,
                (now - self._met_s) / (t - self._met),
            ]
        )
        self.fleet.world.Allreduce(MPI.IN_PLACE, wishes, MPI.MAX)
        stop, overdue, step_s = wishes
        self._stride = max(1, min(GROWTH * self._stride, int(MEET_S / max(step_s, 1e-9))))
        if stop or overdue or (self.every_steps and t % self.every_steps == 0):
            self.save(t)
        if stop:
            whys = [
                why
                for why in self.fleet.world.allgather(self.told or late * "the time limit")
                if why
            ]
            raise Interrupted(
                f"stopped by {whys[0]} after step {t}, saved in {self.folder}; the same command "
                "with `resume` "
                f"goes on"
            )
        self._met, self._met_s = t, monotonic()
        self._plan(t)

    def save(self, t: int) -> None:
        """Write a checkpoint after update t. Collective."""
        self.monitor.computed()
        state = {name: part.state_dict() for name, part in self.parts.items()} | {
            "weights": {"w": self.w}
        }
        state["record"] = {}
        if self.record is not None:
            self.record.flush(force=True)
            state["record"] = self.record.rows
        checkpoint.write(self.folder, t, self.fleet, state)
        self.saved, self._saved_s = t, monotonic()
        self.monitor.clock.lap("outside")

    def _plan(self, t: int) -> None:
        self.due = t + self._stride
        if self.every_steps:
            self.due = min(self.due, t - t % self.every_steps + self.every_steps)
