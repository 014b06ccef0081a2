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
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

from localavg.algorithms.base import Algorithm
from localavg.config import STATES
from localavg.errors import UserError, check_choice
from localavg.learner.flat import Flat
from localavg.parallel.fleet import Fleet
from localavg.parallel.transport import choose
from localavg.scope import Scope

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

        fleet.together(lambda: _check(model, fleet, algorithm, optimizer, state, objective))
        torch.set_num_threads(min(fleet.threads, torch.get_num_threads()))
        self.algorithm = algorithm = copy.deepcopy(algorithm)
        self.model, self.fleet, self.optimizer, self.policy, self.objective = (
            model,
            fleet,
            optimizer,
            state,
            objective,
        )
        self._statistics = statistics
        self._parameters, tensors = dict(model.named_parameters()), _averaged(model, statistics)
        _check_same(fleet, {name: tuple(x.shape) for name, x in tensors.items()})
        rows = (
            1 + bool(algorithm.exchange.scope) + 2 * (state == "average")
        )  # weights, gradients, Adam's state
        self.transport = choose(
            "auto", fleet, algorithm.S, 4 * rows * sum(x.numel() for x in tensors.values())
        )
        self.flat = Row(tensors, self.transport.zeros, len(self._parameters))
        self.flat.adopt(tensors)
        fleet.world.Bcast(self.flat.w[0])
        for name, b in model.named_buffers():
            if name not in tensors:
                b.copy_(fleet.world.bcast(b))
        self.t, self._start = 0, 0  # _start: t at which the period began
        self.scope, self.variance = Scope.NONE, math.nan
        self._state: dict[str, Row] = {}  # the optimiser's state by its key, once it is averaged
        algorithm.average.start(self.flat.w, self.flat.d_trained)
        algorithm.exchange.start(fleet.learners, seed)
        if algorithm.exchange.scope:
            self._gradients = Row(self._parameters, self.transport.zeros)
            optimizer.register_step_pre_hook(self._exchange)
        if algorithm.schedule.needs == "objective":
            algorithm.schedule.observe(0, self._objective(), math.nan)

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
        scope = self.algorithm.schedule.after(self.t)
        if scope:
            self._average(scope)
        self.scope = scope or self.algorithm.exchange.scope
        return self.scope

    def finish(self) -> Scope:
        """Call after the last update: a run ends averaged. Returns who averaged, Scope.NONE where
        there was no need.
        """
        final = self.algorithm.schedule.final
        if self.algorithm.exchange.scope:  # the weights are equal, the statistics are not
            self.flat.adopt(_averaged(self.model, self._statistics))
            self.transport.mean_(self.flat.w[:, self.flat.d_trained :], Scope.WORLD)
        elif final > self.scope:
            if self.scope:
                self._start = self.t
            self._average(final)
            self.scope = final
            return final
        return Scope.NONE

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Within it the model holds w̄, the average of all learners; its own weights come back
        after. Collective.
        """
        self.flat.adopt(_averaged(self.model, self._statistics))
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
        exchange, flat, transport = self.algorithm.exchange, self.flat, self.transport
        if exchange.gathers:
            mine = transport.gather_bytes(exchange.payload_bytes(flat.d_trained, 1))
        elif exchange.scope:
            mine = transport.payload_bytes(exchange.payload_bytes(flat.d_trained, 1), self.scope)
        else:
            mine = transport.payload_bytes(
                4 * (flat.d + len(self._state) * flat.d_trained), self.scope
            )
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

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`, that of an averager with the same algorithm."""
        self.t, self._start = state["t"], state["start"]
        self.scope, self.variance = Scope(state["scope"]), state["variance"]
        self.algorithm.schedule.load_state_dict(state["schedule"])
        self.algorithm.average.load_state_dict(state["combine"])

    def _average(self, scope: Scope) -> None:
        self.flat.adopt(_averaged(self.model, self._statistics))
        schedule, w = self.algorithm.schedule, self.flat.w  # [1, d]
        steered = schedule.needs == "variance"
        self.variance = self.algorithm.average.average_(w, scope, self.transport, variance=steered)
        self._state_at_average(scope)
        if schedule.needs:
            gamma = (
                math.nan if self.optimizer is None else float(self.optimizer.param_groups[0]["lr"])
            )
            schedule.observe(self.t, self.variance if steered else self._objective(), gamma)

    def _objective(self) -> float:
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

    def _state_at_average(self, scope: Scope) -> None:
        """keep, average or reset the optimiser's state."""
        if self.policy == "keep":
            return
        if self.policy == "reset":
            for p in self._parameters.values():
                self.optimizer.state.pop(
                    p, None
                )  # the optimiser makes it anew, as at its first step
            return
        states = {name: self.optimizer.state.get(p, {}) for name, p in self._parameters.items()}
        shaped = {
            key
            for name, state in states.items()
            for key, x in state.items()
            if key != "step" and getattr(x, "shape", None) == self._parameters[name].shape
        }
        for key in sorted(
            set().union(*self.fleet.world.allgather(shaped))
        ):  # a rank may not have made its own yet
            if key not in self._state:
                self._state[key] = Row(self._parameters, self.transport.zeros)
            row = self._state[key]
            row.adopt({name: state[key] for name, state in states.items() if key in state})
            for name in [name for name, state in states.items() if key not in state]:
                row.tensors[name].zero_()
            self.transport.mean_(row.w, scope)


