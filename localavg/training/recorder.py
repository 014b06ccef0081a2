"""The clock, losses and averages of a run, and its rows of /train and /averages.

The training loop's `Monitor` and the log of `attach` share this file. At every row of /train the
ranks exchange a few numbers, and nothing in between.

Times: every call in which ranks meet stands between two laps of the clock. The rank that comes last
to a meeting does not wait, so the least time of a meeting over the ranks is communication, and what
a rank spends there in addition is waiting.
"""

from __future__ import annotations

import math

import numpy as np
from mpi4py import MPI

from localavg.files.record import Record
from localavg.interfaces import Array, Transport
from localavg.parallel.device import numbers
from localavg.parallel.fleet import Fleet
from localavg.scope import Scope
from localavg.simulate.clock import Modelled, Synchronous
from localavg.training.averages import Averages
from localavg.training.pace import Pace
from localavg.training.payload import Payload
from localavg.training.stopwatch import Stopwatch


class Recorder:
    """What is measured between two rows of /train.

    record: the run file on rank 0, None elsewhere; or a mirror of it, on all ranks. losses: those
    since the last row, L scalars or a vector [L] an update; a GPU's stay on the GPU.
    reported: t of the last row. wall_s: the time at the last row, a mean over the ranks. split:
    compute_s, data_s, communicate_s and wait_s so far, likewise.
    """

    def __init__(
        self, fleet: Fleet, transport: Transport, record: Record | Modelled | None, payload: Payload
    ) -> None:
        self.fleet, self.transport, self.record = fleet, transport, record
        self.working = payload.algorithm.participants.working  # learners in a round
        self.clock = Stopwatch()
        self.averages = Averages(fleet, payload, writes=record is not None)
        self.losses: list[float | Array] = []
        self.reported = 0
        self.wall_s, self.split = 0.0, np.zeros(4)
        self._begun = 0  # number of meetings before the average that is under way

    @property
    def updates(self) -> int:
        """The updates since the last row."""
        return sum(math.prod(getattr(x, "shape", ())) for x in self.losses) // self.fleet.L

    def computed(self) -> None:
        """Wait until all queued work is done, and record the time that it took as computing."""
        self.transport.settle()
        self.clock.lap("compute")

    def met(self) -> None:
        """Record the time since the last lap as a meeting of the ranks."""
        self.transport.settle()
        self.clock.met()

    def pace(self, modelled: Synchronous | None = None) -> Pace:
        """Return what times averages and updates for a schedule that chooses the period by them."""
        write = None if self.record is None else self.record.append
        return Pace(self.fleet, self.transport.settle, self, self.outside_s, write, modelled)

    def outside_s(self) -> float:
        """Return the seconds of evaluation, diagnosis and checkpoints so far."""
        return self.clock.seconds["outside"]

    def begin_average(self, t: int, scope: Scope) -> None:
        """Record what was computed before an average of weights or gradients after update t."""
        self.computed()
        self._begun = len(self.clock.meetings)

    def average_begun(self, t: int, scope: Scope) -> None:
        """Record the copies of an average that begins after update t and is merged later."""
        self.computed()

    def averaged(
        self,
        t: int,
        scope: Scope,
        S: float = math.nan,
        begun: int | None = None,
        travelled_s: float = 0.0,
    ) -> None:
        """Record an average of weights or gradients over `scope` after update t.

        S: the variance, NaN if it is not known. The time that this rank took to compute it counts
        as computing. begun: the update after which it began, if it is a delayed one; travelled_s:
        the seconds that it was on its way then.
        """
        self.transport.settle()
        self.clock.book("compute", self.transport.take_spread_s())
        self.clock.met()
        meetings = range(self._begun, len(self.clock.meetings))
        self.averages.note(t, scope, S, meetings, begun, travelled_s)

    def compare(self, t: int) -> tuple[float, tuple[int, int] | None]:
        """Compare the ranks' losses and times since the last row. Collective.

        The rows of /averages are buffered. Return the mean loss, and (t, j) of the first loss not
        finite.
        """
        self.computed()
        self.fleet.world.Barrier()
        self.met()
        P, steps = self.fleet.P, t - self.reported
        meetings = np.array(self.clock.meetings)  # [meetings] this rank's
        self.clock.meetings.clear()
        losses = numbers(self.losses).reshape(steps, self.fleet.L)
        loss, first = losses.sum(), math.inf
        if not math.isfinite(loss) and len(bad := np.argwhere(~np.isfinite(losses))):
            step, l = bad[0]
            first = float((self.reported + 1 + step) * P + self.fleet.learners[l])
        travelled = self.averages.travelled  # [delayed averages]
        fastest = np.array([first, *travelled, *meetings])
        self.fleet.world.Allreduce(MPI.IN_PLACE, fastest, MPI.MIN)
        travelled_s, seconds = np.split(fastest[1:], [len(travelled)])  # [delayed], [meetings]
        now = self.clock.seconds
        own = self.clock.wall_s, now["compute"], now["data"], *(meetings - seconds)
        sums = np.array([loss, *own])
        self.fleet.world.Allreduce(MPI.IN_PLACE, sums)
        sums[1:] /= self.fleet.ranks
        waits = sums[4:]  # [meetings]
        self.wall_s, self.split[:2] = sums[1], sums[2:4]
        self.split[2:] += seconds.sum(), waits.sum()
        self.met()
        if self.record is not None:
            self.averages.write(self.record, seconds, waits, travelled_s)
        travelled.clear()
        self.losses.clear()
        self.reported = t
        where = divmod(int(fastest[0]), P) if math.isfinite(fastest[0]) else None
        # the losses of learners that do not work are 0
        return (sums[0] / (steps * self.working) if steps else math.nan), where

    def write(self, t: int, epoch: float, samples: int, gamma: float, loss: float) -> None:
        """Write a row of /train with the times of the last `compare`."""
        if self.record is None:
            return
        compute, data, communicate, wait = self.split
        self.record.append(
            "train",
            t=t,
            epoch=epoch,
            samples=samples,
            step_size=gamma,
            loss=loss,
            wall_s=self.wall_s,
            compute_s=compute,
            communicate_s=communicate,
            wait_s=wait,
            data_s=data,
        )
        self.record.flush()
