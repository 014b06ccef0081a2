"""A look at the average of all learners, between updates of a user's own loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING

from localavg.attaching.log import Log
from localavg.attaching.meetings import Meetings
from localavg.attaching.place import Place
from localavg.attaching.recovery import Recovery, outlived
from localavg.interfaces import Laps, Transport
from localavg.parallel.places import What
from localavg.training.pace import Pace

if TYPE_CHECKING:
    from torch import Tensor


class Look:
    """Gives the model the average of all learners, w̄, for a while.

    pace: what times the updates, which a look is not. watching: makes the context of a meeting. on:
    whether the model holds w̄ now.
    """

    def __init__(
        self,
        meetings: Meetings,
        transport: Transport,
        place: Place,
        log: Log | None,
        laps: Laps,
        pace: Pace | None,
        recovery: Recovery | None,
        watching: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self.meetings, self.transport, self.place = meetings, transport, place
        self.flat, self.log, self.laps, self.pace = meetings.flat, log, laps, pace
        self.recovery, self.watching, self.on = recovery, watching, False

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Give the model w̄ while the context lasts. Collective."""
        if self.pace is not None:
            with self.place.here():
                self.pace.pause()
        own = self.begin_()
        self.on = True
        try:
            yield
        finally:
            self.on = False
            with self.place.here():
                self.flat.restore_(own)
                if self.log is not None:
                    self.transport.settle()
                    self.log.clock.lap("outside")
                if self.pace is not None:
                    self.pace.go_on()

    @outlived
    def begin_(self) -> list[Tensor]:
        """Set the model to w̄, and return what was in its row. Collective."""
        flat = self.flat
        with self.place.here():
            self.laps.computed()
            self.meetings.meet(What.AVERAGED)
            self.laps.met()
            own = flat.copied()
            flat.load_()
            flat.w[0] = self.transport.mean(flat.w)
            if self.recovery is not None:
                self.recovery.sure()
            flat.store_()
            self.meetings.leave()
        return own
