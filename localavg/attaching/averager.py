"""Local updates and periodic averaging in a user's own torch loop.

    fleet = localavg.Fleet(MPI.COMM_WORLD)
    averager = localavg.attach(model, fleet, localavg.mavg(K=16, mu=0.7))
    ...
    optimizer.step(); averager.step()        # in the loop; averager.finish() after it

The model's parameters and floating-point buffers become views into one flat row, so an average
copies no tensor. The modules and their optimiser do not change. `jobs/examples/attach.py` is a
complete program.
"""

from __future__ import annotations

import copy
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from localavg.algorithms.base import Algorithm
from localavg.attaching.checks import (
    Asked,
    check,
    check_kinds,
    check_same,
    covered,
    parts,
    uncovered,
)
from localavg.attaching.gradients import Gradients, Steps
from localavg.attaching.log import Log
from localavg.attaching.row import Row, averaged
from localavg.attaching.saved import check_state, saved
from localavg.attaching.state import TorchState
from localavg.errors import UserError
from localavg.interfaces import UNTIMED, Array, Settings
from localavg.parallel.agreement import Agreement, What
from localavg.parallel.fleet import Fleet
from localavg.parallel.transport import choose
from localavg.parallel.transport.mpi import digest
from localavg.scope import Scope
from localavg.training.averaging import Averaging
from localavg.training.payload import Payload

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module
    from torch.optim import Optimizer


