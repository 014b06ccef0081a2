"""THE tables. Every synchronous algorithm is a schedule (when), an average (what it does) and an
exchange (what travels every update); any of them runs with any local optimiser, sampling and step
size. The asynchronous ones are rules for learners and servers of a center variable, with a local
update of their own.

The parameters of each function are its options on the command line, by the papers' names, with
their help where they are declared (`parameters.py`). In Python lengths are numbers of updates; the
command line takes some of them in epochs or as a fraction of the run.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from localavg.algorithms import adpsgd, downpour, eamsgd, hieravg, kavg, lupa, mavg, qsgd, sync
from localavg.algorithms.base import Algorithm
from localavg.algorithms.center import Asynchronous
from localavg.algorithms.parameters import Option, arguments, options_of
from localavg.errors import UserError
from localavg.interfaces import Settings

ALGORITHMS: dict[str, Callable[..., Algorithm]] = {
    "sgd": sync.sgd,  # all papers
    "sync": sync.sync,  # kavg, adpsgd, lupa: the baseline
    "qsgd": qsgd.qsgd,  # adpsgd §IV
    "kavg": kavg.kavg,  # kavg Alg. 1, adpsgd Alg. 1, lupa Alg. 1
    "oneshot": lupa.oneshot,  # lupa §6
    "mavg": mavg.mavg,  # mavg Alg. 1
    "hieravg": hieravg.hieravg,  # hieravg Alg. 1
    "adpsgd": adpsgd.adpsgd,  # adpsgd Alg. 2
    "adalupa": lupa.adalupa,  # lupa §5–6
    "piecewise": adpsgd.piecewise,  # adpsgd §III-A, §V-B
}

ASYNCHRONOUS: dict[str, Callable[..., Asynchronous]] = {
    "downpour": downpour.downpour,  # kavg §4.1: the baselines of Figs. 1–4
    "eamsgd": eamsgd.eamsgd,
}

BOTH: dict[str, Callable[..., Algorithm | Asynchronous]] = {**ALGORITHMS, **ASYNCHRONOUS}

LONG = {"T": 10**9, "epoch": 10**6}  # a run in which no length is too short


def declared(name: str) -> dict[str, Option]:
    """The options of an algorithm on the command line, by their names."""
    return options_of(BOTH[name])


def options(name: str) -> dict[str, Any]:
    """The options of an algorithm and their defaults."""
    return {option.name: option.default for option in declared(name).values()}


def check(name: str, given: Settings) -> None:
    """Raise the UserError of `make` for anything that is wrong in a run of any length."""
    make(name, given, **LONG)


def make(
    name: str, given: Settings, T: int, epoch: float, P: int = 1, momentum: float = 0.9
) -> Any:
    """The Algorithm or Asynchronous `name` with the options `given` as on the command line, for T
    updates of P learners, `epoch` in an epoch.

    Raises UserError for an unknown name, an option that the algorithm does not have, or a value
    that breaks a rule.
    """
    if name not in BOTH:
        raise UserError(f"algorithm {name}: must be one of {', '.join(BOTH)}")
    known = declared(name)
    if stray := [option for option in given if option not in known]:
        takes = ", ".join(f"`{option}`" for option in known) or "no options of its own"
        raise UserError(f"`{stray[0]}` means nothing to {name}, which takes {takes}")
    run = {"P": P, "momentum": momentum}
    return BOTH[name](**arguments(BOTH[name], given, T, epoch, run))
