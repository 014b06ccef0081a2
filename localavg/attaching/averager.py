"""Local updates and periodic averaging in someone's own torch loop:

    fleet = localavg.Fleet(MPI.COMM_WORLD)
    averager = localavg.attach(model, fleet, localavg.mavg(K=16, mu=0.7))
    ...
    optimizer.step(); averager.step()        # in the loop; averager.finish() after it

The model's parameters and floating-point buffers become views into one flat row, so that an average
moves no tensor anywhere: the modules and their optimiser stay as they are.
`jobs/examples/attach.py` is a whole program.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

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
    """Average `model` over the fleet, one learner a rank, as `algorithm` says; collective. All
    start from rank 0's.

    Parameters and floating-point buffers (BatchNorm's running statistics) are averaged; other
    buffers (num_batches_tracked) are not. Torch keeps to fleet.threads from now on. To go on from a
    checkpoint, attach first, then load the model, the optimiser and the averager.

    optimizer: needed by sync and qsgd, whose exchange opens its step (what clips before it clips
    each rank's own gradient; a parameter without gradient counts as zero); by adpsgd, for which the
    lr of its first group is γ; and for `state`, what an average does to those of its tensors that
    are shaped like their parameters: keep, average, reset. statistics: average, or keep to leave
    every learner's floating-point buffers its own. objective: F on this rank's data at the model's
    present weights, for adalupa(rule="loss"); its mean over the ranks is used. seed: of qsgd's
    rounding.

    Raises UserError on every rank for several learners a rank, models that differ between ranks or
    are not float32 on the CPU, and what is needed and not given.
    """
    check_choice("statistics", statistics, ("average", "keep"))
    return Averager(
        model, fleet, algorithm, optimizer, state, statistics == "average", objective, seed
    )


class Averager:
    """What `attach` returns.

    t: local updates so far. scope: who averaged weights, or gradients, at the latest. variance: S
    at the latest average (adpsgd Alg. 2, line 11), over the parameters; NaN where the algorithm
    does without. algorithm: its own copy.
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
        fleet.world.Bcast(self.flat.w[0])
        for name, b in model.named_buffers():
            if name not in tensors:
                b.copy_(fleet.world.bcast(b))
        algorithm.exchange.start(fleet.learners, seed)
        if algorithm.exchange.scope and optimizer is not None:
            self._gradients = Row(self._parameters, transport.zeros)
            optimizer.register_step_pre_hook(self._exchange)
        torch_state = TorchState(state, optimizer, self._parameters, fleet, transport.zeros)
        self._payload = Payload(algorithm, transport, self.flat, torch_state)
        self._averaging = Averaging(
            algorithm,
            transport,
            self.flat,
            torch_state,
            objective=self._objective,
            before=self._adopt,
            after=self._after,
        )
        self._averaging.begin(math.nan)

    @property
    def period(self) -> int:
        """Local updates since the average before; right after an average, the length of the period
        that it closed.
        """
        return self.t - self._start

    def step(self) -> Scope:
        """Call right after every optimizer.step(); returns who averaged: Scope.NONE, CLUSTER or
        WORLD.
        """
        if self.scope:
            self._start = self.t
        self.t += 1
        scope = self._averaging.average_(self.t, self._gamma)
        self.scope = scope or self.algorithm.exchange.scope
        return self.scope

    def finish(self) -> Scope:
        """Call after the last update: a run ends averaged. Returns who averaged, Scope.NONE where
        there was no need.
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
        """Within it the model holds w̄, the average of all learners; its own weights come back
        after. Collective.
        """
        self._adopt()
        own = self.flat.w.copy()  # [1, d]
        self.flat.w[0] = self.transport.mean(self.flat.w)
        try:
            yield
        finally:
            self.flat.w[...] = own

    def payload_bytes(self) -> tuple[int, int]:
        """What all ranks handed over at the latest exchange: within nodes, across nodes.
        Collective.
        """
        mine = self._payload.handed_over(self.scope)
        within, across = zip(*self.fleet.world.allgather(mine), strict=True)
        return sum(within), sum(across)

    def state_dict(self) -> dict[str, Any]:
        """What a restart needs beside the model and the optimiser, which between averages are each
        rank's own.
        """
        import torch

        schedule, average = (
            self.algorithm.schedule.state_dict(),
            self.algorithm.average.state_dict(),
        )
        return {
            "t": self.t,
            "start": self._start,
            "scope": int(self.scope),
            "variance": self.variance,
            "schedule": schedule,
            "combine": {name: torch.tensor(x) for name, x in average.items()},
        }

    def load_state_dict(self, state: Settings) -> None:
        """Go on from `state`, that of an averager with the same algorithm."""
        self.t, self._start = state["t"], state["start"]
        self.scope, self.variance = Scope(state["scope"]), state["variance"]
        self.algorithm.schedule.load_state_dict(state["schedule"])
        self.algorithm.average.load_state_dict(state["combine"])

    @property
    def _gamma(self) -> float:
        """The optimiser's step size γ now."""
        return math.nan if self.optimizer is None else float(self.optimizer.param_groups[0]["lr"])

    def _adopt(self) -> None:
        """Take in what was put in the place of a tensor since the last average."""
        self.flat.adopt(averaged(self.model, self._statistics))

    def _after(self, t: int, scope: Scope, S: float) -> None:
        self.variance = S

    def _objective(self, t: int, w: Array) -> float:
        """F at the weights that every learner's model has now, the average."""
        assert self.objective is not None, "attach refuses such an algorithm without it"
        return self.fleet.world.allreduce(float(self.objective())) / self.fleet.P

    def _exchange(self, optimizer: Optimizer, args: tuple, kwargs: dict) -> None:
        """The mean gradients: in place where the loop keeps them, zero_grad(set_to_none=False),
        else gathered first.
        """
        if len(args) > 1 or kwargs:
            raise UserError(
                "attach: sync and qsgd exchange gradients before optimizer.step(closure) would "
                "make them; "
                "call backward() first and step() without a closure"
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
    """What the rows of one learner take: weights, gradients, the state of at most Adam."""
    rows = 1 + bool(algorithm.exchange.scope) + 2 * (state == "average")
    return 4 * rows * sum(x.numel() for x in tensors.values())
