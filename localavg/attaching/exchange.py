"""The exchange of gradients in a user's loop, for sync and qsgd: at the steps of the optimisers."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

from localavg.algorithms.base import Exchange
from localavg.attaching.covered import parts as parts_of
from localavg.attaching.gradients import Gradients, Steps
from localavg.attaching.log import Log
from localavg.attaching.meetings import Meetings
from localavg.attaching.place import Place
from localavg.interfaces import Transport
from localavg.parallel.places import What
from localavg.scope import Scope


class Exchanging:
    """Exchanges the gradients before each optimiser's step, or all of them when the user asks.

    Other algorithms than sync and qsgd do nothing here. watching: makes the context of an exchange
    in an optimiser's step.
    """

    def __init__(
        self,
        exchange: Exchange,
        transport: Transport,
        gradients: Gradients,
        meetings: Meetings,
        log: Log | None,
        place: Place,
        watching: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self.exchange, self.transport, self.gradients = exchange, transport, gradients
        self.place, self.watching = place, watching
        self.meetings, self.agreement, self.log = meetings, meetings.agreement, log
        asked = meetings.asked
        if asked.stepped:
            parts = parts_of(dict(asked.model.named_parameters()), asked.optimizers)
            meetings.steps = Steps(asked.optimizers, parts, self._before_step)

    def everything(self) -> Scope:
        """Exchange all gradients of the coming update. Return who exchanged."""
        if scope := self.exchange.at(self.agreement.t + 1):
            self.agreement.refuse_detached()
            self._exchange(self.gradients.everyone)
            self.gradients.fresh = self.gradients.everyone
        return scope

    def made(self) -> Scope:
        """Check that the update exchanged all gradients, and that all ranks made the same steps."""
        steps, gradients, t = self.meetings.steps, self.gradients, self.agreement.t
        if not (scope := self.exchange.at(t)) or steps is None:
            return Scope.NONE
        if self.log is not None:
            self.log.computed()
        self.meetings.fault = steps.fault or gradients.missing(t)
        self.meetings.meet(What.STEP, mark=steps.made)
        self.meetings.leave()
        if self.log is not None:
            self.log.exchanged(t)
        gradients.done = gradients.fresh = steps.made = 0
        return scope

    def _before_step(self, i: int, closure: bool) -> None:
        """Exchange the gradients of optimiser i before its step, unless `everything` did it."""
        if not self.exchange.at(self.agreement.t + 1) or self.agreement.detached:
            return
        if closure:
            self.meetings.fault = (
                "attach: sync and qsgd exchange gradients before optimizer.step(closure) makes "
                "them; call backward() first and step() without a closure"
            )
        if closure or not self.gradients.used(i):
            with self.watching(), self.place.here():
                self._exchange(1 << i)

    def _exchange(self, which: int) -> None:
        """Exchange the gradients of these optimisers, given as bits, for the coming update."""
        gradients, t = self.gradients, self.agreement.t + 1
        gradients.gather_(which)
        if self.log is not None:
            self.log.exchanging(t)
        self.meetings.meet(What.EXCHANGE, update=t, mark=which, taking=gradients.taking)
        self.exchange.exchange_(gradients.columns(which), t, self.transport)
        gradients.row.store_()
        self.meetings.leave()
        gradients.done |= which
        if self.log is not None:
            self.log.met()
