"""Local updates and periodic averaging in someone's own torch loop:

    fleet = localavg.Fleet(MPI.COMM_WORLD)
    averager = localavg.attach(model, fleet, localavg.mavg(K=16, mu=0.7))
    ...
    optimizer.step(); averager.step()        # in the loop; averager.finish() after it

The model's parameters and floating-point buffers become views into one flat row, so that an average moves no tensor
anywhere: the modules and their optimiser stay as they are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from localavg.algorithms import Algorithm
from localavg.config import STATES, UserError, check_choice
from localavg.flat import Flat
from localavg.fleet import Fleet
from localavg.schedules import Scope
from localavg.transport.mpi import HostMPI

if TYPE_CHECKING:
    import torch


def attach(model: torch.nn.Module, fleet: Fleet, algorithm: Algorithm, optimizer: torch.optim.Optimizer | None = None, *,
           state: str = "keep", objective: Callable[[], float] | None = None, seed: int = 0) -> Averager:
    """Average `model` over the fleet, one learner a rank, as `algorithm` says; collective. All start from rank 0's weights.

    optimizer: needed by sync and qsgd (its step waits for the gradients' exchange), by adpsgd (its lr is γ), and for
    `state`, what an average does to its state: keep, average, reset. objective: F on this rank's data at the model's present
    weights, for adalupa(rule="loss"); its mean over ranks is used. seed: of qsgd's rounding.

    Raises UserError for several learners a rank, tensors that are not float32 on the CPU, or something needed and not given.
    """
    return Averager(model, fleet, algorithm, optimizer, state, objective, seed)


class Averager:
    """What `attach` returns. `t` counts local updates; `period` is the number since the last average."""

    def __init__(self, model: Any, fleet: Fleet, algorithm: Algorithm, optimizer: Any, state: str,
                 objective: Callable[[], float] | None, seed: int) -> None:
        check_choice("state", state, STATES)
        _check(fleet, algorithm, optimizer, state, objective)
        self.fleet, self.algorithm, self.optimizer, self.policy, self.objective = fleet, algorithm, optimizer, state, objective
        self.transport = HostMPI(fleet, algorithm.S)
        parameters = dict(model.named_parameters())
        statistics = {name: b for name, b in model.named_buffers() if b.is_floating_point()}
        self.flat = Flat({name: tuple(x.shape) for name, x in (parameters | statistics).items()}, 1, len(parameters))
        for name, x in (parameters | statistics).items():
            if str(x.dtype) != "torch.float32" or x.device.type != "cpu":
                raise UserError(f"attach: {name} is {x.dtype} on {x.device}; weights must be torch.float32 on the CPU so far")
        _adopt(parameters | statistics, self.flat.views(0))
        fleet.world.Bcast(self.flat.w[0])
        self._parameters = list(parameters.values())
        self._state: dict[str, Flat] = {}  # optimiser state by its key, flat once it is averaged
        self.t, self._last = 0, 0
        algorithm.combine.start(self.flat.w, self.flat.d_trained)
        algorithm.exchange.start(fleet.learners, seed)
        if algorithm.exchange.scope:
            self._gradients = Flat({name: tuple(x.shape) for name, x in parameters.items()}, 1)
            optimizer.register_step_pre_hook(lambda *_: self._exchange())
        if algorithm.schedule.needs == "objective":
            algorithm.schedule.observe(0, self._objective(), math.nan)

    @property
    def period(self) -> int:
        """Local updates since the last average."""
        return self.t - self._last

    def step(self) -> Scope:
        """Call after every optimizer.step(); returns who averaged: Scope.NONE, CLUSTER or WORLD."""
        self.t += 1
        scope = self.algorithm.schedule.after(self.t)
        if scope:
            self._average(scope)
        return scope

    def finish(self) -> None:
        """Call after the last update: a run ends averaged."""
        if self.period and self.algorithm.schedule.final:
            self._average(self.algorithm.schedule.final)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Within it the model holds w̄, the average of all learners, for evaluation; its own weights come back after. Collective."""
        own = self.flat.w.copy()  # [1, d]
        self.flat.w[0] = self.transport.mean(self.flat.w)
        try:
            yield
        finally:
            self.flat.w[...] = own

    def state_dict(self) -> dict[str, Any]:
        """Everything beside the model and the optimiser that a restart needs; each rank's is its own."""
        schedule, combine = self.algorithm.schedule.state_dict(), self.algorithm.combine.state_dict()
        return {"t": self.t, "last": self._last, "schedule": schedule, "combine": {k: x.copy() for k, x in combine.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state`, after the model and the optimiser have loaded theirs."""
        self.t, self._last = state["t"], state["last"]
        self.algorithm.schedule.load_state_dict(state["schedule"])
        self.algorithm.combine.load_state_dict(state["combine"])

    def _average(self, scope: Scope) -> None:
        schedule = self.algorithm.schedule
        S = self.algorithm.combine.average_(self.flat.w, scope, self.transport, variance=schedule.needs == "variance")
        self._state_at_average(scope)
        self._last = self.t
        if schedule.needs:
            gamma = self.optimizer.param_groups[0]["lr"] if self.optimizer is not None else math.nan
            schedule.observe(self.t, S if schedule.needs == "variance" else self._objective(), float(gamma))

    def _objective(self) -> float:
        return self.fleet.world.allreduce(float(self.objective())) / self.fleet.P

    def _exchange(self) -> None:
        """Mean gradients, in place where the loop keeps them (zero_grad(set_to_none=False)), else gathered and put back."""
        for p, g in zip(self._parameters, self._gradients.views(0).values(), strict=True):
            if p.grad is None:
                g[...] = 0
            elif p.grad.data_ptr() != g.ctypes.data:
                g[...] = p.grad.numpy()
            else:
                continue
            p.grad = _tensor(g)
        self.algorithm.exchange.exchange_(self._gradients.w, self.t + 1, self.transport)

    def _state_at_average(self, scope: Scope) -> None:
        """keep, average or reset the optimiser's state."""
        if self.policy == "keep":
            return
        states = [self.optimizer.state[p] for p in self._parameters]
        if self.policy == "reset":
            for state in states:
                state.clear()  # the optimiser makes it anew, as at its first step
            return
        shapes = {str(i): tuple(p.shape) for i, p in enumerate(self._parameters)}
        like_weights = [key for key, x in states[0].items() if key != "step" and getattr(x, "shape", None) is not None]
        for key in like_weights:
            flat = self._state.setdefault(key, Flat(shapes, 1))
            _adopt({name: s[key] for name, s in zip(shapes, states, strict=True)}, flat.views(0))
            self.transport.mean_(flat.w, scope)


def _adopt(tensors: dict[str, Any], views: dict[str, np.ndarray]) -> None:
    """Move each tensor's memory to the view of its name, contents and all; those already there stay."""
    for name, x in tensors.items():
        if x.data_ptr() != views[name].ctypes.data:
            views[name][...] = x.detach().numpy()
            x.data = _tensor(views[name])


def _tensor(view: np.ndarray) -> Any:
    import torch

    return torch.from_numpy(view)


def _check(fleet: Fleet, algorithm: Algorithm, optimizer: Any, state: str, objective: Any) -> None:
    if fleet.L != 1:
        raise UserError(f"attach with {fleet.L} learners a rank: a model is one learner; use as many learners as ranks")
    needs = algorithm.schedule.needs
    if optimizer is None and (algorithm.exchange.scope or needs == "variance" or state != "keep"):
        raise UserError("attach: this algorithm exchanges gradients, steers by the step size or handles the optimiser's state; "
                        "pass optimizer=")
    if objective is None and needs == "objective":
        raise UserError("attach: adalupa(rule='loss') is steered by F(w̄); pass objective=, a function that returns it")
