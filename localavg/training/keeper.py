"""Checkpoints on time, and a saved end when a run is told to stop.

A signal or a time limit reaches every rank at another moment, so a rank only notes it. About twice
a second all ranks meet after the same update, `due`, and decide together. Between two meetings an
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
GROWTH = 8  # the most by which the number of updates between two meetings grows at once


class Listener:
    """Notes signals that ask a run to stop. told: the name of the last one, "" before any."""

    told = ""

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Note signals that ask to stop, while the context lasts; only in the main thread."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        # The shell ignores Ctrl-C for its background jobs; so does the run.
        deaf = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
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

    def _hear(self, number: int, frame: object) -> None:
        if number == signal.SIGINT and self.told:  # a second Ctrl-C stops at once
            raise KeyboardInterrupt
        self.told = signal.Signals(number).name


class Keeper:
    """Saves checkpoints of one run in `folder`, and stops it at a signal or at a time limit.

    The run is saved before it stops. every_s, every_steps: seconds and updates between two
    checkpoints (both None: save only before a stop). record: the run file on rank 0. limit_s: the
    seconds after began_s, which is a time of the clock `monotonic`, now by default. listener: hears
    the signals; those that it heard before count.
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
        began_s: float | None = None,
        listener: Listener | None = None,
    ) -> None:
        self.fleet, self.record, self.folder = fleet, record, folder
        self.every_s, self.every_steps = every_s or math.inf, every_steps
        self.limit_s = limit_s or math.inf
        self.due = math.inf  # t of the next meeting
        self.listener = listener or Listener()
        self._saved_s = monotonic()
        self._began_s = self._saved_s if began_s is None else began_s

    def start(self, begun: int, w: Array, monitor: Monitor, parts: Mapping[str, Part]) -> None:
        """Set what is saved: the weights w [L, d] and the parts. `begun` updates are made already.

        monitor: the part that has the clock.
        """
        self.w, self.monitor, self.parts = w, monitor, parts
        self.saved, self._met, self._met_s, self._stride = begun, begun, monotonic(), 1
        self._plan(begun)

    def visit(self, t: int) -> None:
        """Meet after update t: save if it is time, and stop if any rank was told to. Collective.

        Every rank raises Interrupted if the run stops.
        """
        self.monitor.computed()
        now = monotonic()
        late = now - self._began_s >= self.limit_s
        votes = np.array(
            [
                bool(self.listener.told) or late,
                now - self._saved_s >= self.every_s,
                (now - self._met_s) / (t - self._met),
            ]
        )
        self.fleet.world.Allreduce(MPI.IN_PLACE, votes, MPI.MAX)
        self.monitor.met()
        stop, overdue, step_s = votes
        self._stride = max(1, min(GROWTH * self._stride, int(MEET_S / max(step_s, 1e-9))))
        if stop or overdue or (self.every_steps and t % self.every_steps == 0):
            self.save(t)
        if stop:
            reasons = self.fleet.world.allgather(self.listener.told or late * "the time limit")
            by = next(filter(None, reasons))
            raise Interrupted(
                f"stopped by {by} after step {t}, saved in {self.folder}; the same command with "
                "`resume` resumes it",
                by,
                t,
            )
        self._met, self._met_s = t, monotonic()
        self._plan(t)

    def save_soon(self) -> None:
        """Save at the next meeting; enough on one rank."""
        self._saved_s = -math.inf

    def save(self, t: int) -> None:
        """Write a checkpoint after update t. Collective."""
        self.monitor.computed()
        state = {name: part.state_dict() for name, part in self.parts.items()} | {
            "weights": {"w": self.w}
        }
        if self.fleet.rank > 0:  # what the average keeps is the same on all ranks, but for rows
            kept = state["combine"]
            state["combine"] = {name: x for name, x in kept.items() if len(x.shape) == 2}
            state["averaging"].pop("wire_base", None)  # w̃, alike on all ranks
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
