"""What is recorded while training: times, losses, evaluations of the averaged model, progress.

For this the ranks exchange a few numbers at every row of /train, about 100 times in a run, and
nothing in between.

Times: every call in which ranks meet stands between two laps of the clock. The rank that comes last
to a meeting does not wait, so the least time of a meeting over the ranks is communication, and what
a rank spends there in addition is waiting.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from mpi4py import MPI

from localavg.files.record import Record
from localavg.interfaces import Array, Transport
from localavg.parallel.device import numbers
from localavg.parallel.fleet import Fleet
from localavg.scope import Scope
from localavg.simulate.clock import Modelled
from localavg.training.averages import Averages
from localavg.training.ending import Diverged
from localavg.training.evaluate import Evaluator
from localavg.training.length import Length
from localavg.training.payload import Payload
from localavg.training.progress import Progress
from localavg.training.stopwatch import Stopwatch


class Monitor:
    """Records one run.

    record: the run file on rank 0, None elsewhere. variance: what to record of the learners'
    variance. no: nothing; averages: S at every average; steps: in addition V_t of every period
    (adpsgd eq. 11), which takes one more mean of the weights per step. Its time is not in wall_s.
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
    ) -> None:
        self.fleet, self.transport, self.evaluator = fleet, transport, evaluator
        self.record, self.length, self.variance = record, length, variance
        self.clock = Stopwatch()
        self.averages = Averages(fleet, payload, writes=record is not None)
        # L scalars per update since the last report; a GPU's scalars stay on the GPU
        self.losses: list[float | Array] = []
        self.due = min(length.log_every, length.eval_every)  # t of the next report
        self.reported = 0  # t of the last one
        self._wall_s = 0.0  # at the last report, like the following a mean over the ranks
        # compute_s, data_s, communicate_s and wait_s so far
        self._split = np.zeros(4)
        self._begun = 0  # number of meetings before the average that is under way
        self.progress = Progress(length.T) if record is not None else None

    def start(self, begun: int, w: Array) -> None:
        """Evaluate the weights if the run is new (begun = 0), then start the clock on all ranks."""
        before = list(self.clock.seconds.values())
        if not begun:
            self._evaluate(0, w)
        self.fleet.world.Barrier()
        self.clock.start(before)

    def computed(self) -> None:
        """Wait until all queued work is done, and record the time that it took as computing."""
        self.transport.settle()
        self.clock.lap("compute")

    def met(self) -> None:
        """Record the time since the last lap as a meeting of the ranks."""
        self.transport.settle()
        self.clock.met()

    def begin_average(self) -> None:
        """Record what was computed before an average of weights or gradients."""
        self.computed()
        self._begun = len(self.clock.meetings)

    def averaged(self, t: int, scope: Scope, S: float = math.nan) -> None:
        """Record an average of weights or gradients over `scope` after update t.

        S: the variance, NaN if it is not known. The time that this rank took to compute it counts
        as computing.
        """
        self.transport.settle()
        self.clock.book("compute", self.transport.take_spread_s())
        self.clock.met()
        self.averages.note(t, scope, S, range(self._begun, len(self.clock.meetings)))

    def drifted(self, w: Array) -> None:
        """Record Var[W_k], the variance of the learners' weights before update k + 1.

        It is 0 right after an average.
        """
        self.computed()
        self.fleet.world.Barrier()
        self.met()
        variance = self.transport.variance(w)
        self.averages.drifted(variance, self.clock.lap("outside"))

    def objective(self, t: int, w: Array) -> float:
        """Return F at w [d] over all training data, for the schedule that it steers.

        This is a part of the algorithm, so its time counts as computing.
        """
        F = self.evaluator.objective(w, self)
        self.clock.lap("compute")
        if not math.isfinite(F):
            raise Diverged(f"the objective after step {t} is not finite; lower `lr`")
        return F

    def report(self, t: int, gamma: float, w: Array) -> None:
        """Write a row of /train, and a row of /eval when it is time. Collective.

        Every rank raises Diverged if a loss was not finite.
        """
        self.computed()
        self.fleet.world.Barrier()
        self.met()
        length = self.length
        loss, where, seconds, waits = self._exchange_interval(t)
        wall_s = self._wall_s
        if self.record is not None:
            self.averages.write(self.record, seconds, waits)
        if where is not None:
            raise Diverged(
                f"the loss at step {where[0]} of learner {where[1]} is not finite; lower `lr` (now "
                f"{gamma:g})"
            )
        if self.record is not None:
            self._write(t, gamma, loss, wall_s)
        self.reported = t
        evaluating = t == length.T or t % length.eval_every == 0
        following = (t + n - t % n for n in (length.log_every, length.eval_every))
        self.due = min(length.T, *following)
        self.clock.lap("compute")
        if evaluating:
            self._evaluate(t, w, wall_s)

    def summary(self) -> str:
        """Return one line about the time: shares of the wall clock, means over the ranks."""
        wall_s = self._wall_s
        compute, data, communicate, wait = 100 * self._split / wall_s
        samples = self.length.T * self.length.P * self.length.B
        text = (
            f"{wall_s:.1f} s, {samples / wall_s:,.0f} samples/s: compute {compute:.0f} %, "
            f"data {data:.0f} %, communicate {communicate:.0f} %, wait {wait:.0f} %"
        )
        diagnosis = f"; V_t took {self.averages.diagnosis_s:.1f} s more"
        return text + (diagnosis if self.variance == "steps" else "")

    def _write(self, t: int, gamma: float, loss: float, wall_s: float) -> None:
        if self.record is None or self.progress is None:
            return
        samples = t * self.length.P * self.length.B
        compute, data, communicate, wait = self._split
        self.record.append(
            "train",
            t=t,
            epoch=t / self.length.epoch,
            samples=samples,
            step_size=gamma,
            loss=loss,
            wall_s=wall_s,
            compute_s=compute,
            communicate_s=communicate,
            wait_s=wait,
            data_s=data,
        )
        self.record.flush()
        self.progress.step(t, loss, samples / wall_s)

    def _exchange_interval(
        self, t: int
    ) -> tuple[float, tuple[int, int] | None, np.ndarray, np.ndarray]:
        """Exchange losses and times since the last report.

        Return the mean loss, (t, j) of the first loss not finite, and the seconds of communication
        and of waiting of every meeting, each [meetings].
        """
        P, steps = self.fleet.P, t - self.reported
        meetings = np.array(self.clock.meetings)  # [meetings] this rank's
        self.clock.meetings.clear()
        losses = numbers(self.losses).reshape(steps, self.fleet.L)
        self.losses.clear()
        loss, first = losses.sum(), math.inf
        if not math.isfinite(loss) and len(bad := np.argwhere(~np.isfinite(losses))):
            step, l = bad[0]
            first = float((self.reported + 1 + step) * P + self.fleet.learners[l])
        fastest = np.array([first, *meetings])
        self.fleet.world.Allreduce(MPI.IN_PLACE, fastest, MPI.MIN)
        seconds = fastest[1:]  # [meetings]
        now = self.clock.seconds
        own = self.clock.wall_s, now["compute"], now["data"], *(meetings - seconds)
        sums = np.array([loss, *own])
        self.fleet.world.Allreduce(MPI.IN_PLACE, sums)
        sums[1:] /= self.fleet.ranks
        waits = sums[4:]  # [meetings]
        self._wall_s, self._split[:2] = sums[1], sums[2:4]
        self._split[2:] += seconds.sum(), waits.sum()
        self.met()
        where = divmod(int(fastest[0]), P) if math.isfinite(fastest[0]) else None
        return sums[0] / (steps * P), where, seconds, waits

    def _evaluate(self, t: int, w: Array, wall_s: float = 0.0) -> None:
        """Evaluate the averaged model w̄ of w [L, d], and write a row of /eval."""
        row = self.evaluator.row(self.transport.mean(w))
        # Before T, the losses that follow show which learner diverged.
        if t == self.length.T and not math.isfinite(row["train_loss"]):
            raise Diverged(
                f"the averaged model's loss after step {t}, the last, is not finite; lower `lr`"
            )
        if self.record is not None:
            self.record.append("eval", t=t, epoch=t / self.length.epoch, wall_s=wall_s, **row)
        if self.progress is not None:
            self.progress.evaluated(t, row["train_loss"], row["test_accuracy"])
        self.clock.lap("outside")

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
            "split": self._split,
            **averages,
            "t": [self.due, self.reported, last],
        }

    def load_state_dict(self, state: Mapping[str, Array]) -> None:
        """Resume from `state`."""
        self.losses[:] = state["losses"].T.ravel().tolist()
        self.clock.start(state["seconds"].tolist())
        self.clock.meetings[:] = state["meetings"].tolist()
        self._split[:] = state["split"]
        self.due, self.reported, last = state["t"].tolist()
        self.averages.load_state_dict({**state, "last": last})

    def close(self) -> None:
        """End the progress bar."""
        if self.progress is not None:
            self.progress.close()
