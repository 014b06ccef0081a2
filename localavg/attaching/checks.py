"""The checks of `attach`: they refuse models and options that cannot be averaged."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import TYPE_CHECKING

import numpy as np

from localavg.algorithms.base import Algorithm
from localavg.attaching.row import averaged, check_tensor
from localavg.attaching.state import as_text, check_moments, words
from localavg.config.state import by_name
from localavg.errors import UserError, bad, check_choice, positive
from localavg.interfaces import Array
from localavg.parallel import survive
from localavg.parallel.fleet import Fleet
from localavg.scope import Scope

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module, Parameter
    from torch.optim import Optimizer


CONTINUE = survive.CONTINUE
LAUNCH = "mpirun --with-ft ulfm -n N python PROGRAM"
START_S = 60.0  # how long a rank waits in attach before it prints that others do not come


@dataclass(frozen=True, eq=False)
class Asked:
    """What a user asked `attach` for; the names are its arguments."""

    model: Module
    fleet: Fleet
    algorithm: Algorithm
    optimizers: Sequence[Optimizer]
    state: str | Mapping[str, str]
    statistics: str
    master: bool
    objective: Callable[[], float] | None
    seed: int
    log: str | None
    config: Mapping[str, object]
    warn_after: float
    hang_limit: float | None
    rows: int | None = None
    on_failure: str = "end"
    recovery_state: str = "policy"

    @property
    def stepped(self) -> bool:
        """Whether the steps of the optimisers matter: gradients or states are handled."""
        return bool(self.algorithm.exchange.scope) or words(self.state) != {"keep"}

    @property
    def patience(self) -> tuple[float, float | None]:
        """The seconds after which a rank that waits in attach prints it, and ends the job.

        The arguments are not checked yet.
        """
        warn_after, limit = (
            x if isinstance(x, int | float) and x > 0 else None
            for x in (self.warn_after, self.hang_limit)
        )
        return min(warn_after or START_S, START_S), limit


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
    algorithm = asked.algorithm
    if algorithm.delay is not None:
        why = "with `delay`: after a delayed average learners are not equal"
    elif algorithm.wire is not None:
        why = "with `wire`: what its code leaves over is lost with a node"
    elif len(algorithm.average.pieces) > 1:
        why = "with `fragments`: after an average of a piece learners are not equal"
    elif Scope.NEIGHBOURS in (algorithm.schedule.after(1), algorithm.schedule.final):
        why = "with gossip: its learners are never equal"
    elif any(x.device.type != "cpu" for x in averaged(asked.model).values()):
        why = "on a GPU: it takes averages of the host's memory only"
    else:
        survive.check(LAUNCH)
        return
    raise UserError(f"attach: `on_failure = {CONTINUE}` {why}; leave one of them out")


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


def parts(
    parameters: Mapping[str, Parameter], optimizers: Sequence[Optimizer]
) -> list[dict[str, Parameter]]:
    """Return the model's parameters that each optimiser has, by name.

    Raises UserError for a parameter that two optimisers have.
    """
    held = [covered([optimizer]) for optimizer in optimizers]
    for name, p in parameters.items():
        if sum(id(p) in ids for ids in held) > 1:
            raise UserError(
                f"attach: {name} is in two of the optimizers given; leave it in one of them"
            )
    return [{name: p for name, p in parameters.items() if id(p) in ids} for ids in held]


def covered(optimizers: Sequence[Optimizer]) -> set[int]:
    """Return the identities of the parameters that some optimiser has."""
    return {id(p) for x in optimizers for group in x.param_groups for p in group["params"]}


def uncovered(model: Module, known: set[int]) -> str:
    """Return what is wrong if a trainable parameter is not among the `known` ones, else ""."""
    for name, p in model.named_parameters():
        if p.requires_grad and id(p) not in known:
            return (
                f"attach: {name} is trainable and in none of the optimizers given at attach; give "
                "all of them when the model is complete, or freeze it (requires_grad_(False))"
            )
    return ""


def foreign(model: Module, optimizers: Sequence[Optimizer], known: Collection[int] = ()) -> str:
    """Return what is wrong if an optimiser trains a tensor that is not in the model, else "".

    known: the identities of tensors that are left out.
    """
    mine = {id(p) for p in model.parameters()}
    for optimizer in optimizers:
        for number, group in enumerate(optimizer.param_groups):
            names = group.get("param_names") or [""] * len(group["params"])
            for p, name in zip(group["params"], names, strict=True):
                if p.requires_grad and id(p) not in mine and id(p) not in known:
                    what = name or f"a tensor {tuple(p.shape)}"
                    return (
                        f"attach: {type(optimizer).__name__} trains {what} (group {number}), which "
                        "is not in the model and would never be averaged; attach one module that "
                        "has everything, as nn.ModuleList([model, head])"
                    )
    return ""


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
