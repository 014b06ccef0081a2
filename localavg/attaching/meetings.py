"""Where the ranks of `attach` meet: they agree first, each with what is wrong on its own side."""

from __future__ import annotations

import gc
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from localavg.attaching.asked import CONTINUE, Asked
from localavg.attaching.covered import covered, foreign, uncovered
from localavg.attaching.gradients import Steps
from localavg.attaching.row import Row, averaged
from localavg.errors import UserError
from localavg.parallel.agreement import Agreement
from localavg.parallel.device import on_host
from localavg.parallel.places import NOBODY, Taking, What
from localavg.parallel.transport.mpi import digest
from localavg.scope import Scope

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

# of every module whose tensors are in the row of an averager, the last one's agreement
ATTACHED: WeakKeyDictionary[Module, Agreement] = WeakKeyDictionary()


def meet_again(model: Module) -> None:
    """Raise UserError on all ranks if only some of them attach this model again. Collective."""
    before = dict.fromkeys(ATTACHED[module] for module in model.modules() if module in ATTACHED)
    for agreement in before:
        if agreement.world and not agreement.detached:
            agreement.meet(What.ATTACH, agreement.t)
            agreement.leave()


def check_alone(asked: Asked) -> None:
    """Raise UserError if another model is attached that would not go on when ranks die, or this."""
    mine = {*asked.model.modules()}

    def others() -> bool:
        found = {a for module, a in ATTACHED.items() if module not in mine and a.at_work}
        return any(a.outlives or asked.on_failure == CONTINUE for a in found)

    if others():
        gc.collect()  # a model that nobody holds any more may be in a circle of references
    if others():
        raise UserError(
            f"attach: `on_failure = {CONTINUE}` takes one model, and another one is attached; "
            "attach one module that has both, as nn.ModuleList([model, other])"
        )


class Meetings:
    """The agreement of an averager, and the checks of its model and optimisers at every meeting.

    flat: the row with the model's tensors. steps: the steps of the optimisers, None where they do
    not matter. fault: what is wrong on this rank, "" if nothing is.
    """

    def __init__(self, asked: Asked, flat: Row) -> None:
        self.asked, self.fleet, self.flat = asked, asked.fleet, flat
        self.agreement = Agreement(
            asked.fleet,
            asked.algorithm.clusters,
            asked.warn_after,
            asked.hang_limit,
            outlives=asked.on_failure == CONTINUE,
        )
        self.steps: Steps | None = None
        self.fault = ""
        self._known = covered(asked.optimizers)
        self.begin()
        for module in asked.model.modules():
            if (before := ATTACHED.get(module)) is not None:
                before.detach()
            ATTACHED[module] = self.agreement

    def begin(self) -> None:
        """Take the present weights as those of the start, until learners differ."""
        self._first = digest(on_host(self.flat.w[0])) if self.fleet.P > 1 else None

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """What is averaged, by name."""
        return averaged(self.asked.model, self.asked.statistics == "average")

    def meet(
        self,
        what: What,
        scope: Scope = Scope.WORLD,
        update: int | None = None,
        mark: int = 0,
        taking: Taking = NOBODY,
    ) -> None:
        """Agree with the others on what comes next, on this update or the one that was made.

        Where weights meet, first move tensors that were replaced since then into the row. The walk
        through the model takes as long as many agreements, so an update of sync makes only one.
        """
        fault = self.fault
        if what not in (What.EXCHANGE, What.STEP):
            try:
                self.flat.adopt(self.tensors)
            except UserError as e:
                fault = fault or str(e)
        if self.steps is not None:
            fault = fault or self.steps.fault
            if what is not What.EXCHANGE:
                fault = fault or uncovered(self.asked.model, self._known)
        if what is not What.EXCHANGE:
            fault = fault or foreign(self.asked.model, self.asked.optimizers, self._known)
        t = self.agreement.t if update is None else update
        self.agreement.meet(what, t, scope, mark, fault, taking)

    def leave(self) -> None:
        """Note that the meeting is over."""
        self.agreement.leave()

    def warn_equal(self, t: int) -> None:
        """Print a line if all learners made the same updates, once they made some. Collective."""
        if self._first is None:
            return
        mine = digest(on_host(self.flat.w[0]))
        found = self.fleet.world.allgather((mine, mine == self._first))
        if all(unmoved for _, unmoved in found):
            return
        self._first = None
        if len({each for each, _ in found}) == 1 and self.fleet.rank == 0:
            print(
                f"localavg: all {self.fleet.P} models are equal to the bit after update {t}, so an "
                "average changes nothing: most often all ranks have the same seed and sampler; "
                "give each its own data, as by DistributedSampler(num_replicas=fleet.P, "
                "rank=fleet.rank)",
                file=sys.stderr,
                flush=True,
            )
