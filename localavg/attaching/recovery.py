"""Outlive ranks that die in a user's own loop: the others go back to the last average of everyone.

    a call of the averager fails, as a rank has died
    revoke, abandon a delayed average, agree    all living ranks come here
    shrink; one learner on each rank that lives; restore its copy of the last average; agree
    raise Recovered

With delayed averages, fragments and gossip learners are never equal. `copies.py` says after which
updates a model is copied.

There are fewer learners then, because a model is one learner. `training/recover.py` does the same
for a run of the command, where the living ranks take over the learners of the dead.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from time import perf_counter
from typing import TYPE_CHECKING, Any, NamedTuple, ParamSpec, TypeVar

from localavg.attaching.asked import Asked
from localavg.attaching.copies import Copies, Copy, Shared, share
from localavg.attaching.log import Log
from localavg.attaching.row import Row
from localavg.errors import SharedError, UserError
from localavg.parallel import survive
from localavg.parallel.abort import on_exception
from localavg.parallel.agreement import AGAIN, Agreement
from localavg.parallel.fleet import Fleet
from localavg.training.averaging import Averaging
from localavg.training.recover import tell

if TYPE_CHECKING:
    from torch.nn import Module
    from torch.optim import Optimizer

P = ParamSpec("P")
T = TypeVar("T")

PLACE = "the recovery from the death of a rank after update {t}"
CATCH = (
    "the loop does not catch localavg.Recovered, so the job ends; catch it and go on from its t, "
    "as jobs/examples/survive.py does"
)


class Recovered(Exception):
    """Ranks died, and the averager went back to the last average of everyone on the others.

    Every living rank gets it from a call of the averager, or from the step of an optimiser that
    exchanges gradients. The averager and its model are as they were after update t, with one
    learner on each rank that lives. With `delay`, `fragments` or gossip learners differ then too.

    t: the number of updates that the model has. lost: the ranks that died, by their numbers before.
    fleet: the ranks that live, with new numbers; fleet.P learners, of which this rank has number
    fleet.rank.
    """

    def __init__(self, t: int, lost: list[int], fleet: Fleet, names: str) -> None:
        super().__init__(f"{names} died; all models are as after update {t}")
        self.t, self.lost, self.fleet = t, lost, fleet


class Now(NamedTuple):
    """The present state of an averager."""

    fleet: Fleet
    agreement: Agreement
    """which knows t"""
    point: bool
    """whether the model can be gone back to after update t"""
    flat: Row
    averaging: Averaging
    log: Log | None


class Recovery:
    """Keeps the last averages of everyone, and goes back to them when ranks die.

    now, state: return the averager's present state, and what it saves. go_back(fleet, copy): lays
    it out on the ranks of `fleet`, and sets it to a copy.

    The model is copied before the first step of a torch optimiser that trains it, as the user may
    load weights until then, and after each average of everyone; of gossip after each one.
    """

    def __init__(
        self,
        asked: Asked,
        now: Callable[[], Now],
        state: Callable[[], Mapping[str, Any]],
        go_back: Callable[[Fleet, Copy], None],
    ) -> None:
        from torch.optim import optimizer as torch_optimizer

        self.model, self.copies = asked.model, Copies(asked)
        self.now, self.state, self.go_back = now, state, go_back
        self._watching = False
        if not survive.survivors:
            survive.survivors.append(asked.fleet.world)
        on_exception(_ignored)
        # torch keeps this hook for ever; it must not keep the model
        mine = weakref.ref(self)

        def begin(optimizer: Optimizer, args: tuple, kwargs: dict) -> None:
            recovery = mine()
            if recovery is not None and recovery.lacking and _trains(optimizer, recovery.model):
                recovery.copy()

        torch_optimizer.register_optimizer_step_pre_hook(begin)

    def start(self) -> None:
        """Make room for the copies, once the averager is laid out. Collective."""
        now = self.now()
        self.copies.start(share(now.fleet, now.averaging.wired))

    @property
    def lacking(self) -> bool:
        """Whether there is no copy yet, and one can be made now."""
        now = self.now()
        return not self.copies.held and now.point and not now.agreement.detached

    def copy(self) -> None:
        """Copy the rank. No rank waits for another."""
        now = self.now()
        self.copies.copy(now.agreement.t, now.flat, self.state(), now.log)

    def met(self) -> None:
        """Copy the rank if it can be gone back to; then a delayed average may begin."""
        now = self.now()
        if now.point:
            self.copy()
        now.averaging.depart_()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Recover where ranks have died, and raise Recovered. One within another does nothing."""
        if self._watching:
            yield
            return
        self._watching, recovered = True, None
        try:
            with survive.noticing(self.now().fleet.world, (UserError,)):
                try:
                    yield
                except Recovered as done:
                    recovered = done
            if recovered is not None:
                raise recovered
        except survive.Lost:
            now = self.now()
            survive.revoke(now.fleet.made)
            now.agreement.watchdog.here = PLACE, now.agreement.t
            with survive.limited(now.fleet.world, AGAIN):
                now.averaging.abandon()
            survive.agreed(now.fleet.world, False)
            now.agreement.leave()
            raise self._recovered() from None
        finally:
            self._watching = False

    def sure(self) -> None:
        """Recover if a rank has died, and raise Recovered. Collective.

        A meeting in which a rank dies may end on the others without an error, but in wrong numbers.
        """
        now = self.now()
        if not survive.agreed(now.fleet.world, True):
            survive.revoke(now.fleet.made)
            raise self._recovered()

    def _recovered(self) -> Recovered:
        """Go back to the last average of everyone on the ranks that live. Collective over them.

        The job ends where that fails or takes too long.
        """
        at_s, before, t = perf_counter(), self.now().fleet, self.now().agreement.t

        def again(world: Any, made: list[Any]) -> tuple[Fleet, Copy, Shared, int, float]:
            self.now().agreement.abandon()
            self.now().averaging.abandon()
            fleet = Fleet(world, None, before.ranks_per_node, made)
            copy = self.copies.common(fleet)
            if copy is None:
                raise SharedError("there is no average of everyone yet to go back to")
            self.go_back(fleet, copy)
            shared = share(fleet, self.now().averaging.wired, copy.t)
            repeated, seconds = -fleet.least(copy.t - t), -fleet.least(copy.at_s - perf_counter())
            if (log := self.now().log) is not None:
                log.lost(seconds)
            self.now().averaging.depart_()
            return fleet, copy, shared, int(repeated), seconds

        fleet, copy, shared, repeated, seconds = survive.without_lost(
            before.world, before.made, again, AGAIN
        )
        self.copies.only(copy, shared)
        log = self.now().log
        file = None if log is None else log.file
        names = tell(file, before, fleet, copy.t, repeated, seconds, at_s)
        return Recovered(copy.t, survive.lost(before.world, fleet.world), fleet, names)


def outlived(call: Callable[P, T]) -> Callable[P, T]:
    """Make a method of an averager recover where ranks have died, if the averager does that."""

    @wraps(call)
    def outliving(*args: P.args, **how: P.kwargs) -> T:
        with args[0].watching():  # type: ignore[attr-defined]
            return call(*args, **how)

    return outliving


def _ignored(error: BaseException) -> None:
    """End the job for a Recovered that nobody caught."""
    if isinstance(error, Recovered):
        survive.give_up(error.fleet.world, str(error), shared=True, remedy=CATCH)


def _trains(optimizer: Optimizer, model: Module) -> bool:
    mine = {id(p) for p in model.parameters()}
    return any(id(p) in mine for group in optimizer.param_groups for p in group["params"])
