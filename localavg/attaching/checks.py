"""The checks of `attach`: they refuse models and options that cannot be averaged."""

from __future__ import annotations

from collections.abc import Callable
from itertools import zip_longest
from typing import TYPE_CHECKING

from localavg.algorithms.base import Algorithm
from localavg.attaching.row import averaged, check_tensor
from localavg.config import STATES
from localavg.errors import UserError, check_choice
from localavg.parallel.fleet import Fleet

if TYPE_CHECKING:
    from torch.nn import Module
    from torch.optim import Optimizer


def check(
    model: Module,
    fleet: Fleet,
    algorithm: Algorithm,
    optimizer: Optimizer | None,
    state: str,
    objective: Callable[[], float] | None,
) -> None:
    """Raise UserError if this rank's model or the options cannot be averaged."""
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
    if state == "reset" and optimizer is not None and optimizer.state:
        raise UserError(
            f"attach with state='reset': {type(optimizer).__name__} has a state already and may "
            "not start without one; attach before its first step, or use keep or average"
        )
    if objective is None and schedule.needs == "objective":
        raise UserError(
            "attach: adalupa(rule='loss') is steered by F(w̄); pass objective=, a function that "
            "returns it"
        )
    _check_tensors(model)


def _check_tensors(model: Module) -> None:
    """Raise UserError if a tensor is not float32 on the CPU, or two of them share memory."""
    places: dict[int, str] = {}
    for name, x in averaged(model).items():
        check_tensor(name, x)
        if x.numel() and (other := places.setdefault(x.data_ptr(), name)) != name:
            raise UserError(
                f"attach: {other} and {name} are two tensors in one memory; to tie weights, "
                "register one Parameter in both places"
            )


def check_same(fleet: Fleet, shapes: dict[str, tuple[int, ...]]) -> None:
    """Raise UserError on every rank if any tensors' shapes differ from rank 0's. Collective."""
    first = fleet.world.bcast(shapes)

    def check() -> None:
        for mine, theirs in zip_longest(shapes.items(), first.items()):
            if mine != theirs:
                raise UserError(
                    f"attach: rank {fleet.rank}'s model has {mine or 'no more tensors'} where "
                    f"rank 0's has {theirs or 'none'}; build the same model on every rank"
                )

    fleet.together(check)
