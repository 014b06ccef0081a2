"""What `attach` returns: it averages the model, and exchanges gradients, at the user's calls."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

from localavg.attaching.around import unfinished
from localavg.attaching.asked import CONTINUE, Asked
from localavg.attaching.checks import diverged, tell_no_update
from localavg.attaching.copies import Copy
from localavg.attaching.log import Log
from localavg.attaching.parts import lay_out
from localavg.attaching.recovery import Now, Recovery, outlived
from localavg.attaching.saved import check_state, load_, saved, tell_other_sums
from localavg.attaching.state import step_size
from localavg.errors import UserError
from localavg.interfaces import UNTIMED, Settings
from localavg.parallel.fleet import Fleet
from localavg.parallel.places import What
from localavg.scope import Scope

if TYPE_CHECKING:
    from torch import Tensor


class Averager:
    """What `attach` returns.

    scope: who averaged weights or gradients at the last step. algorithm: a copy of the algorithm
    that was given. fleet: the one that was given, or that of the last Recovered.
    """

    def __init__(self, asked: Asked) -> None:
        import torch

        torch.set_num_threads(min(asked.fleet.threads, torch.get_num_threads()))
        self.model, self.optimizers = asked.model, asked.optimizers
        self._asked = asked
        self._log: Log | None = None
        # of fleets whose ranks died: a message that failed may still read their rows
        self._old: list[object] = []
        self._recovery = None
        if asked.on_failure == CONTINUE:
            self._recovery = Recovery(asked, self._now, self.state_dict, self._go_back)
        self._lay_out(asked.fleet)
        with self._place.here():
            self._averaging.begin(0, math.nan)
        if self._recovery is not None:
            self._recovery.start()

    def _lay_out(self, fleet: Fleet) -> None:
        """Begin on the ranks of `fleet`, with the weights of its first rank. Collective."""
        self._start = 0  # t at which the period began
        self.scope = Scope.NONE
        self._gamma = step_size(self.optimizers)  # γ of the last update
        parts = lay_out(
            self._asked, fleet, self._log, self.watching, self._recovery, again=bool(self._old)
        )
        (
            self.fleet, self.algorithm, self._place, self.transport, self.flat, self._payload,
            self._log, self._feedback, self._meetings, self._exchanging, self._around,
            self._averaging, self._look,
        ) = parts  # fmt: skip
        self._agreement, self._laps = self._meetings.agreement, self._log or UNTIMED
        if self._log is not None:
            self._agreement.ended = self._log.end
        self._agreement.guard(self)

    def __repr__(self) -> str:
        return (
            f"Averager({self.algorithm}, t={self.t}, period={self.period}, scope={self.scope.name})"
        )

    @property
    def t(self) -> int:
        """The number of local updates so far."""
        return self._agreement.t

    @property
    def period(self) -> int:
        """Local updates since the last average; right after an average, since the one before it."""
        return self.t - self._start

    @property
    def variance(self) -> float:
        """S of the parameters at the last average, NaN if the algorithm does not need it.

        adpsgd Alg. 2, line 11.
        """
        return self._around.variance

    @property
    def participates(self) -> bool:
        """Whether this rank works in the present round; else the next average drops its updates."""
        return self._averaging.at_work != []

    @outlived
    def exchange(self) -> Scope:
        """Exchange all gradients of this update, for sync and qsgd; other algorithms do nothing.

        Call it after backward() and before the step of a gradient scaler, so that all ranks find
        the same gradients and skip the same steps. The optimiser's step does not exchange again.
        Return who exchanged.
        """
        self._copy_first()
        with self._place.here():
            return self._exchanging.everything()

    @outlived
    def step(self, loss: float | Tensor | None = None) -> Scope:
        """Average if it is time; call right after every optimizer.step().

        loss: the loss of this update on this rank, for the log, and for adacomm, which needs it.
        Return who averaged: Scope.NONE, CLUSTER, WORLD, NEIGHBOURS, or Scope(2) and so on for
        clusters of higher levels.
        """
        self._agreement.refuse_detached()
        if self._look.on:
            raise UserError(
                "attach: averager.step() inside averaged(), whose end brings the weights from "
                "before it back; train outside of it"
            )
        if not self.participates:  # its optimiser may have made no step
            self._copy_first()
        with self._place.here():
            kept = self._feedback.noted(loss if self.participates else 0.0)
            if self.scope:
                self._start = self.t
            self._agreement.t += 1
            self._gamma = step_size(self.optimizers)
            exchanged = self._exchanging.made()
            scope = self._averaging.average_(self.t, self._gamma)
            self.scope = scope or exchanged
            if exchanged:
                self._averaging.equal_after = self.t
            if self._log is not None:
                self._log.step(self.t, self.scope, self._gamma, kept)
            if self._recovery is not None:
                self._recovery.met()
        return self.scope

    @outlived
    def finish(self) -> Scope:
        """Make all models equal to their average; call after the last update.

        If the model is not finite then, rank 0 prints it, and the log ends as failed. Return who
        averaged, Scope.NONE if the models were equal already.
        """
        with self._place.here():
            return self._finish()

    def _finish(self) -> Scope:
        self._meet(What.FINISH)
        self._laps.met()
        scope = Scope.NONE
        if unfinished(self.algorithm, self.scope, self.t):
            if self.scope:
                self._start = self.t
            scope = self.scope = self._averaging.average_(self.t, self._gamma, last=True)
        self.flat.load_()
        scope = self._averaging.finish_() or scope
        self.flat.store_()
        if self._log is not None:
            self._log.row(self.t, self._gamma)
        tell_no_update(self.t, self.fleet.rank)
        why = diverged(self.flat.w[0, : self.flat.d_trained], self.t, self.fleet.rank)
        if self._log is not None:
            self._log.end("failed" if why else "finished", why)
        if self._recovery is not None:
            self._recovery.sure()
        self._agreement.leave()
        self._agreement.finished = self.t
        return scope

    def averaged(self) -> AbstractContextManager[None]:
        """Give the model the average of all learners, w̄, while the context lasts. Collective.

        The model has its own weights again after it.
        """
        return self._look.averaged()

    def watching(self) -> AbstractContextManager[None]:
        """Return a context for meetings of your own, such as averager.fleet.world.allgather(…).

        With on_failure="continue" it raises Recovered where they fail because a rank died. Leave
        out mpi4py's reductions of objects (allreduce, reduce, scan): they may wait for ever then.
        """
        return nullcontext() if self._recovery is None else self._recovery.watching()

    def evaluated(self, **row: float) -> None:
        """Write a row of /eval to the log: train_loss, test_accuracy, … of the averaged model."""
        if self._log is not None:
            self._log.evaluated(self.t, row)

    @outlived
    def payload_bytes(self) -> tuple[int, int]:
        """Return the bytes of all ranks at the last step: (in nodes, across). Collective."""
        self._meet(What.BYTES)
        began = self.t if self.algorithm.exchange.at(self.t) else self._around.began
        mine = self._payload.handed_over(began, self.scope) if self.scope else (0, 0)
        within, across = zip(*self.fleet.world.allgather(mine), strict=True)
        self._agreement.leave()
        self._laps.met()
        return sum(within), sum(across)

    @outlived
    def state_dict(self) -> dict[str, object]:
        """Return what a restart needs in addition to the model and the optimiser.

        Save all three on every rank: between averages they differ from rank to rank.
        """
        self._agreement.saved = self.t
        about: dict[str, object] = {"P": self.fleet.P, "rank": self.fleet.rank}
        about |= {"start": self._start, "variance": self.variance}
        about |= {"scope": self.scope.kind, "level": int(self.scope)}
        about |= {"gamma": self._gamma, "feedback": self._feedback.state_dict()}
        with self._place.here():
            parts = saved(self.algorithm, self.flat, self.transport.name, self._averaging)
        return {"t": self.t, **about, **parts}

    def load_state_dict(self, state: Settings) -> None:
        """Resume from `state`, which this rank's averager returned in a job of as many ranks.

        Raises UserError for a state of another rank, number of ranks, algorithm or model.
        """
        check_state(state, self.algorithm, self.flat, self.fleet)
        if self.fleet.rank == 0:
            tell_other_sums(state, self.transport.name)
        self._load(state)
        if self._recovery is not None:
            self._recovery.copies.forget()
        if self._log is not None:
            self._log.resume(self.t, last=self.t if self.scope else self._start)

    def _load(self, state: Settings) -> None:
        """Set everything but the model and the optimisers to a state that fits."""
        self._agreement.t = self._agreement.saved = state["t"]
        self._start = state["start"]
        self.scope = Scope.recorded(state["scope"], state.get("level", 1))
        self._around.variance, self._around.began = state["variance"], state["t"]
        if self.scope is Scope.WORLD:
            self._averaging.equal_after = self.t
        self._gamma = state.get("gamma", self._gamma)
        self._feedback.load_state_dict(state.get("feedback", {}))
        if self._averaging.pace is not None:
            self._averaging.pace.begin(self.t)
        with self._place.here():
            load_(state, self.algorithm, self.flat, self._averaging)

    def _copy_first(self) -> None:
        """Copy the rank before its first update, where ranks may die."""
        if self._recovery is not None and self._recovery.lacking:
            self._recovery.copy()

    def _now(self) -> Now:
        """Return what the recovery needs."""
        met = self.scope in (Scope.WORLD, Scope.NEIGHBOURS)
        point = self.t == 0 or self._averaging.at_point(self.t, met)
        return Now(self.fleet, self._agreement, point, self.flat, self._averaging, self._log)

    def _go_back(self, fleet: Fleet, copy: Copy) -> None:
        """Go on from a copy, on the ranks of `fleet`. Collective over them."""
        self._old += [self.flat, self.transport, self._exchanging, self._averaging]
        if self._log is not None and copy.log is not None:
            self._log.back_to(copy.log, fleet, copy.t)
        self._lay_out(fleet)
        copy.restore_(self.model, self.optimizers, self.flat)
        assert self._recovery is not None, "it goes back"
        state = self._recovery.copies.state(copy, fleet, self._averaging.wired)
        self._load(state)
        self._meetings.begin()

    def _meet(self, what: What) -> None:
        """Agree with the others on what comes next; what was before it counts as computing."""
        self._laps.computed()
        self._meetings.meet(what)
