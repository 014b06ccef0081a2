"""The run file of a user's own loop."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from copy import copy
from typing import Any

from localavg import algorithms
from localavg.algorithms.base import Algorithm
from localavg.attaching.asked import CONTINUE, Asked
from localavg.attaching.place import Place
from localavg.attaching.state import as_text
from localavg.errors import UserError
from localavg.files.mirror import Mirror
from localavg.files.provenance import provenance
from localavg.files.record import Record
from localavg.interfaces import Transport
from localavg.parallel.abort import on_exception
from localavg.parallel.fleet import Fleet
from localavg.scope import Scope
from localavg.training import header
from localavg.training.payload import Payload
from localavg.training.recorder import Recorder

SPACING = 100  # a row of /train comes when t has grown by 1 / SPACING, as 100 rows of a run do


class Log(Recorder):
    """Writes what `localavg train` writes, as far as a user's loop shows it.

    A row of /train follows the first average of everyone from `due` on: then all ranks are here.
    The length of the run is not known, so the rows are 1 % of t apart. What the user's code does
    between two calls of the averager counts as computing.
    """

    def __init__(
        self, asked: Asked, place: Place, transport: Transport, payload: Payload, d: int
    ) -> None:
        fleet = asked.fleet
        about = header.hosts(fleet, transport) | header.gpus(fleet, place.device)
        config = _config(asked, place, d)
        file = fleet.together(
            lambda: (
                Record.create(asked.log or "", config, {**provenance(), **about})
                if fleet.rank == 0
                else None
            )
        )
        record = Mirror(fleet, file) if asked.on_failure == CONTINUE else file
        super().__init__(fleet, transport, record, payload)
        self.file, self.end = record, End(record)  # `end` does not keep the rest alive
        on_exception(self.end.failed)
        self.due, self._noted = 1, 0  # t of the next row, and of the last exchange of gradients
        self._rows, self._examples = (_number(asked.config, x) for x in ("rows", "batch_size"))
        self._path = os.path.abspath(asked.log or "")
        self.counts: Mapping[str, int] = {}  # of a copy: the rows of each table
        self._before = 0, 0.0, 0.0  # t of the last loss of ranks, and samples and epochs there
        fleet.world.Barrier()
        self.clock.start()

    def exchanging(self, t: int) -> None:
        """Record what was computed before an exchange of some gradients of update t."""
        if self._noted == t:
            self.computed()
        else:
            self.begin_average(t, Scope.WORLD)
        self._noted = t

    def exchanged(self, t: int) -> None:
        """Record that all gradients of update t were exchanged, in one meeting or in several.

        The last one has just ended.
        """
        self.met()
        self.averages.note(t, Scope.WORLD, math.nan, range(self._begun, len(self.clock.meetings)))

    def step(self, t: int, scope: Scope, gamma: float, loss: Any) -> None:
        """Record update t and its loss: NaN without one, 0 where this rank rests.

        Collective where everyone averaged, or neighbours did, and a row is due.
        """
        self.losses.append(loss)
        if scope in (Scope.WORLD, Scope.NEIGHBOURS) and t >= self.due:
            self.row(t, gamma)

    def resume(self, t: int, last: int) -> None:
        """Go on after update t of an earlier program, whose last exchange came after `last`."""
        self.losses.clear()
        self.reported, self.due = t, t + 1
        self.averages.resume(last)

    def row(self, t: int, gamma: float) -> None:
        """Write a row of /train, unless t has one, and the rows of /averages. Collective."""
        new = t > self.reported
        self.computed()
        self.averages.count()
        self.met()
        loss, _ = self.compare(t)
        if new:
            self.write(t, self._epoch(t), int(self._samples(t)), gamma, loss)
        self.due = t + max(1, t // SPACING)
        self.clock.lap("compute")

    def evaluated(self, t: int, row: Mapping[str, float]) -> None:
        """Write a row of /eval, on the rank that writes."""
        if self.file is not None:
            about = {"t": t, "epoch": self._epoch(t), "wall_s": self.clock.wall_s}
            self.file.append("eval", **{**about, **row})

    def _epoch(self, t: int) -> float:
        """Return passes over the data, NaN if `config` does not say what they take."""
        if not self._rows or not self._examples:
            return math.nan
        before, _, epochs = self._before
        return epochs + (t - before) * self.fleet.P * self._examples / self._rows

    def _samples(self, t: int) -> float:
        """Return the training examples so far, 0 if `config` does not say an update's."""
        before, samples, _ = self._before
        return samples + (t - before) * self.working * self._examples

    # ---------------------------------------------------------------------- where ranks die

    def still(self) -> Log:
        """Return a copy that stays as it is now, for `back_to`."""
        still = copy(self)
        still.clock, still.averages = self.clock.still(), self.averages.still()
        still.losses, still.split = [*self.losses], self.split.copy()
        still.counts = self.file.counts() if isinstance(self.file, Mirror) else {}
        return still

    def back_to(self, then: Log, fleet: Fleet, t: int) -> None:
        """Go back to what the log was after update t, and go on with the ranks of `fleet`.

        Call `move` next. Collective over these ranks. Raises UserError on all of them if the new
        first rank cannot write the file.
        """
        assert isinstance(self.file, Mirror), "only such a log outlives ranks"
        samples, epochs = then._samples(t), then._epoch(t)
        vars(self).update(vars(then.still()))
        self._before = t, samples, epochs
        mirror = self.file.back_to(fleet, then.counts)
        fleet.together(lambda: mirror.take_over(self._path) if fleet.rank == 0 else None)
        self.end.written = False
        self.clock.start([*self.clock.seconds.values()])

    def move(self, fleet: Fleet, transport: Transport, payload: Payload) -> None:
        """Go on with other ranks and their rows. Collective."""
        self.fleet, self.transport = fleet, transport
        self.working = payload.algorithm.participants.working
        self.averages.move(fleet, payload)

    def lost(self, seconds: float) -> None:
        """Count the seconds since the last average as a meeting of all ranks, and a long one."""
        self.clock.start([*self.clock.seconds.values()])
        self.clock.seconds["communicate"] += seconds
        self.clock.meetings.append(seconds)


