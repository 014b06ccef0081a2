"""What is watched while training: where the time goes, losses, evaluations of the averaged model,
progress, the run file.

Ranks exchange a handful of numbers at every row of /train, about a hundred in a run, and nothing in
between.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from time import perf_counter
from typing import Any

import numpy as np
from mpi4py import MPI

from localavg.datasets import progress
from localavg.files.record import Record
from localavg.parallel.device import numbers
from localavg.parallel.fleet import Fleet
from localavg.scope import Scope
from localavg.simulate.clock import Modelled
from localavg.training.evaluate import Evaluator
from localavg.training.length import Length
from localavg.training.payload import Payload

Array = Any


class Diverged(Exception):
    """A loss is not finite; raised on every rank alike."""


class Clock:
    """Seconds by purpose: every `lap` gives the time since the last one to a name."""

    def __init__(self) -> None:
        self.start()

    def start(self, seconds: Sequence[float] = (0.0,) * 5) -> None:
        """From zero, or from what was on the clock before, now."""
        self.seconds = dict(
            zip(("data", "compute", "communicate", "rest", "outside"), seconds, strict=True)
        )
        self._last = perf_counter()

    def lap(self, name: str) -> float:
        """Give the time since the last lap to `name`, and return it."""
        now = perf_counter()
        seconds, self._last = now - self._last, now
        self.seconds[name] += seconds
        return seconds

    @property
    def wall_s(self) -> float:
        """All of it but "outside": evaluation, diagnosis."""
        return sum(self.seconds.values()) - self.seconds["outside"]


class Monitor:
    """Watches one run.

    record: the run file on rank 0, None elsewhere. variance: record S at every average. V: record
    V_t of every period too (adpsgd eq. 11), which takes one more mean of the weights a step, kept
    out of wall_s.
    """

    def __init__(
        self,
        fleet: Fleet,
        transport: Any,
        evaluator: Evaluator,
        record: Record | Modelled | None,
        length: Length,
        payload: Payload,
        *,
        variance: bool = False,
        V: bool = False,
    ) -> None:
        self.fleet, self.transport, self.evaluator = fleet, transport, evaluator
        self.record, self.length = record, length
        self.variance, self.V = variance, V
        self.clock = Clock()
        self.losses: list[
            Any
        ] = []  # L scalars an update since the last report; a device keeps its own
        self.due = min(length.log_every, length.eval_every)  # t of the next report
        self.reported = 0  # t of the last one
        self.last = 0  # t of the last average
        self._events: list[float] = []  # seconds of every exchange since then
        self._averages: list[
            tuple
        ] = []  # of rank 0, since the last report: t, scope, period, S, V_t, seconds
        self._split = np.zeros(
            4
        )  # compute_s, data_s, communicate_s, wait_s so far: means over the ranks
        self._drift: list[float] = []  # Var[W_k] of the updates since the last average
        self.diagnosis_s = 0.0  # what V_t took
        self._bytes = {
            s: fleet.world.allreduce(np.array(payload.handed_over(s))).tolist()
            for s in (Scope.CLUSTER, Scope.WORLD)
        }
        self.progress = Progress(length.T) if record is not None else None

    def start(self, begun: int, w: Array) -> None:
        """Evaluate the initial weights of a new run (begun = 0), then start the clock on all ranks
        together.
        """
        before = list(self.clock.seconds.values())
        if not begun:
            self._evaluate(0, w)
        self.fleet.world.Barrier()
        self.clock.start(before)

    def computed(self) -> None:
        """Gradients and updates are done: wait for a device that still works on them, and give them
        their time.
        """
        self.transport.settle()
        self.clock.lap("compute")

    def averaged(self, t: int, scope: Scope, S: float = math.nan) -> None:
        """Weights or gradients were averaged over `scope` after update t; S: the variance, if
        known.
        """
        period, self.last = t - self.last, t
        self.transport.settle()
        seconds = self.clock.lap("communicate")
        self._events.append(seconds)
        V = math.nan
        if self._drift:
            V = sum(self._drift) / len(self._drift)
            self._drift.clear()
        if self.record is not None:
            self._averages.append((t, scope, period, S, V, seconds))

    def summary(self) -> str:
        """Where the time went, for people: shares of the wall clock, means over the ranks."""
        wall_s = self.clock.wall_s
        compute, data, communicate, wait = 100 * self._split / wall_s
        samples = self.length.T * self.length.P * self.length.B
        text = (
            f"{wall_s:.1f} s, {samples / wall_s:,.0f} samples/s: compute "
            f"{compute:.0f} %, "
            f"data {data:.0f} %, communicate {communicate:.0f} %, wait {wait:.0f} %"
        )
        return text + (f"; V_t took {self.diagnosis_s:.1f} s more" if self.V else "")

    def drifted(self, w: Array) -> None:
        """Var[W_k], the variance of the learners' weights before update k + 1: the first after an
        average is 0.
        """
        self.computed()
        self._drift.append(self.transport.variance(w))
        self.diagnosis_s += self.clock.lap("outside")

    def objective(self, t: int, w: Array) -> float:
        """F at w [d] over all training data, for the schedule that is steered by it: part of the
        algorithm and its time.
        """
        F = self.evaluator.objective(w)
        self.clock.lap("compute")
        if not math.isfinite(F):
            raise Diverged(f"the objective after step {t} is not finite; lower --lr")
        return F

    def report(self, t: int, gamma: float, w: Array) -> None:
        """A row of /train, and of /eval when it is time. Collective. Raises Diverged everywhere if
        a loss was not finite.
        """
        self.computed()
        length = self.length
        self.clock.lap("rest")
        wall_s = self.clock.wall_s
        loss, where = self._exchange_interval(t)
        if where is not None:
            if self.record is not None:
                self._record_averages()
            raise Diverged(
                f"the loss at step {where[0]} of learner {where[1]} is not finite; lower --lr (now "
                f"{gamma:g})"
            )
        samples = t * length.P * length.B
        if self.record is not None:
            self._record_averages()
            compute, data, communicate, wait = self._split
            self.record.append(
                "train",
                t=t,
                epoch=t / length.epoch,
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
        self.reported = t
        evaluating = t == length.T or t % length.eval_every == 0
        following = (t + n - t % n for n in (length.log_every, length.eval_every))
        self.due = min(length.T, *following)
        self.clock.lap("rest")
        if evaluating:
            self._evaluate(t, w, wall_s)

    def _exchange_interval(self, t: int) -> tuple[float, tuple[int, int] | None]:
        """Over the updates since the last report: the mean loss, and (t, j) of the first loss that
        is not finite.
        """
        P, steps = self.fleet.P, t - self.reported
        losses = numbers(self.losses).reshape(steps, self.fleet.L)
        self.losses.clear()
        loss, first = losses.sum(), math.inf
        if not math.isfinite(loss) and len(bad := np.argwhere(~np.isfinite(losses))):
            step, l = bad[0]
            first = float((self.reported + 1 + step) * P + self.fleet.learners[l])
        fastest = np.array(
            [first, *self._events]
        )  # who comes last to an exchange does not wait there: the minimum is its cost
        self.fleet.world.Allreduce(MPI.IN_PLACE, fastest, MPI.MIN)
        communicate = fastest[1:].sum()
        now = self.clock.seconds
        sums = np.array(
            [loss, now["compute"], now["data"], communicate, sum(self._events) - communicate]
        )
        self._events.clear()
        self.fleet.world.Allreduce(MPI.IN_PLACE, sums)
        sums[1:] /= self.fleet.ranks
        self._split[:2] = sums[1:3]
        self._split[2:] += sums[3:]
        where = divmod(int(fastest[0]), P) if math.isfinite(fastest[0]) else None
        return sums[0] / (steps * P), where

    def _record_averages(self) -> None:
        """What `averaged` noted since the last report, as rows."""
        for t, scope, period, S, V, seconds in self._averages:
            within, across = self._bytes[scope]
            self.record.append(
                "averages",
                t=t,
                scope=int(scope),
                period=period,
                variance=S,
                mean_variance=V,
                bytes_node=within,
                bytes_cross=across,
                seconds=seconds,
            )
        self._averages.clear()

    def _evaluate(self, t: int, w: Array, wall_s: float = 0.0) -> None:
        """A row of /eval: the averaged model w̄ of w [L, d]."""
        row = self.evaluator.row(self.transport.mean(w))
        # Before T the next losses name the learner.
        if t == self.length.T and not math.isfinite(row["train_loss"]):
            raise Diverged(
                f"the averaged model's loss after step {t}, the last, is not finite; lower --lr"
            )
        if self.record is not None:
            self.record.append("eval", t=t, epoch=t / self.length.epoch, wall_s=wall_s, **row)
            self.progress.evaluated(t, row["train_loss"], row["test_accuracy"])
        self.clock.lap("outside")

    def state_dict(self) -> dict[str, Array]:
        """What a resumed run needs to record what an uninterrupted one would: a row of losses a
        learner, then this rank's.
        """
        losses = (
            numbers(self.losses).reshape(-1, self.fleet.L).T
        )  # [L, updates since the last report]
        averages = np.array(self._averages, np.float64).reshape(-1, 6)
        return {
            "losses": losses,
            "seconds": list(self.clock.seconds.values()),
            "split": self._split,
            "events": self._events,
            "drift": self._drift,
            "averages": averages.ravel(),
            "diagnosis_s": self.diagnosis_s,
            "t": [self.due, self.reported, self.last],
        }

    def load_state_dict(self, state: Mapping[str, Array]) -> None:
        """Go on from `state`."""
        self.losses[:] = state["losses"].T.ravel().tolist()
        self.clock.start(state["seconds"].tolist())
        self._split[:] = state["split"]
        self._events[:], self._drift[:] = state["events"].tolist(), state["drift"].tolist()
        rows = state["averages"].reshape(-1, 6).tolist()
        self._averages[:] = [
            (int(t), Scope(int(scope)), int(period), *rest) for t, scope, period, *rest in rows
        ]
        self.diagnosis_s = float(state["diagnosis_s"])
        self.due, self.reported, self.last = state["t"].tolist()

    def close(self) -> None:
        """Leave the terminal in order."""
        if self.progress is not None:
            self.progress.close()


class Progress:
    """A bar on a terminal; elsewhere one plain line an evaluation."""

    def __init__(self, T: int) -> None:
        self.T = T
        self.bar = progress.bar(T, unit="step")
        self._rate = math.nan

    def step(self, t: int, loss: float, rate: float) -> None:
        """Update t is done; the loss since the last call; samples/s since the start."""
        self._rate = rate
        if not self.bar.disable:
            self.bar.set_postfix_str(f"loss {loss:.4f}, {rate:,.0f} samples/s", refresh=False)
            self.bar.update(t - self.bar.n)

    def evaluated(self, t: int, loss: float, accuracy: float) -> None:
        """The averaged model's training loss and test accuracy."""
        if self.bar.disable:
            rate = "" if math.isnan(self._rate) else f"  {self._rate:,.0f} samples/s"
            test = "" if math.isnan(accuracy) else f"  test accuracy {accuracy:.4f}"
            print(f"t {t}/{self.T}  train loss {loss:.4f}{test}{rate}", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Leave the terminal in order."""
        self.bar.close()