class Row(Flat):
    """One learner's flat row [1, d] with room for tensors of the shapes of `like`; `tensors` are
    its views by name.
    """

    def __init__(
        self, like: Mapping[str, Tensor], allocate: Callable, parameters: int | None = None
    ) -> None:
        import torch

        super().__init__(
            {name: tuple(x.shape) for name, x in like.items()}, 1, parameters, allocate
        )
        self.tensors = {name: torch.from_numpy(view) for name, view in self.views(0).items()}

    def adopt(self, tensors: Mapping[str, Tensor]) -> None:
        """Move each tensor's memory to the view of its name, contents and all; those already there
        stay.

        Once more at every average, for what was put in a tensor's place since: a buffer that its
        module assigns anew, load_state_dict(assign=True).
        """
        for name, x in tensors.items():
            view = self.tensors.get(name)
            if view is None or x.shape != view.shape:
                raise UserError(
                    f"attach: {name} is new or has another shape now; attach when the model is "
                    "complete"
                )
            if x.data_ptr() != view.data_ptr() and x.numel():
                _check_tensor(name, x)
                view.copy_(x.detach())
                x.data = view


def _averaged(model: Module, statistics: bool = True) -> dict[str, Tensor]:
    """The tensors of a model that are averaged, by name: parameters, then with `statistics`
    floating-point buffers.
    """
    buffers = {name: b for name, b in model.named_buffers() if statistics and b.is_floating_point()}
    return dict(model.named_parameters()) | buffers


def _check(
    model: Module,
    fleet: Fleet,
    algorithm: Algorithm,
    optimizer: Optimizer | None,
    state: str,
    objective: Callable[[], float] | None,
) -> None:
    check_choice("state", state, STATES)
    schedule, exchange = algorithm.schedule, algorithm.exchange
    if fleet.P != fleet.ranks:
        raise UserError(
            f"attach with {fleet.P} learners on {fleet.ranks} ranks: a model is one "
            f"learner; use as many learners as ranks"
        )
    if fleet.P > 1 and not schedule.final and not exchange.scope:
        raise UserError(f"attach: sequential sgd on {fleet.P} ranks; use sync or kavg, or one rank")
    if optimizer is None and (exchange.scope or schedule.needs == "variance" or state != "keep"):
        raise UserError(
            "attach: this algorithm exchanges gradients, steers by the step size or handles the "
            "optimiser's state; pass optimizer="
        )
    if state == "reset" and optimizer.state:
        raise UserError(
            f"attach with state='reset': {type(optimizer).__name__} has a state already and may "
            "not start "
            f"without one; attach before its first step, or use keep or average"
        )
    if objective is None and schedule.needs == "objective":
        raise UserError(
            "attach: adalupa(rule='loss') is steered by F(w̄); pass objective=, a function that "
            "returns it"
        )
    places: dict[int, str] = {}
    for name, x in _averaged(model).items():
        _check_tensor(name, x)
        if x.numel() and (other := places.setdefault(x.data_ptr(), name)) != name:
            raise UserError(
                f"attach: {other} and {name} are two tensors in one memory; to tie weights, "
                "register one "
                f"Parameter in both places"
            )


def _check_tensor(name: str, x: Tensor) -> None:
    if str(x.dtype) != "torch.float32" or x.device.type != "cpu":
        raise UserError(
            f"attach: {name} is {x.dtype} on {x.device}; weights must be torch.float32 on the CPU "
            "so far"
        )


def _check_same(fleet: Fleet, shapes: dict[str, tuple[int, ...]]) -> None:
    first = fleet.world.bcast(shapes)

    def check() -> None:
        for mine, theirs in zip_longest(shapes.items(), first.items()):
            if mine != theirs:
                raise UserError(
                    f"attach: rank {fleet.rank}'s model has {mine or 'no more tensors'} where rank "
                    "0's has "
                    f"{theirs or 'none'}; build the same model on every rank"
                )

    fleet.together(check)
