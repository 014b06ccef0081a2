"""THE tables. Every synchronous algorithm is a schedule (when), a combine step (what an average
does) and an exchange (what travels every step); any of them runs with any local optimiser, sampling
and step size. The asynchronous ones are rules for learners and servers of a center variable, with a
local update of their own.

The parameters of each function are its options on the command line, by the papers' names. T
(updates in all), `epoch` (updates in an epoch), P and the local update's momentum are filled in by
the caller where a function asks for them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from localavg.algorithms import adpsgd, downpour, eamsgd, hieravg, kavg, lupa, mavg, qsgd, sync
from localavg.algorithms.base import Algorithm
from localavg.algorithms.downpour import Asynchronous
from localavg.errors import UserError

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


def options(name: str) -> dict[str, Any]:
    """The options of an algorithm and their defaults."""
    parameters = inspect.signature(BOTH[name]).parameters
    return {p.name: p.default for p in parameters.values() if p.default is not p.empty}


def make(
    name: str, given: Mapping[str, Any], T: int, epoch: float, P: int = 1, momentum: float = 0.9
) -> Any:
    """The Algorithm or Asynchronous `name` with the options `given`, for T updates of P learners,
    `epoch` in an epoch.

    Raises UserError for an unknown name, an option that the algorithm does not have, or a value
    that breaks a rule.
    """
    if name not in BOTH:
        raise UserError(f"algorithm {name}: must be one of {', '.join(BOTH)}")
    known = options(name)
    if stray := [option for option in given if option not in known]:
        takes = (
            ", ".join(f"--{option.replace('_', '-')}" for option in known)
            or "no options of its own"
        )
        raise UserError(
            f"--{stray[0].replace('_', '-')} means nothing to {name}, which takes {takes}"
        )
    wanted = inspect.signature(BOTH[name]).parameters
    context = {"T": T, "epoch": epoch, "P": P, "momentum": momentum}
    return BOTH[name](**{key: value for key, value in context.items() if key in wanted}, **given)
