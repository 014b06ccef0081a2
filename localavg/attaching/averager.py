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
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from localavg.algorithms.base import Algorithm
from localavg.attaching.checks import check, check_same
from localavg.attaching.row import Row, averaged
from localavg.attaching.state import TorchState
from localavg.errors import UserError, check_choice
from localavg.interfaces import Array, Settings
from localavg.parallel.fleet import Fleet
from localavg.parallel.transport import choose
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
    optimizer: Optimizer | None = None,
    *,
    state: str = "keep",
    statistics: str = "average",
    objective: Callable[[], float] | None = None,
    seed: int = 0,
) -> Averager:
    """Average `model` over the fleet with `algorithm`, one learner per rank. Collective.

    All ranks start from the weights of rank 0. Parameters and floating-point buffers (BatchNorm's
    running statistics) are averaged; other buffers (num_batches_tracked) are not. From now on torch
    uses at most fleet.threads threads. To resume from a checkpoint, attach first, then load the
    model, the optimiser and the averager.

    optimizer: needed in three cases. sync and qsgd exchange gradients at the start of its step, so
    clipping before the step clips each rank's own gradient, and a parameter without gradient counts
    as zero. adpsgd takes the lr of its first group as γ. `state` other than keep changes its state.
    state: what an average does to the optimiser's tensors that have the shape of their parameter:
    keep, average or reset. statistics: average the floating-point buffers, or keep every learner's
    own. objective: returns F on this rank's data at the model's present weights, for
    adalupa(rule="loss"), which uses the mean over the ranks. seed: the seed of qsgd's rounding.

    Raises UserError on every rank for several learners on a rank, for models that differ between
    ranks or are not float32 on the CPU, and for an argument that is needed and missing.
    """
    check_choice("statistics", statistics, ("average", "keep"))
    return Averager(
        model, fleet, algorithm, optimizer, state, statistics == "average", objective, seed
    )


