"""Make the problem that the settings ask for."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from localavg import models
from localavg.config import TrainConfig
from localavg.datasets import Dataset, Split
from localavg.errors import UserError, pip_install
from localavg.interfaces import Device, Problem
from localavg.parallel.device import Cpu, Cuda
from localavg.parallel.fleet import Fleet
from localavg.problems.engines import choose as engines

if TYPE_CHECKING:
    from localavg.problems.logistic import Logistic
    from localavg.problems.network import Network


def make_problem(
    c: TrainConfig, data: Dataset, fleet: Fleet, device: Device | None = None
) -> Problem:
    """Make the problem that the settings ask for, on the host if no device is given.

    Raises UserError if data, `problem` and `model` do not fit together, if torch cannot use the
    device, or if the problem does not have the engine.
    """
    called_for = "network" if c.model or data.kind != "features" else "logistic"
    problem: Problem
    if (c.problem or called_for) == "logistic":
        problem = _logistic(c, data, device or Cpu())
    else:
        problem = _network(c, data, fleet, device or Cpu())
    engines.check(c.engine, problem)
    return problem


def _logistic(c: TrainConfig, data: Dataset, device: Device) -> Logistic:
    from localavg.problems.logistic import Logistic

    replace(c, problem="logistic")  # which refuses settings that mean nothing to it
    if not isinstance(device, Cuda):
        return Logistic(data, c.l2)
    train = Split(device.holding(data.train.x), device.holding(data.train.y))
    test = data.test and Split(device.holding(data.test.x), device.holding(data.test.y))
    return Logistic(replace(data, train=train, test=test), c.l2, device.xp)


def _network(c: TrainConfig, data: Dataset, fleet: Fleet, device: Device) -> Network:
    try:
        from localavg.problems.network import Network, set_up_torch
    except ImportError as e:
        raise UserError(
            f"`model = {c.model}`: networks need torch ({e}); {pip_install('torch')}"
        ) from e
    if c.model is None and data.kind != "features":
        raise UserError(
            f"`data = {c.data}`: images need a network; add `model` with one of "
            f"{', '.join(models.MODELS)}"
        )
    set_up_torch(fleet.threads, device, c.precision, c.deterministic == "yes")
    return Network(
        data,
        c.model or "",
        c.l2,
        c.seed,
        augment=not c.no_augment,
        precision=c.precision,
        calibrate=c.calibrate,
        compiled=c.compile,
        device=device.name,
    )
