"""The checks of `attach`: they refuse models and options that cannot be averaged."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from itertools import zip_longest
from typing import TYPE_CHECKING

import numpy as np

from localavg.algorithms.base import Algorithm
from localavg.attaching.asked import CONTINUE, Asked
from localavg.attaching.covered import covered, foreign, parts, uncovered
from localavg.attaching.row import averaged, check_tensor
from localavg.attaching.state import as_text, check_moments, words
from localavg.config.state import by_name
from localavg.errors import UserError, bad, check_choice, positive
from localavg.interfaces import Array
from localavg.parallel import survive
from localavg.parallel.fleet import Fleet

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module


LAUNCH = "mpirun --with-ft ulfm -n N python PROGRAM"


def check_kinds(asked: Asked) -> None:
    """Raise UserError on this rank if an argument is something else than `attach` needs."""
    from torch.nn import Module
    from torch.optim import Optimizer

    for name, value, kind, remedy in (
        ("model", asked.model, Module, "a torch.nn.Module"),
        ("fleet", asked.fleet, Fleet, "a fleet: localavg.Fleet(communicator)"),
        ("algorithm", asked.algorithm, Algorithm, "made by a function, as localavg.kavg(K=16)"),
        *(("optimizer", x, Optimizer, "a torch optimizer or several") for x in asked.optimizers),
    ):
        if not isinstance(value, kind):
            text = repr(value).splitlines()[0][:60]
            raise UserError(f"attach: `{name} = {text}`: must be {remedy}")


def check(asked: Asked) -> None:
    """Raise UserError if this rank's model or the options cannot be averaged."""
    by_name("state", asked.state)
    check_choice("statistics", asked.statistics, ("average", "keep"))
    if not isinstance(asked.master, bool):
        raise bad("master", repr(asked.master), "must be True or False")
    _check_seconds("warn_after", asked.warn_after)
    _check_seconds("hang_limit", asked.hang_limit)
    _check_algorithm(asked)
    _check_recovery(asked)
    if len(asked.algorithm.average.pieces) > 1 and words(asked.state) != {"keep"}:
        raise UserError(
            "attach: with `fragments` a piece of the weights averages, and the state of the "
            'optimiser is of all; use state="keep"'
        )
    _check_tensors(asked.model, asked.statistics == "average")
    _check_optimizers(asked)


def _check_algorithm(asked: Asked) -> None:
    """Raise UserError if the algorithm does not go with the learners, or with the arguments."""
    fleet, schedule, exchange = asked.fleet, asked.algorithm.schedule, asked.algorithm.exchange
    if fleet.P != fleet.ranks:
        raise UserError(
            f"attach with {fleet.P} learners on {fleet.ranks} ranks: a model is one "
            f"learner; use as many learners as ranks"
        )
    asked.algorithm.check_learners(fleet.P)
    if fleet.P > 1 and not schedule.final and not exchange.scope:
        raise UserError(f"attach: sequential sgd on {fleet.P} ranks; use sync or kavg, or one rank")
    if not schedule.final and words(asked.state) != {"keep"}:
        raise UserError(
            f"attach: `state = {as_text(asked.state)}` means nothing to {asked.algorithm.name}, "
            "which averages no weights; leave it out"
        )
    if asked.master and exchange.scope:
        who = (
            "sync and qsgd" if exchange.until == math.inf else f"the first {exchange.until} updates"
        )
        raise UserError(
            f"attach with master=True: {who} average gradients, not weights; leave it out"
        )
    if why := asked.algorithm.average.not_attached:
        raise UserError(f"attach: {why}")
    if asked.objective is None and schedule.needs == "objective":
        raise UserError(
            "attach: adalupa(rule='loss') is steered by F(w̄); pass objective=, a function that "
            "returns it"
        )
    if asked.algorithm.delay is not None and schedule.needs == "objective":
        raise UserError(
            "attach: with `delay` no model is w̄ when F(w̄) is needed; leave `delay` out, or use "
            "another algorithm"
        )
    if asked.algorithm.delay is not None and "average" in words(asked.state):
        raise UserError(
            "attach: with `delay` the weights average later, and their state cannot; use "
            'state="keep" or "reset"'
        )


