"""THE tables. Every synchronous algorithm is a schedule (when), a combine step (what an average does) and an exchange
(what travels every step); any of them runs with any local optimiser, sampling and step size. The asynchronous ones are
rules for learners and servers of a center variable, with a local update of their own.

The parameters of each function are its options on the command line, by the papers' names. T (updates in all), `epoch`
(updates in an epoch), P and the local update's momentum are filled in by the caller where a function asks for them.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from localavg import schedules as when
from localavg.center import EAMSGD, Downpour
from localavg.combine import BlockMomentum, Mean
from localavg.config import UserError, at_least, bad, positive
from localavg.exchange import MeanGradient, Nothing, QuantisedGradient


@dataclass(frozen=True)
class Algorithm:
    """One row of the table, ready to run. S: learners in a cluster, where there are clusters."""

    schedule: when.Schedule
    combine: Mean
    exchange: Nothing
    S: int | None = None


@dataclass(frozen=True)
class Asynchronous:
    """One row of the asynchronous table: what learners and servers do, and how many ranks share the center variable."""

    rule: Downpour
    servers: int

    def __post_init__(self) -> None:
        at_least("servers", self.servers, 1)


def sgd() -> Algorithm:
    """Sequential mini-batch SGD, P = 1."""
    return Algorithm(when.Never(), Mean(), Nothing())


def sync() -> Algorithm:
    """Synchronous SGD (FULLSGD): the mean gradient at every step."""
    return Algorithm(when.Never(), Mean(), MeanGradient())


def qsgd(bits: int = 8, bucket: int = 512) -> Algorithm:
    """QSGD (adpsgd §IV; Alistarh et al. 2017): synchronous SGD on gradients quantised without bias."""
    return Algorithm(when.Never(), Mean(), QuantisedGradient(bits, bucket))


def kavg(K: int = 16) -> Algorithm:
    """K-AVG (kavg Alg. 1) = CPSGD (adpsgd Alg. 1) = LUPA-SGD (lupa Alg. 1, τ = K): w_j ← w̄ every K updates."""
    return Algorithm(when.Every(K), Mean(), Nothing())


def oneshot() -> Algorithm:
    """One-shot averaging (lupa §6): one average, at T."""
    return Algorithm(when.OneShot(), Mean(), Nothing())


def mavg(K: int = 16, mu: float = 0.7, nesterov: bool = False) -> Algorithm:
    """M-AVG (mavg Alg. 1): K-AVG with block momentum μ at the global level."""
    return Algorithm(when.Every(K), BlockMomentum(mu, nesterov), Nothing())


def hieravg(K1: int = 4, K2: int = 16, S: int = 4, mu: float = 0.0, nesterov: bool = False) -> Algorithm:
    """Hier-AVG (hieravg Alg. 1): clusters of S consecutive learners average every K1 updates, everyone every K2."""
    if S < 1:
        raise bad("S", S, "a cluster has at least 1 learner")
    schedule = when.Hierarchical(K1, K2)
    return Algorithm(schedule if S > 1 else when.Every(K2), _average(mu, nesterov), Nothing(), S)  # S = 1: nobody to meet


def adpsgd(T: int, epoch: float, p_init: int = 4, Ks: float = 0.25, low: float = 0.7, high: float = 1.3,
           warmup: float = 1.0, mu: float = 0.0, nesterov: bool = False) -> Algorithm:
    """ADPSGD (adpsgd Alg. 2): the variance of the learners steers the period. Ks: a fraction of T below 1, or updates.

    warmup: epochs of averaging every step before Algorithm 2 starts.
    """
    positive("Ks", Ks)
    if not 0 <= warmup < math.inf:
        raise bad("warmup", warmup, "must be a number of epochs of at least 0")
    K_s = int(round(Ks * T, 9)) if Ks < 1 else int(Ks)  # 0.29 · 100 is 29, not 28.999999999999996
    schedule = when.VarianceDriven(p_init, K_s, low, high, warmup=math.ceil(round(warmup * epoch, 9)))
    return Algorithm(schedule, _average(mu, nesterov), Nothing())


def adalupa(tau0: int = 91, alpha: float = 1.09, rule: str = "linear", mu: float = 0.0, nesterov: bool = False) -> Algorithm:
    """ADA-LUPA-SGD (lupa §5–6): periods (1 + iα)τ_0 (rule linear), or from the objective by eq. 11 (rule loss)."""
    if rule not in ("linear", "loss"):
        raise bad("rule", rule, "must be linear (lupa §6) or loss (lupa eq. 11)")
    schedule = when.Linear(tau0, alpha) if rule == "linear" else when.LossDriven(tau0)
    return Algorithm(schedule, _average(mu, nesterov), Nothing())


def piecewise(epoch: float, pieces: str = "0:4", mu: float = 0.0, nesterov: bool = False) -> Algorithm:
    """A period K for each stage of training (adpsgd §III-A, §V-B), as FROM_EPOCH:K,FROM_EPOCH:K,…"""
    try:
        stages = [(round(float(start) * epoch), int(K)) for start, K in (p.split(":") for p in pieces.split(","))]
    except (ValueError, OverflowError):
        raise bad("pieces", pieces, "must read FROM_EPOCH:K,FROM_EPOCH:K,… such as 0:4,80:8") from None
    return Algorithm(when.Piecewise(stages), _average(mu, nesterov), Nothing())


def downpour(P: int, K: int = 16, servers: int = 1) -> Asynchronous:
    """Downpour (Dean et al. 2012; kavg §4.1): learners add their changes to a center and fetch it, every K updates."""
    return Asynchronous(Downpour(K, P), servers)


def eamsgd(P: int, momentum: float, K: int = 16, alpha: float | None = None, servers: int = 1) -> Asynchronous:
    """EAMSGD (Zhang et al. 2015; kavg §4.1): elastic force α (0.9/P) to a center every τ = K updates; δ is --momentum."""
    return Asynchronous(EAMSGD(K, P, 0.9 / P if alpha is None else alpha, momentum), servers)


ALGORITHMS: dict[str, Callable[..., Algorithm]] = {
    "sgd": sgd,  # all papers
    "sync": sync,  # kavg, adpsgd, lupa: the baseline
    "qsgd": qsgd,  # adpsgd §IV
    "kavg": kavg,  # kavg Alg. 1, adpsgd Alg. 1, lupa Alg. 1
    "oneshot": oneshot,  # lupa §6
    "mavg": mavg,  # mavg Alg. 1
    "hieravg": hieravg,  # hieravg Alg. 1
    "adpsgd": adpsgd,  # adpsgd Alg. 2
    "adalupa": adalupa,  # lupa §5–6
    "piecewise": piecewise,  # adpsgd §III-A, §V-B
}

ASYNCHRONOUS: dict[str, Callable[..., Asynchronous]] = {
    "downpour": downpour,  # kavg §4.1: the baselines of Figs. 1–4
    "eamsgd": eamsgd,
}

BOTH: dict[str, Callable[..., Algorithm | Asynchronous]] = {**ALGORITHMS, **ASYNCHRONOUS}


def options(name: str) -> dict[str, Any]:
    """The options of an algorithm and their defaults."""
    parameters = inspect.signature(BOTH[name]).parameters
    return {p.name: p.default for p in parameters.values() if p.default is not p.empty}


def make(name: str, given: Mapping[str, Any], T: int, epoch: float, P: int = 1, momentum: float = 0.9) -> Any:
    """The Algorithm or Asynchronous `name` with the options `given`, for T updates of P learners, `epoch` in an epoch.

    Raises UserError for an unknown name, an option that the algorithm does not have, or a value that breaks a rule.
    """
    if name not in BOTH:
        raise UserError(f"algorithm {name}: must be one of {', '.join(BOTH)}")
    known = options(name)
    if stray := [option for option in given if option not in known]:
        takes = ", ".join(f"--{option.replace('_', '-')}" for option in known) or "no options of its own"
        raise UserError(f"--{stray[0].replace('_', '-')} means nothing to {name}, which takes {takes}")
    wanted = inspect.signature(BOTH[name]).parameters
    context = {"T": T, "epoch": epoch, "P": P, "momentum": momentum}
    return BOTH[name](**{key: value for key, value in context.items() if key in wanted}, **given)


def _average(mu: float, nesterov: bool) -> Mean:
    return BlockMomentum(mu, nesterov) if mu else Mean()