class Averager:
    """What `attach` returns.

    t: the number of local updates so far. scope: who averaged weights or gradients at the last
    step. variance: S of the parameters at the last average (adpsgd Alg. 2, line 11), NaN if the
    algorithm does not need it. algorithm: a copy of the algorithm that was given.
    """

    def __init__(
        self,
        model: Module,
        fleet: Fleet,
        algorithm: Algorithm,
        optimizer: Optimizer | None,
        state: str,
        statistics: bool,
        objective: Callable[[], float] | None,
        seed: int,
    ) -> None:
        import torch

        fleet.together(lambda: check(model, fleet, algorithm, optimizer, state, objective))
        torch.set_num_threads(min(fleet.threads, torch.get_num_threads()))
        self.algorithm = algorithm = copy.deepcopy(algorithm)
        self.model, self.fleet, self.optimizer, self.objective = model, fleet, optimizer, objective
        self.t, self._start = 0, 0  # _start: t at which the period began
        self.scope, self.variance = Scope.NONE, math.nan
        self._statistics = statistics
        self._parameters, tensors = dict(model.named_parameters()), averaged(model, statistics)
        check_same(fleet, {name: tuple(x.shape) for name, x in tensors.items()})
        self.transport = transport = choose(
            "auto", fleet, algorithm.S, _row_bytes(algorithm, state, tensors)
        )
        self.flat = Row(tensors, transport.zeros, len(self._parameters))
        self.flat.adopt(tensors)
        self._start_equal_(tensors)
        algorithm.exchange.start(fleet.learners, seed)
        if algorithm.exchange.scope and optimizer is not None:
            self._gradients = Row(self._parameters, transport.zeros)
            optimizer.register_step_pre_hook(self._exchange)
        torch_state = TorchState(state, optimizer, self._parameters, fleet, transport.zeros)
        self._payload = Payload(algorithm, transport, self.flat, torch_state)
        self._averaging = self._averages(torch_state)
        self._averaging.begin(math.nan)

    def _start_equal_(self, tensors: Mapping[str, Tensor]) -> None:
        """Set the row of these tensors, and the buffers that are not in it, to those of rank 0."""
        world = self.fleet.world
        world.Bcast(self.flat.w[0])
        for name, b in self.model.named_buffers():
            if name not in tensors:
                b.copy_(world.bcast(b))

    def _averages(self, state: TorchState) -> Averaging:
        """Return the averages of this run, with what this object does before and after them."""
        return Averaging(
            self.algorithm,
            self.transport,
            self.flat,
            state,
            objective=self._objective,
            before=self._adopt,
            after=self._after,
        )

    @property
    def period(self) -> int:
        """Local updates since the last average; right after an average, since the one before it."""
        return self.t - self._start

    def step(self) -> Scope:
        """Average if it is time; call right after every optimizer.step().

        Return who averaged: Scope.NONE, CLUSTER or WORLD.
        """
        if self.scope:
            self._start = self.t
        self.t += 1
        scope = self._averaging.average_(self.t, self._gamma)
        self.scope = scope or self.algorithm.exchange.scope
        return self.scope

    def finish(self) -> Scope:
        """Make all models equal to their average; call after the last update.

        Return who averaged, Scope.NONE if the models were equal already.
        """
        scope = Scope.NONE
        if not self.algorithm.exchange.scope and self.algorithm.schedule.final > self.scope:
            if self.scope:
                self._start = self.t
            scope = self.scope = self._averaging.average_(self.t, self._gamma, last=True)
        self._adopt()
        return self._averaging.finish_() or scope

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Give the model the average of all learners, w̄, while the context lasts. Collective.

        The model has its own weights again after it.
        """
        self._adopt()
        own = self.flat.w.copy()  # [1, d]
        self.flat.w[0] = self.transport.mean(self.flat.w)
        try:
            yield
        finally:
            self.flat.w[...] = own

    def payload_bytes(self) -> tuple[int, int]:
        """Return the bytes of all ranks at the last exchange: (in nodes, across). Collective."""
        mine = self._payload.handed_over(self.scope)
        within, across = zip(*self.fleet.world.allgather(mine), strict=True)
        return sum(within), sum(across)

    def state_dict(self) -> dict[str, object]:
        """Return what a restart needs in addition to the model and the optimiser.

        Save all three on every rank: between averages they differ from rank to rank.
        """
        import torch

        average = self.algorithm.average.state_dict()
        return {
            "t": self.t,
            "start": self._start,
            "scope": int(self.scope),
            "variance": self.variance,
            "schedule": self.algorithm.schedule.state_dict(),
            "combine": {name: torch.tensor(x) for name, x in average.items()},
        }

    def load_state_dict(self, state: Settings) -> None:
        """Resume from `state`, which an averager with the same algorithm returned."""
        self.t, self._start = state["t"], state["start"]
        self.scope, self.variance = Scope(state["scope"]), state["variance"]
        self.algorithm.schedule.load_state_dict(state["schedule"])
        self.algorithm.average.load_state_dict(state["combine"])

    @property
    def _gamma(self) -> float:
        """The optimiser's present step size γ, if a schedule needs it; else NaN."""
        if self.optimizer is None or not self.algorithm.schedule.needs:
            return math.nan
        return float(self.optimizer.param_groups[0]["lr"])

    def _adopt(self) -> None:
        """Move tensors that were replaced since the last average into the row."""
        self.flat.adopt(averaged(self.model, self._statistics))

    def _after(self, t: int, scope: Scope, S: float) -> None:
        self.variance = S

    def _objective(self, t: int, w: Array) -> float:
        """Return F at the average, which every learner's model holds now."""
        assert self.objective is not None, "attach refuses such an algorithm without an objective"
        return self.fleet.world.allreduce(float(self.objective())) / self.fleet.P

    def _exchange(self, optimizer: Optimizer, args: tuple, kwargs: dict) -> None:
        """Exchange the gradients before the optimiser's step.

        Gradients that zero_grad(set_to_none=False) keeps are in the row already; others are copied
        into it.
        """
        if len(args) > 1 or kwargs:
            raise UserError(
                "attach: sync and qsgd exchange gradients before optimizer.step(closure) makes "
                "them; call backward() first and step() without a closure"
            )
        for name, p in self._parameters.items():
            g = self._gradients.tensors[name]
            if p.grad is None:
                g.zero_()
            elif p.grad.data_ptr() != g.data_ptr():
                g.copy_(p.grad)
            if p.requires_grad:
                p.grad = g
        self.algorithm.exchange.exchange_(self._gradients.w, self.t + 1, self.transport)


def _row_bytes(algorithm: Algorithm, state: str, tensors: Mapping[str, Tensor]) -> int:
    """Return the bytes of one learner's rows: weights, gradients, and the state of Adam at most."""
    rows = 1 + bool(algorithm.exchange.scope) + 2 * (state == "average")
    return 4 * rows * sum(x.numel() for x in tensors.values())