def attach(
    model: Module,
    fleet: Fleet,
    algorithm: Algorithm,
    optimizer: Optimizer | Sequence[Optimizer] | None = None,
    *,
    state: str = "keep",
    statistics: str = "average",
    objective: Callable[[], float] | None = None,
    seed: int = 0,
    log: str | None = None,
    config: Mapping[str, object] | None = None,
    warn_after: float = 300.0,
    hang_limit: float | None = None,
) -> Averager:
    """Average `model` over the fleet with `algorithm`, one learner per rank. Collective.

    All ranks start from the weights of rank 0. Parameters and floating-point buffers (BatchNorm's
    running statistics) are averaged; other buffers (num_batches_tracked) are not. From now on torch
    uses at most fleet.threads threads. To resume from a checkpoint, attach first, then load the
    model, the optimiser and the averager.

    optimizer: one or several, needed in three cases. sync and qsgd exchange gradients at the start
    of its step, so clipping before the step clips each rank's own gradient, and a parameter without
    gradient counts as zero. adpsgd takes the lr of its first group as γ. `state` other than keep
    changes its state. In the first and last case every trainable parameter must be in one of them.
    state: what an average does to the optimiser's tensors that have the shape of their parameter:
    keep, average or reset. statistics: average the floating-point buffers, or keep every learner's
    own. objective: returns F on this rank's data at the model's present weights, for
    adalupa(rule="loss"), which uses the mean over the ranks. seed: the seed of qsgd's rounding.

    log: a new run file, as `localavg train` writes it. config: more settings for its /config, such
    as data, batch_size and rows (training examples); the last two give epochs and samples.
    warn_after: print where a rank waits for the others after this many seconds. hang_limit: end the
    job after this many seconds of waiting; never if it is None.

    Every rank must make the same calls at the same updates. Raises UserError on every rank where
    they differ, for several learners on a rank, for models that differ between ranks or are not
    float32 on the CPU, and for an argument that is wrong, or needed and missing.
    """
    asked = Asked(
        model, fleet, copy.deepcopy(algorithm), _several(optimizer), state, statistics, objective,
        seed,
        log, config or {}, warn_after, hang_limit,
    )  # fmt: skip
    check_kinds(asked)
    fleet.together(lambda: check(asked))
    return Averager(asked)


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
        self._start = 0  # t at which the period began
        self.scope, self.variance = Scope.NONE, math.nan
        self._statistics = asked.statistics == "average"
        parameters, tensors = dict(self.model.named_parameters()), self._tensors()
        check_same(fleet, {name: tuple(x.shape) for name, x in tensors.items()})
        self.transport = transport = choose(
            "auto", fleet, algorithm.S, _row_bytes(algorithm, asked.state, tensors)
        )
        self.flat = Row(tensors, transport.zeros, len(parameters))
        self.flat.adopt(tensors)
        self._start_equal_(tensors)
        self._first: bytes | None = digest(self.flat.w[0])  # of the start, until learners differ
        held = parts(parameters, asked.optimizers)
        self._known = covered(asked.optimizers)
        algorithm.exchange.start(fleet.learners, asked.seed)
        self._gradients, self._fault = Gradients([], transport.ordinary), ""
        if algorithm.exchange.scope:
            self._gradients = Gradients(held, transport.zeros)
        self._steps = Steps(asked.optimizers, held, self._before_step) if asked.stepped else None
        torch_state = TorchState(asked.state, asked.optimizers, held, fleet, transport.zeros)
        sent = self._gradients.row if algorithm.exchange.scope else self.flat
        self._payload = Payload(algorithm, transport, sent, torch_state)
        self._agreement = Agreement(fleet, algorithm.S, asked.warn_after, asked.hang_limit)
        self._log = (
            Log(asked, transport, self._payload, self.flat.d) if asked.log is not None else None
        )
        if self._log is not None:
            self._agreement.ended = self._log.end
        self._agreement.guard(self)
        self._averaging = self._averages(torch_state)
        self._averaging.begin(math.nan)

    def __repr__(self) -> str:
        return (
            f"Averager({self.algorithm}, t={self.t}, period={self.period}, scope={self.scope.name})"
        )

    def _start_equal_(self, tensors: Mapping[str, Tensor]) -> None:
        """Set the row of these tensors, and the buffers that are not in it, to those of rank 0."""
        world = self.fleet.world
        world.Bcast(self.flat.w[0])
        for name, b in self.model.named_buffers():
            if name not in tensors:
                first = world.bcast(b)
                if any(
                    stride == 0 and n > 1 for n, stride in zip(b.shape, b.stride(), strict=True)
                ):
                    b.data = first  # of an expanded tensor, whose entries cannot be written
                else:
                    b.copy_(first)

    def _averages(self, state: TorchState) -> Averaging:
        """Return the averages of this run, with what this object does before and after them."""
        return Averaging(
            self.algorithm,
            self.transport,
            self.flat,
            state,
            objective=self._objective,
            before=self._before,
            after=self._after,
            laps=self._log or UNTIMED,
        )

    @property
    def t(self) -> int:
        """The number of local updates so far."""
        return self._agreement.t

    @property
    def period(self) -> int:
        """Local updates since the last average; right after an average, since the one before it."""
        return self.t - self._start

    def exchange(self) -> Scope:
        """Exchange all gradients of this update, for sync and qsgd; other algorithms do nothing.

        Call it after backward() and before the step of a gradient scaler, so that all ranks find
        the same gradients and skip the same steps. The optimiser's step does not exchange again.
        Return who exchanged.
        """
        if self.algorithm.exchange.scope:
            self._exchange(self._gradients.everyone)
            self._gradients.fresh = self._gradients.everyone
        return self.algorithm.exchange.scope

    def step(self, loss: float | Tensor | None = None) -> Scope:
        """Average if it is time; call right after every optimizer.step().

        loss: the loss of this update on this rank, for the log. Return who averaged: Scope.NONE,
        CLUSTER or WORLD.
        """
        if self.scope:
            self._start = self.t
        self._agreement.t += 1
        exchanged = self._exchanged()
        scope = self._averaging.average_(self.t, self._gamma)
        self.scope = scope or exchanged
        if self._log is not None:
            self._log.step(self.t, self.scope, self._gamma, loss)
        return self.scope

    def finish(self) -> Scope:
        """Make all models equal to their average; call after the last update.

        Return who averaged, Scope.NONE if the models were equal already.
        """
        self._meet(What.FINISH)
        scope = Scope.NONE
        if not self.algorithm.exchange.scope and self.algorithm.schedule.final > self.scope:
            if self.scope:
                self._start = self.t
            scope = self.scope = self._averaging.average_(self.t, self._gamma, last=True)
        scope = self._averaging.finish_() or scope
        if self._log is not None:
            self._log.row(self.t, self._gamma)
            self._log.end("finished")
        self._agreement.leave()
        self._agreement.finished = self.t
        return scope

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Give the model the average of all learners, w̄, while the context lasts. Collective.

        The model has its own weights again after it.
        """
        if self._log is not None:
            self._log.computed()
        self._meet(What.AVERAGED)
        own = self.flat.w.copy()  # [1, d]
        self.flat.w[0] = self.transport.mean(self.flat.w)
        self._agreement.leave()
        try:
            yield
        finally:
            self.flat.w[...] = own
            if self._log is not None:
                self._log.clock.lap("outside")

    def evaluated(self, **row: float) -> None:
        """Write a row of /eval to the log: train_loss, test_accuracy, … of the averaged model."""
        if self._log is not None:
            self._log.evaluated(self.t, row)

    def payload_bytes(self) -> tuple[int, int]:
        """Return the bytes of all ranks at the last exchange: (in nodes, across). Collective."""
        self._meet(What.BYTES)
        mine = self._payload.handed_over(self.scope)
        within, across = zip(*self.fleet.world.allgather(mine), strict=True)
        self._agreement.leave()
        return sum(within), sum(across)

    def state_dict(self) -> dict[str, object]:
        """Return what a restart needs in addition to the model and the optimiser.

        Save all three on every rank: between averages they differ from rank to rank.
        """
        about = {"start": self._start, "scope": int(self.scope), "variance": self.variance}
        return {"t": self.t, **about, **saved(self.algorithm, self.flat.d)}

    def load_state_dict(self, state: Settings) -> None:
        """Resume from `state`, which an averager with the same algorithm and model returned."""
        check_state(state, self.algorithm, self.flat.d)
        self._agreement.t, self._start = state["t"], state["start"]
        self.scope, self.variance = Scope(state["scope"]), state["variance"]
        self.algorithm.schedule.load_state_dict(state["schedule"])
        self.algorithm.average.load_state_dict(state["combine"])

    @property
    def _gamma(self) -> float:
        """The present step size γ of the first optimiser; NaN if none was given."""
        return float(self.optimizers[0].param_groups[0]["lr"]) if self.optimizers else math.nan

    def _tensors(self) -> dict[str, Tensor]:
        """Return what is averaged, by name."""
        return averaged(self.model, self._statistics)

    def _meet(
        self, what: What, scope: Scope = Scope.WORLD, update: int | None = None, mark: int = 0
    ) -> None:
        """Agree with the others on what comes next, on this update or the one that was made.

        Where weights meet, first move tensors that were replaced since then into the row. The walk
        through the model takes as long as many agreements, so an update of sync makes only one.
        """
        fault = self._fault
        if what not in (What.EXCHANGE, What.STEP):
            try:
                self.flat.adopt(self._tensors())
            except UserError as e:
                fault = fault or str(e)
        if self._steps is not None:
            fault = fault or self._steps.fault
            if what is not What.EXCHANGE:
                fault = fault or uncovered(self.model, self._known)
        self._agreement.meet(what, self.t if update is None else update, scope, mark, fault)

    def _before(self, t: int, scope: Scope) -> None:
        """Do what comes before an average of the weights."""
        if self._log is not None:
            self._log.begin_average(t, scope)
        self._meet(What.AVERAGE, scope)
        if self._first is not None and scope is Scope.WORLD and self.fleet.P > 1:
            self._warn_equal(t, self._first)

    def _warn_equal(self, t: int, first: bytes) -> None:
        """Print a line if all learners made the same updates, once they made some. Collective."""
        mine = digest(self.flat.w[0])
        found = self.fleet.world.allgather((mine, mine == first))
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

    def _after(self, t: int, scope: Scope, S: float) -> None:
        """Do what comes after an average of the weights."""
        self._agreement.leave()
        self.variance = S
        if self._log is not None:
            self._log.averaged(t, scope, S)

    def _objective(self, t: int, w: Array) -> float:
        """Return F at the average, which every learner's model holds now."""
        assert self.objective is not None, "attach refuses such an algorithm without an objective"
        return self.fleet.world.allreduce(float(self.objective())) / self.fleet.P

    def _before_step(self, i: int, closure: bool) -> None:
        """Exchange the gradients of optimiser i before its step, unless `exchange` did it."""
        if not self.algorithm.exchange.scope:
            return
        if closure:
            self._fault = (
                "attach: sync and qsgd exchange gradients before optimizer.step(closure) makes "
                "them; call backward() first and step() without a closure"
            )
        if closure or not self._gradients.used(i):
            self._exchange(1 << i)

    def _exchange(self, which: int) -> None:
        """Exchange the gradients of these optimisers, given as bits, for the coming update."""
        gradients, t = self._gradients, self.t + 1
        gradients.gather_(which)
        if self._log is not None:
            self._log.exchanging(t)
        self._meet(What.EXCHANGE, update=t, mark=which)
        self.algorithm.exchange.exchange_(gradients.columns(which), t, self.transport)
        self._agreement.leave()
        gradients.done |= which
        if self._log is not None:
            self._log.met()

    def _exchanged(self) -> Scope:
        """Check that update t exchanged all gradients, and that all ranks made the same steps."""
        gradients, steps = self._gradients, self._steps
        if not self.algorithm.exchange.scope or steps is None:
            return Scope.NONE
        if self._log is not None:
            self._log.exchanged(self.t)
        self._fault = steps.fault or gradients.missing(self.t)
        self._meet(What.STEP, mark=steps.made)
        self._agreement.leave()
        gradients.done = gradients.fresh = steps.made = 0
        return self.algorithm.exchange.scope


def _several(optimizer: Optimizer | Sequence[Optimizer] | None) -> tuple[Optimizer, ...]:
    """Return the optimisers that were given."""
    if optimizer is None:
        return ()
    return tuple(optimizer) if isinstance(optimizer, Sequence) else (optimizer,)


def _row_bytes(algorithm: Algorithm, state: str, tensors: Mapping[str, Tensor]) -> int:
    """Return the bytes of one learner's rows: weights, gradients, and the state of Adam at most."""
    rows = 1 + bool(algorithm.exchange.scope) + 2 * (state == "average")
    return 4 * rows * sum(x.numel() for x in tensors.values())
