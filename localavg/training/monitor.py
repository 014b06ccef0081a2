"""What is recorded while training: times, losses, evaluations of the averaged model, progress.

`recorder.py` has the times, the losses and the averages; for them the ranks exchange a few numbers
at every row of /train, about 100 times in a run.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping

from localavg.files.record import Record
from localavg.interfaces import Array, Transport
from localavg.parallel.device import numbers
from localavg.parallel.fleet import Fleet
from localavg.scope import Scope
from localavg.simulate.clock import Modelled, Synchronous
from localavg.training.ending import Diverged
from localavg.training.evaluate import Evaluator
from localavg.training.length import Length
from localavg.training.pace import Pace
from localavg.training.payload import Payload
from localavg.training.progress import Progress
from localavg.training.recorder import Recorder


class Monitor(Recorder):
    """Records one run.

    record: the run file on rank 0, None elsewhere; or a mirror of it, on all ranks. variance: what
    to record of the learners' variance. no: nothing; averages: S at every average; steps: in
    addition V_t of every period
    (adpsgd eq. 11), which takes one more mean of the weights per step. Its time is not in wall_s.
    ahead: the modelled clock of a run whose modelled time steers it; that of `record` lags behind.
    """

    def __init__(
        self,
        fleet: Fleet,
        transport: Transport,
        evaluator: Evaluator,
        record: Record | Modelled | None,
        length: Length,
        payload: Payload,
        variance: str = "no",
        ahead: Synchronous | None = None,
    ) -> None:
        super().__init__(fleet, transport, record, payload)
        self.ahead = ahead
        self.evaluator, self.length, self.variance = evaluator, length, variance
        self.due = min(length.log_every, length.eval_every)  # t of the next report
        writes = record is not None and fleet.rank == 0
        self.progress = Progress(length.T) if writes else None

    def start(self, begun: int, w: Array) -> None:
        """Evaluate the weights if the run is new (begun = 0), then start the clock on all ranks."""
        before = list(self.clock.seconds.values())
        if not begun:
            self._evaluate(0, w)
        self.fleet.world.Barrier()
        self.clock.start(before)

    def now_s(self) -> float:
        """Return the seconds of the run up to its last lap, modelled if it is steered by them."""
        return self.ahead.wall_s if self.ahead else self.clock.wall_s

    def pace(self, modelled: Synchronous | None = None) -> Pace:
        return super().pace(modelled or self.ahead)

    def averaged(
        self,
        t: int,
        scope: Scope,
        S: float = math.nan,
        begun: int | None = None,
        travelled_s: float = 0.0,
    ) -> None:
        super().averaged(t, scope, S, begun, travelled_s)
        if self.ahead:
            self.ahead.meet(scope, t if begun is None else begun, t)

    def drifted(self, w: Array) -> None:
        """Record Var[W_k], the variance of the learners' weights before update k + 1.

        It is 0 right after an average.
        """
        self.computed()
        self.fleet.world.Barrier()
        self.met()
        variance = self.transport.variance(w)
        self.transport.take_spread_s()  # it is outside, and no part of the next average
        self.averages.drifted(variance, self.clock.lap("outside"))

    def objective(self, t: int, w: Array) -> float:
        """Return F at w [d] over all training data, for the schedule that it steers.

        This is a part of the algorithm, so its time is in wall_s.
        """
        F = self.evaluator.objective(w, self)
        self.clock.lap("compute")
        if not math.isfinite(F):
            raise Diverged(f"the objective after step {t} is not finite")
        return F

    def report(self, t: int, gamma: float, w: Array) -> None:
        """Write a row of /train, and a row of /eval when it is time. Collective.

        Every rank raises Diverged if a loss was not finite.
        """
        length = self.length
        loss, where = self.compare(t)
        if where is not None:
            raise Diverged(
                f"the loss at step {where[0]} of learner {where[1]} is not finite (step size now "
                f"{gamma:g})"
            )
        samples = t * self.working * length.B
        self.write(t, t / length.epoch, samples, gamma, loss)
        if self.progress is not None:
            self.progress.step(t, loss, samples / self.wall_s)
        evaluating = t == length.T or t % length.eval_every == 0
        following = (t + n - t % n for n in (length.log_every, length.eval_every))
        self.due = min(length.T, *following)
        self.clock.lap("compute")
        if evaluating:
            self._evaluate(t, w, self.wall_s)

    def summary(self) -> str:
        """Return one line about the time: shares of the wall clock, means over the ranks."""
        wall_s = self.wall_s
        compute, data, communicate, wait = 100 * self.split / wall_s
        samples = self.length.T * self.working * self.length.B
        text = (
            f"{wall_s:.1f} s, {samples / wall_s:,.0f} samples/s: compute {compute:.0f} %, "
            f"data {data:.0f} %, communicate {communicate:.0f} %, wait {wait:.0f} %"
        )
        diagnosis = f"; V_t took {self.averages.diagnosis_s:.1f} s more"
        return text + (diagnosis if self.variance == "steps" else "")

    def _evaluate(self, t: int, w: Array, wall_s: float = 0.0) -> None:
        """Evaluate the averaged model w̄ of w [L, d], and write a row of /eval."""
        row = self.evaluator.row(self.transport.mean(w))
        # Before T, the losses that follow show which learner diverged.
        if t == self.length.T and not math.isfinite(row["train_loss"]):
            raise Diverged(f"the averaged model's loss after step {t}, the last, is not finite")
        if self.record is not None:
            self.record.append("eval", t=t, epoch=t / self.length.epoch, wall_s=wall_s, **row)
        if self.progress is not None:
            self.progress.evaluated(t, row["train_loss"], row["test_accuracy"])
        self.clock.lap("outside")

    def still(self) -> Monitor:
        """Return a copy whose `state_dict` stays as it is now, without the losses."""
        still = copy.copy(self)
        still.clock, still.averages, still.losses = self.clock.still(), self.averages.still(), []
        still.split = self.split.copy()
        return still

    def state_dict(self) -> dict[str, object]:
        """Return the state with which a resumed run records the same as an uninterrupted one.

        The losses have one row per learner; the rest is this rank's.
        """
        averages = self.averages.state_dict()
        last = averages.pop("last")
        return {
            # [L, updates since the last report]
            "losses": numbers(self.losses).reshape(-1, self.fleet.L).T,
            "seconds": list(self.clock.seconds.values()),
            "meetings": self.clock.meetings,
            "split": self.split,
            **averages,
            "t": [self.due, self.reported, last],
        }

    def load_state_dict(self, state: Mapping[str, Array]) -> None:
        """Resume from `state`."""
        self.losses[:] = state["losses"].T.ravel().tolist()
        self.clock.start(state["seconds"].tolist())
        self.wall_s = self.clock.wall_s  # which the next report measures anew, if there is one
        self.clock.meetings[:] = state["meetings"].tolist()
        self.split[:] = state["split"]
        self.due, self.reported, last = state["t"].tolist()
        self.averages.load_state_dict({**state, "last": last})

    def close(self) -> None:
        """End the progress bar."""
        if self.progress is not None:
            self.progress.close()
