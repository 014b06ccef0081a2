"""The tables of algorithms.

A synchronous algorithm has three parts: a schedule says when learners average, an average says what
happens to their weights, and an exchange says what travels at every update. It runs with any local
optimiser, sampling and step size. An asynchronous algorithm is a rule for learners and servers of a
center variable, and has its own local update.

The parameters of each function are its options on the command line. They have the papers' names,
and their help is where they are declared (`parameters.py`). In Python every length is a number of
updates; the command line takes some lengths in epochs or as a fraction of the run.
"""

from __future__ import annotations

from collections.abc import Callable
from difflib import get_close_matches
from typing import Any

from localavg.algorithms import (
    adacomm,
    adpsgd,
    common,
    diloco,
    downpour,
    eamsgd,
    fedavg,
    gossip,
    hieravg,
    kavg,
    lupa,
    mavg,
    postlocal,
    qsgd,
    qsr,
    slowmo,
    sync,
)
from localavg.algorithms.base import Algorithm
from localavg.algorithms.center import Asynchronous
from localavg.algorithms.parameters import AUTO, Option, Period, arguments, options_of
from localavg.errors import UserError
from localavg.interfaces import Settings

ALGORITHMS: dict[str, Callable[..., Algorithm]] = {
    "sgd": sync.sgd,  # all papers
    "sync": sync.sync,  # kavg, adpsgd, lupa: the baseline
    "qsgd": qsgd.qsgd,  # adpsgd §IV
    "kavg": kavg.kavg,  # kavg Alg. 1, adpsgd Alg. 1, lupa Alg. 1
    "oneshot": lupa.oneshot,  # lupa §6
    "mavg": mavg.mavg,  # mavg Alg. 1
    "diloco": diloco.diloco,  # Douillard et al. 2023
    "slowmo": slowmo.slowmo,  # Wang et al. 2020
    "postlocal": postlocal.postlocal,  # Lin et al. 2020
    "fedavg": fedavg.fedavg,  # McMahan et al. 2017
    "hieravg": hieravg.hieravg,  # hieravg Alg. 1
    "adpsgd": adpsgd.adpsgd,  # adpsgd Alg. 2
    "adacomm": adacomm.adacomm,  # Wang and Joshi 2019
    "adalupa": lupa.adalupa,  # lupa §5–6
    "piecewise": adpsgd.piecewise,  # adpsgd §III-A, §V-B
    "qsr": qsr.qsr,  # Gu et al. 2024
    "gossip": gossip.gossip,  # Lian et al. 2017, Assran et al. 2019, Wang et al. 2019
}

ASYNCHRONOUS: dict[str, Callable[..., Asynchronous]] = {
    "downpour": downpour.downpour,  # kavg §4.1: the baselines of Figs. 1–4
    "eamsgd": eamsgd.eamsgd,
}

BOTH: dict[str, Callable[..., Algorithm | Asynchronous]] = {**ALGORITHMS, **ASYNCHRONOUS}

KNOWN_AS = {  # names of others, without spaces and hyphens
    "bmuf": "mavg",
    "blockmomentum": "mavg",
    "cpsgd": "kavg",
    "localsgd": "kavg",
    "lupasgd": "kavg",
    "federatedaveraging": "fedavg",
    "fedavgm": "fedavg --outer momentum",
    "fedadam": "fedavg --outer adam",
    "fedyogi": "fedavg --outer yogi",
    "localadamw": "kavg --optimizer adamw",
    "localadam": "kavg --optimizer adam",
    "hierarchicalsgd": "hieravg --levels",
    "cocodsgd": "kavg --delay",
    "overlaplocalsgd": "kavg --delay --merge lerp",
    "daso": "kavg --delay --merge daso",
    "postlocalsgd": "postlocal",
    "dpsgd": "gossip",
    "sgp": "gossip --graph exp",
    "matcha": "gossip --graph matching",
    "fullsgd": "sync",
    "syncsgd": "sync",
}
SETTINGS: dict[str, Settings] = {  # of a run, whose defaults are others with some algorithms
    "fedavg": {"state": "reset"}
}
OWN = "localavg.train takes a function of your own; CONTRIBUTING.md says how it gets a name here"
LONG = {"T": 10**16, "epoch": 10**6}  # a run that is long enough for all options


def declared(name: str) -> dict[str, Option]:
    """Return the options of an algorithm on the command line, by their names."""
    return options_of(BOTH[name])


def options(name: str) -> dict[str, object]:
    """Return the options of an algorithm and their defaults."""
    return {option.name: option.default for option in declared(name).values()}


def with_auto() -> list[str]:
    """Return the algorithms whose K may be auto."""
    return [
        name
        for name, function in BOTH.items()
        if (K := options_of(function).get("K")) and isinstance(K.length, Period)
    ]


def unknown(name: str) -> UserError:
    """Make the error of a name that no algorithm has, with the name that it is like."""
    plain = name.lower().translate({ord(c): None for c in " -_"})
    like = [KNOWN_AS[plain]] if plain in KNOWN_AS else get_close_matches(name, BOTH, 1)
    hint = f"did you mean {like[0]}?" if like else OWN
    return UserError(f"algorithm {name}: must be one of {', '.join(BOTH)}; {hint}")


def filled_in(options: Settings) -> Settings:
    """Return the options of an algorithm as they take effect, where a default depends on others."""
    return common.filled_in(hieravg.filled_in(options))


def check(name: str, given: Settings, P: int | None = None) -> None:
    """Raise the UserError of `make` for any mistake that does not depend on the run's length.

    P: the number of learners, if it is known; they must be able to form the clusters.
    """
    made = make(name, given, **LONG, step_size=lambda t: 1.0)
    if P is not None and isinstance(made, Algorithm):
        made.check_learners(P)


def make(
    name: str,
    given: Settings,
    T: int,
    epoch: float,
    P: int = 1,
    momentum: float = 0.9,
    step_size: Callable[[int], float] | None = None,
) -> Any:
    """Make the Algorithm or Asynchronous `name` with the options `given` as on the command line.

    The run has T updates of P learners, and `epoch` updates per epoch. step_size: t → γ of update
    t, and in a warm-up the one right after it. Raises UserError for an unknown name, an option that
    the algorithm does not have, or a value that breaks a rule.
    """
    if name not in BOTH:
        raise unknown(name)
    known = declared(name)
    if stray := [option for option in given if option not in known]:
        takes = ", ".join(f"`{option}`" for option in known) or "no options of its own"
        raise UserError(f"`{stray[0]}` means nothing to {name}, which takes {takes}")
    if given.get("K") == AUTO and known["K"].length is None:
        rows = ", ".join(with_auto())
        raise UserError(
            f"`K = auto` means nothing to {name}: it chooses the period of averages of everyone; "
            f"give a number, or use one of {rows}"
        )
    run = {"P": P, "momentum": momentum, "step_size": step_size}
    made = BOTH[name](**arguments(BOTH[name], given, T, epoch, run))
    if not isinstance(made, Algorithm | Asynchronous):
        raise UserError(f"algorithm {name}: its function returned {made!r}, and not an Algorithm")
    return made
