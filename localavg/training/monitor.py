"""What is watched while training: where the time goes, losses, evaluations of the averaged model,
progress, the run file.

Ranks exchange a handful of numbers at every row of /train, about a hundred in a run, and nothing in
between.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from time import perf_counter
from typing import Any

import numpy as np
from mpi4py import MPI

from localavg.datasets import progress
from localavg.files.record import Record
from localavg.parallel.device import numbers, on_host
from localavg.parallel.fleet import Fleet
from localavg.scope import Scope
from localavg.simulate.clock import Modelled

Array = Any

PIECES = 8  # of a learner's part of a split, where only some examples are evaluated


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
    """Watches one run of T updates with `epoch` updates in an epoch and batches of B.

    record: the run file on rank 0, None elsewhere. variance: record S at every average; V: record
    V_t of every period as well (adpsgd eq. 11), which takes one more mean of the weights a step,
    kept out of wall_s. grad_norm: ‖∇F(w̄)‖² at every evaluation. examples: how many of each split
    an evaluation takes (None: all). payload: what this rank hands to MPI in one exchange over a
    scope, (within its node, across nodes).
    """

    def __init__(
        self,
        fleet: Fleet,
        problem: Any,
        transport: Any,
        record: Record | Modelled | None,
        *,
        T: int,
        epoch: float,
        B: int,
        log_every: int,
        eval_every: int,
        payload: Callable[[Scope], tuple[int, int]],
        variance: bool = False,
        V: bool = False,
        grad_norm: bool = False,
        examples: int | None = None,
    ) -> None:
        self.fleet, self.problem, self.transport, self.record = fleet, problem, transport, record
        self.T, self.epoch, self.B, self.log_every, self.eval_every = (
            T,
            epoch,
            B,
            log_every,
            eval_every,
        )
        self.variance, self.V, self.grad_norm, self.examples = variance, V, grad_norm, examples
        self.clock = Clock()
        self.losses: list[
            Any
        ] = []  # L scalars an update since the last report; a device keeps its own
        self.due = min(T, log_every, eval_every)  # t of the next report
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
            s: fleet.world.allreduce(np.array(payload(s))).tolist()
            for s in (Scope.CLUSTER, Scope.WORLD)
        }
        self.progress = Progress(T) if record is not None else None

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
        text = (
            f"{wall_s:.1f} s, {self.T * self.fleet.P * self.B / wall_s:,.0f} samples/s: compute "
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
        F = self._totals(w, self.problem.data.train)[0] + self.problem.regulariser(w)
        self.clock.lap("compute")
        if not math.isfinite(F):
            raise Diverged(f"the objective after step {t} is not finite; lower --lr")
        return F

    def report(self, t: int, gamma: float, w: Array) -> None:
        """A row of /train, and of /eval when it is time. Collective. Raises Diverged everywhere if
        a loss was not finite.
        """
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
        samples = t * self.fleet.P * self.B
        if self.record is not None:
            self._record_averages()
            compute, data, communicate, wait = self._split
            self.record.append(
                "train",
                t=t,
                epoch=t / self.epoch,
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
        evaluating = t == self.T or t % self.eval_every == 0
        self.due = min(
            self.T, *(t + every - t % every for every in (self.log_every, self.eval_every))
        )
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
        """A row of /eval: the averaged model w̄ on all data, each learner summing over its part of
        the rows.
        """
        mean, data = self.transport.mean(w), self.problem.data  # [d]
        self.problem.calibrate_(mean)
        train_loss, train_accuracy, grad = self._totals(
            mean, data.train, self.grad_norm, self.examples
        )
        train_loss += self.problem.regulariser(mean)
        if t == self.T and not math.isfinite(
            train_loss
        ):  # before T the next losses name the learner
            raise Diverged(
                f"the averaged model's loss after step {t}, the last, is not finite; lower --lr"
            )
        test_loss = test_accuracy = math.nan
        if data.test is not None:
            test_loss, test_accuracy, _ = self._totals(mean, data.test, examples=self.examples)
            test_loss += self.problem.regulariser(mean)
        if self.record is not None:
            if grad is not None:
                grad += self.problem.l2 * on_host(mean[: len(grad)])
            self.record.append(
                "eval",
                t=t,
                epoch=t / self.epoch,
                wall_s=wall_s,
                train_loss=train_loss,
                train_accuracy=train_accuracy,
                test_loss=test_loss,
                test_accuracy=test_accuracy,
                grad_norm_sq=math.nan if grad is None else float(grad @ grad),
            )
            self.progress.evaluated(t, train_loss, test_accuracy)
        self.clock.lap("outside")

    def _totals(
        self, w: Array, split: Any, gradient: bool = False, examples: int | None = None
    ) -> tuple[float, float, Array | None]:
        """Mean loss without regulariser, accuracy, mean gradient [d] of w over a split: the same
        numbers for any layout.

        examples: of about so many of its rows, spread over the split in pieces.
        """
        n, P = len(split.y), self.fleet.P
        pieces = 1 if examples is None else PIECES  # of every learner
        rows = [(n * i // (P * pieces), n * (i + 1) // (P * pieces)) for i in range(P * pieces)]
        if examples is not None:
            rows = [(lo, min(hi, lo + max(1, examples // (P * pieces)))) for lo, hi in rows]
        parts = [
            self.problem.sums(w, split, lo, hi, gradient)
            for j in self.fleet.learners
            for lo, hi in rows[j * pieces : (j + 1) * pieces]
        ]
        sums = self.fleet.world.allgather([part[:2] for part in parts])
        everyone = np.concatenate(sums)  # [P · pieces, 2], in the order of the learners
        n = sum(hi - lo for lo, hi in rows)
        loss, right = everyone.sum(axis=0) / n
        if not gradient:
            return loss, right, None
        grad = on_host(sum(part[2] for part in parts))  # [d] float64
        self.fleet.world.Allreduce(MPI.IN_PLACE, grad)
        return loss, right, grad / n

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
