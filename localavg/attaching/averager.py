"""What `attach` returns: it averages the model, and exchanges gradients, at the user's calls."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from localavg.attaching.checks import Asked, check_same, diverged
from localavg.attaching.exchange import Exchanging
from localavg.attaching.feedback import Feedback
from localavg.attaching.log import Log
from localavg.attaching.meetings import Meetings
from localavg.attaching.place import place_of
from localavg.attaching.row import averaged, by_type
from localavg.attaching.saved import check_state, load_, saved, tell_other_sums
from localavg.attaching.start import Rows, start
from localavg.attaching.state import step_size
from localavg.errors import UserError
from localavg.interfaces import UNTIMED, Array, Settings
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
    of the algorithm that was given.
    """

    def __init__(self, asked: Asked) -> None:
        import torch

        fleet, algorithm = asked.fleet, asked.algorithm
        torch.set_num_threads(min(fleet.threads, torch.get_num_threads()))
        self.model, self.fleet, self.algorithm = asked.model, fleet, algorithm
        self.optimizers, self.objective = asked.optimizers, asked.objective
        self._evaluating = False  # whether the model holds w̄ for a while
        self._start = 0  # t at which the period began
        self._began = 0  # t after which the last average began
        self.scope, self.variance = Scope.NONE, math.nan
        self._gamma = step_size(self.optimizers)  # γ of the last update
        tensors = by_type(averaged(self.model, asked.statistics == "average"))
        check_same(fleet, tensors)
        first = next(iter(tensors.values()), torch.empty(0))
        self._place = place_of(first.device, fleet)
        algorithm.exchange.start(fleet.learners, asked.seed)
        algorithm.average.lay_out(fleet.learners, fleet.P, asked.seed)
        with self._place.here():
            self._set_up(asked, start(asked, tensors, self._place))

    def _set_up(self, asked: Asked, rows: Rows) -> None:
        """Make what works on these rows. Collective."""
        place, exchange = self._place, self.algorithm.exchange
        self.transport, background, self.flat, gradients, state = rows
        transport, travels = self.transport, gradients.row.d_trained
        carrier = background or transport
        self._payload = Payload(self.algorithm, carrier, self.flat, state, gradients=travels)
        self._log = None
        if asked.log is not None:
            self._log = Log(asked, place, transport, self._payload, self.flat.size)
        self._laps = self._log or UNTIMED
        self._feedback = Feedback(self.fleet, self._laps, self.algorithm, asked.log is not None)
        self._meetings = Meetings(asked, self.flat)
        self._exchanging = Exchanging(
            exchange, transport, gradients, self._meetings, self._log, place
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
        self._averaging.begin(0, math.nan)

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

    def exchange(self) -> Scope:
        """Exchange all gradients of this update, for sync and qsgd; other algorithms do nothing.

        Call it after backward() and before the step of a gradient scaler, so that all ranks find
        the same gradients and skip the same steps. The optimiser's step does not exchange again.
        Return who exchanged.
        """
        with self._place.here():
            return self._exchanging.everything()

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
        return self.scope

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
        self._agreement.leave()
        self._agreement.finished = self.t
        return scope

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Give the model the average of all learners, w̄, while the context lasts. Collective.

        The model has its own weights again after it.
        """
        flat, pace = self.flat, self._averaging.pace
        with self._place.here():
            if pace is not None:
                pace.pause()
            self._meet(What.AVERAGED)
            self._laps.met()
            own = flat.copied()
            flat.load_()
            flat.w[0] = self.transport.mean(flat.w)
            flat.store_()
            self._agreement.leave()
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

    def evaluated(self, **row: float) -> None:
        """Write a row of /eval to the log: train_loss, test_accuracy, … of the averaged model."""
        if self._log is not None:
            self._log.evaluated(self.t, row)

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
        self._agreement.t, self._start = state["t"], state["start"]
        self.scope = Scope.recorded(state["scope"], state.get("level", 1))
        self.variance, self._began = state["variance"], state["t"]
        self._gamma = state.get("gamma", self._gamma)
        self._feedback.load_state_dict(state.get("feedback", {}))
        if self._averaging.pace is not None:
            self._averaging.pace.begin(self.t)
        with self._place.here():
            load_(state, self.algorithm, self.flat, self._averaging)

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
        total = self.fleet.world.allreduce(F)
        self._laps.met()
        return total / self.fleet.P