def _check_recovery(asked: Asked) -> None:
    """Raise UserError if this rank cannot go on from the last average when others die."""
    check_choice("on_failure", asked.on_failure, ("end", CONTINUE))
    check_choice("recovery_state", asked.recovery_state, ("policy", "all"))
    if asked.on_failure != CONTINUE:
        if asked.recovery_state != "policy":
            raise UserError(
                f"attach: `recovery_state = {asked.recovery_state}` means nothing without "
                '`on_failure = "continue"`; add it, or leave this out'
            )
        return
    if any(x.device.type != "cpu" for x in averaged(asked.model).values()):
        raise UserError(
            f"attach: `on_failure = {CONTINUE}` on a GPU: it takes averages of the host's memory "
            "only; leave one of them out"
        )
    survive.check(LAUNCH)


def _check_seconds(name: str, value: float | None) -> None:
    if value is not None and not isinstance(value, int | float):
        raise bad(name, repr(value), "must be a number of seconds")
    positive(name, value)


def _check_optimizers(asked: Asked) -> None:
    """Raise UserError if the optimisers are not those that the algorithm or the state needs."""
    algorithm = asked.algorithm
    steered = (
        algorithm.schedule.needs in ("variance", "losses", "pace") or algorithm.average.needs_gamma
    )
    needed = algorithm.exchange.scope or steered
    if not asked.optimizers and (needed or words(asked.state) != {"keep"}):
        raise UserError(
            "attach: this algorithm exchanges gradients, uses the step size or handles the "
            "optimiser's state; pass optimizer="
        )
    for optimizer in asked.optimizers:
        check_moments(asked.state, optimizer)
        if "reset" in words(asked.state) and optimizer.state:
            raise UserError(
                f"attach with state={as_text(asked.state)!r}: {type(optimizer).__name__} has a "
                "state already and may not start without one; attach before its first step, or use "
                "keep or average"
            )
    parts(dict(asked.model.named_parameters()), asked.optimizers)
    if fault := foreign(asked.model, asked.optimizers):
        raise UserError(fault)
    if asked.stepped and (fault := uncovered(asked.model, covered(asked.optimizers))):
        raise UserError(fault)


def _check_tensors(model: Module, statistics: bool) -> None:
    """Raise UserError if a tensor cannot lie in a row, or two of them share memory or no device."""
    from torch.nn.parameter import is_lazy

    places: dict[int, str] = {}
    tensors: dict[str, Tensor] = averaged(model, statistics)
    first = next(iter(tensors), "")
    for name, x in tensors.items():
        if is_lazy(x):
            raise UserError(
                f"attach: {name} has no shape yet, because its module is lazy; run one batch "
                "through the model before attach"
            )
        check_tensor(name, x)
        if x.device != (device := tensors[first].device):
            raise UserError(
                f"attach: {name} is on {x.device} and {first} on {device}; put the whole model on "
                f"one device, as by model.to({str(device)!r})"
            )
        if x.numel() and (other := places.setdefault(x.data_ptr(), name)) != name:
            raise UserError(
                f"attach: {other} and {name} are two tensors in one memory; to tie weights, "
                "register one Parameter in both places"
            )


def diverged(w: Array, t: int, rank: int) -> str:
    """Return what is wrong if a trained number w [n] is not finite, else "". Rank 0 prints it."""
    if math.isfinite(w.sum(dtype=np.float64)):
        return ""
    why = f"the model is not finite after update {t}; lower the step size"
    if rank == 0:
        print(f"localavg: {why}", file=sys.stderr, flush=True)
    return why


def tell_no_update(t: int, rank: int) -> None:
    """Print on rank 0 that a program finishes which made no update: t = 0."""
    if t == 0 and rank == 0:
        print(
            "localavg: averager.finish(): no update was made: is the batch larger than a rank's "
            "part of the data?",
            file=sys.stderr,
            flush=True,
        )


def check_same(fleet: Fleet, tensors: Mapping[str, Tensor]) -> None:
    """Raise UserError on every rank if any tensors look other than rank 0's. Collective."""
    own = [
        f"{name} {tuple(x.shape)} of {x.dtype}, strides {x.stride()}, on {x.device.type}"
        for name, x in tensors.items()
    ]
    first = fleet.world.bcast(own)

    def check() -> None:
        for mine, theirs in zip_longest(own, first):
            if mine != theirs:
                raise UserError(
                    f"attach: rank {fleet.rank}'s model has {mine or 'no more tensors'} where "
                    f"rank 0's has {theirs or 'none'}; build the same model on every rank"
                )

    fleet.together(check)
