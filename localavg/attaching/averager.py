"""What `attach` returns: it averages the model, and exchanges gradients, at the user's calls."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import deepcopy
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from localavg.attaching.checks import CONTINUE, Asked, check_same, diverged
from localavg.attaching.copies import Copy
from localavg.attaching.exchange import Exchanging
from localavg.attaching.feedback import Feedback
from localavg.attaching.log import Log
from localavg.attaching.meetings import Meetings
from localavg.attaching.place import place_of
from localavg.attaching.recovery import Now, Recovery, outlived
from localavg.attaching.row import Row, averaged, by_type
from localavg.attaching.saved import check_state, load_, saved, tell_other_sums
from localavg.attaching.start import Rows, start
from localavg.attaching.state import step_size
from localavg.errors import UserError
from localavg.interfaces import UNTIMED, Array, Settings
from localavg.parallel.fleet import Fleet
from localavg.parallel.places import What
from localavg.scope import Scope
from localavg.training.averaging import Averaging
from localavg.training.delayed import Delayed
from localavg.training.payload import Payload

if TYPE_CHECKING:
    from torch import Tensor


class Averager:
    """What `attach` returns.

    scope: who averaged weights or gradients at the last step. variance: S of the parameters at the
    last average (adpsgd Alg. 2, line 11), NaN if the algorithm does not need it. algorithm: a copy
    of the algorithm that was given. fleet: the one that was given, or that of the last Recovered.
    """

    def __init__(self, asked: Asked) -> None:
        import torch

        torch.set_num_threads(min(asked.fleet.threads, torch.get_num_threads()))
        self.model, self.optimizers, self.objective = asked.model, asked.optimizers, asked.objective
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

    def _lay_out(self, fleet: Fleet) -> None:
        """Begin on the ranks of `fleet`, with the weights of its first rank. Collective."""
        import torch

        # the algorithm of self._asked never begins
        asked = replace(self._asked, fleet=fleet, algorithm=deepcopy(self._asked.algorithm))
        self.fleet, self.algorithm = fleet, asked.algorithm
        self._evaluating = False  # whether the model holds w̄ for a while
        self._start = 0  # t at which the period began
        self._began = 0  # t after which the last average began
        self.scope, self.variance = Scope.NONE, math.nan
        self._gamma = step_size(self.optimizers)  # γ of the last update
        tensors = by_type(averaged(self.model, asked.statistics == "average"))
        check_same(fleet, tensors)
        first = next(iter(tensors.values()), torch.empty(0))
        self._place = place_of(first.device, fleet)
        self.algorithm.exchange.start(fleet.learners, asked.seed)
        self.algorithm.average.lay_out(fleet.learners, fleet.P, asked.seed)
        with self._place.here():
            self._set_up(asked, start(asked, tensors, self._place))

    def _set_up(self, asked: Asked, rows: Rows) -> None:
        """Make what works on these rows. Collective."""
        place, exchange = self._place, self.algorithm.exchange
        self.transport, background, self.flat, gradients, state = rows
        transport, travels = self.transport, gradients.row.d_trained
        carrier = background or transport
        self._payload = Payload(self.algorithm, carrier, self.flat, state, gradients=travels)
        if asked.log is not None and self._log is None:
            self._log = Log(asked, place, transport, self._payload, self.flat.size)
        elif self._log is not None:
            self._log.move(self.fleet, transport, self._payload)
        self._laps = self._log or UNTIMED
        self._feedback = Feedback(self.fleet, self._laps, self.algorithm, asked.log is not None)
        self._meetings = Meetings(asked, self.flat)
        self._exchanging = Exchanging(
            exchange, transport, gradients, self._meetings, self._log, place, self.watching
        )
        self._agreement = self._meetings.agreement
        if self._log is not None:
            self._agreement.ended = self._log.end
        self._agreement.guard(self)
        pieces = self.algorithm, transport, self.flat, state
        how: dict[str, Any] = {
            "objective": self._objective, "losses": self._feedback, "laps": self._laps,
            "pace": self._log.pace() if self._log else self._feedback.pace(transport.settle),
            "before": self._before, "after": self._after,
        }  # fmt: skip
        self._averaging = (
            Averaging(*pieces, **how)
            if background is None
            else Delayed(*pieces, background=background, begun=self._begun, **how)
        )

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
        if self._recovery is not None and self._recovery.lacking:
            self._recovery.copy()
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
        if self._evaluating:
            raise UserError(
                "attach: averager.step() inside averaged(), whose end brings the weights from "
                "before it back; train outside of it"
            )
        with self._place.here():
            kept = self._feedback.noted(loss if self.participates else 0.0)
            if self.scope:
                self._start = self.t
            self._agreement.t += 1
            self._gamma = step_size(self.optimizers)
            exchanged = self._exchanging.made()
            scope = self._averaging.average_(self.t, self._gamma)
            self.scope = scope or exchanged
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
        algorithm, exchanged = self.algorithm, self.algorithm.exchange.at(self.t)
        pieces = len(algorithm.average.pieces)
        # Something may not have averaged, or arrived, yet. What a wire has lost comes too, but an
        # outer optimiser must not make its step twice.
        averaged = self.scope is algorithm.schedule.final
        lost = algorithm.wire and not (averaged and algorithm.average.kept)
        late = algorithm.delay or lost or pieces > 1
        if not exchanged and (late or algorithm.schedule.final is not self.scope):
            if self.scope:
                self._start = self.t
            scope = self.scope = self._averaging.average_(self.t, self._gamma, last=True)
        self.flat.load_()
        scope = self._averaging.finish_() or scope
        self.flat.store_()
        if self._log is not None:
            self._log.row(self.t, self._gamma)
        why = diverged(self.flat.w[0, : self.flat.d_trained], self.t, self.fleet.rank)
        if self._log is not None:
            self._log.end("failed" if why else "finished", why)
        if self._recovery is not None:
            self._recovery.sure()
        self._agreement.leave()
        self._agreement.finished = self.t
        return scope

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Give the model the average of all learners, w̄, while the context lasts. Collective.

        The model has its own weights again after it.
        """
        pace = self._averaging.pace
        if pace is not None:
            with self._place.here():
                pace.pause()
        flat, own = self._averaged_()
        self._evaluating = True
        try:
            yield
        finally:
            self._evaluating = False
            with self._place.here():
                flat.restore_(own)
                if self._log is not None:
                    self.transport.settle()
                    self._log.clock.lap("outside")
                if pace is not None:
                    pace.go_on()

    @outlived
    def _averaged_(self) -> tuple[Row, list[Tensor]]:
        """Set the model to w̄. Return its row, and what was in it. Collective."""
        flat = self.flat
        with self._place.here():
            self._meet(What.AVERAGED)
            self._laps.met()
            own = flat.copied()
            flat.load_()
            flat.w[0] = self.transport.mean(flat.w)
            if self._recovery is not None:
                self._recovery.sure()
            flat.store_()
            self._agreement.leave()
        return flat, own

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
        began = self.t if self.algorithm.exchange.at(self.t) else self._began
        mine = self._payload.handed_over(began, self.scope) if self.scope else (0, 0)
        within, across = zip(*self.fleet.world.allgather(mine), strict=True)
        self._agreement.leave()
        self._laps.met()
        return sum(within), sum(across)

    def state_dict(self) -> dict[str, object]:
        """Return what a restart needs in addition to the model and the optimiser.

        Save all three on every rank: between averages they differ from rank to rank.
        """
        self._agreement.saved = self.t
        about: dict[str, object] = {"start": self._start, "variance": self.variance}
        about |= {"scope": self.scope.kind, "level": int(self.scope)}
        about |= {"gamma": self._gamma, "feedback": self._feedback.state_dict()}
        with self._place.here():
            parts = saved(self.algorithm, self.flat, self.transport.name, self._averaging)
        return {"t": self.t, **about, **parts}

    def load_state_dict(self, state: Settings) -> None:
        """Resume from `state`, which an averager with the same algorithm and model returned."""
        check_state(state, self.algorithm, self.flat)
        if self.fleet.rank == 0:
            tell_other_sums(state, self.transport.name)
        if self._recovery is not None:
            self._recovery.copies.forget()
        self._load(state)
        if self._log is not None:
            self._log.resume(self.t, last=self.t if self.scope else self._start)

    def _load(self, state: Settings) -> None:
        """Set everything but the model and the optimisers to a state that fits."""
        self._agreement.t = self._agreement.saved = state["t"]
        self._start = state["start"]
        self.scope = Scope.recorded(state["scope"], state.get("level", 1))
        self.variance, self._began = state["variance"], state["t"]
        self._gamma = state.get("gamma", self._gamma)
        self._feedback.load_state_dict(state.get("feedback", {}))
        if self._averaging.pace is not None:
            self._averaging.pace.begin(self.t)
        with self._place.here():
            load_(state, self.algorithm, self.flat, self._averaging)

    def _now(self) -> Now:
        """Return what the recovery needs."""
        equal = self.t == 0 or self.scope is Scope.WORLD
        return Now(self.fleet, self._agreement, equal, self.flat, self._log)

    def _go_back(self, fleet: Fleet, copy: Copy) -> None:
        """Go on from a copy, on the ranks of `fleet`. Collective over them."""
        self._old += [self.flat, self.transport, self._exchanging]
        if self._log is not None and copy.log is not None:
            self._log.back_to(copy.log, fleet, copy.t)
        self._lay_out(fleet)
        copy.restore_(self.model, self.optimizers, self.flat)
        self._load(deepcopy(copy.state))

    def _meet(self, what: What) -> None:
        """Agree with the others on what comes next; what was before it counts as computing."""
        self._laps.computed()
        self._meetings.meet(what)

    def _before(self, t: int, scope: Scope) -> None:
        """Do what comes before an average of the weights."""
        if self._log is not None:
            self._log.begin_average(t, scope)
        self._meetings.meet(What.AVERAGE, scope)
        self.flat.load_()
        if scope in (Scope.WORLD, Scope.NEIGHBOURS):
            self._meetings.warn_equal(t)

    def _begun(self, t: int, scope: Scope) -> None:
        """Do what comes after the copies of a delayed average."""
        self.flat.store_()
        self._agreement.leave()
        if self._log is not None:
            self._log.average_begun(t, scope)

    def _after(
        self, t: int, scope: Scope, S: float, begun: int | None = None, travelled_s: float = 0.0
    ) -> None:
        """Do what comes after an average of the weights."""
        self.flat.store_()
        self._agreement.leave()
        self.variance, self._began = S, t if begun is None else begun
        if self._log is not None:
            self._log.averaged(t, scope, S, begun, travelled_s)

    def _objective(self, t: int, w: Array) -> float:
        """Return F at the average, which every learner's model holds now."""
        assert self.objective is not None, "attach refuses such an algorithm without an objective"
        F = float(self.objective())
        self._laps.computed()
        total = sum(self.fleet.world.allgather(F))
        self._laps.met()
        return total / self.fleet.P