class End:
    """Writes how the run ended, on the rank that writes. The first end counts, or `finished`."""

    def __init__(self, file: Record | None) -> None:
        self.file, self.written = file, False

    def __call__(self, status: str, why: str = "") -> None:
        """Write the status, and why the run did not finish."""
        if self.file is not None and (status == "finished" or not self.written):
            self.written = True
            self.file.finish(status, **({"failure": why} if why else {}))

    def failed(self, e: BaseException) -> None:
        """Write that an exception that nobody caught ended the run."""
        stopped = isinstance(e, KeyboardInterrupt)
        why = str(e) if isinstance(e, UserError) else f"{type(e).__name__}: {e}"
        with suppress(UserError):  # the first error counts, not one that follows from it
            self("interrupted" if stopped else "failed", why)


def _number(config: Mapping[str, object], name: str) -> float:
    """Return a setting that is a number; 0 if it is not there."""
    value = config.get(name)
    return value if isinstance(value, int | float) else 0


def _config(asked: Asked, place: Place, d: int) -> dict[str, object]:
    """Return /config: what `attach` knows of the run, and what the user adds."""
    first = asked.optimizers[0] if asked.optimizers else None
    return {
        "algorithm": asked.algorithm.name or str(asked.algorithm),
        **_options(asked.algorithm),
        "learners": asked.fleet.P,
        "problem": "network",
        "model": type(asked.model).__name__,
        "d": d,
        "optimizer": "none" if first is None else type(first).__name__.lower(),
        "lr": None if first is None else float(first.param_groups[0]["lr"]),
        "state": as_text(asked.state),
        "statistics": asked.statistics,
        "master": asked.master,
        "seed": asked.seed,
        "device": place.device.name,
        "out": os.path.abspath(asked.log or ""),
        **asked.config,
    }


def _options(algorithm: Algorithm) -> dict[str, object]:
    """Return the arguments of the algorithm's function, each as text, a number or None."""
    found = {}
    for name, value in algorithms.filled_in(algorithm.options).items():
        if isinstance(value, Mapping):
            value = value.items()
        if isinstance(value, Iterable) and not isinstance(value, str):
            value = ",".join(f"{start}:{K}" for start, K in value)
        found[name] = value
    return found
