"""All settings of a run: read, listed for the run file, compared with an earlier run."""

from __future__ import annotations

import os
from dataclasses import asdict, fields
from typing import Any

from localavg import algorithms
from localavg.algorithms.common import COMMON
from localavg.algorithms.parameters import AUTO
from localavg.config import TrainConfig
from localavg.config.settings import WITH_AUTO
from localavg.config.state import is_averaged, words
from localavg.errors import UserError, check_choice
from localavg.interfaces import Settings
from localavg.learner import stepsizes
from localavg.models import MODELS
from localavg.training.meaning import same

TIMING = ("timing_from", "step_s", "step_cv", "latency_s", "bandwidth_bytes_per_s", "service_s")
# The program chooses these if they are not given, or auto. They are not compared then.
FILLED_IN = {"learners", "steps", "problem", "device", "participants", "weights", "switch"} | {
    *TIMING
}
FREE = {  # settings that do not change the result
    "out",
    "transport",
    "ranks_per_node",
    "resume",
    "checkpoint_every",
    "time_limit",
    "on_failure",
    "recovery_state",
    "servers",
}


def read(given: Settings) -> TrainConfig:
    """Make the settings of a run from those `given` by name, with the algorithm's own options.

    Raises UserError for an unknown algorithm, an option that the algorithm does not have, a value
    that breaks its rule, and a setting that has no effect together with the others.
    """
    given = of_today(given)
    names = {f.name for f in fields(TrainConfig)}
    options = {name: value for name, value in given.items() if name not in names}
    plain: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in given.items()
        if name in names
    }
    if plain["algorithm"] not in algorithms.BOTH:
        raise algorithms.unknown(plain["algorithm"])
    plain = {**algorithms.SETTINGS.get(plain["algorithm"], {}), **plain}
    config = TrainConfig(options=options, **plain)
    algorithms.check(config.algorithm, own_options(config, epoch=1e6), config.learners)
    if options.get("delay") and is_averaged(config.state):
        raise UserError(
            f"`state = {config.state}` with `delay`: the weights average later, and the state of "
            "the optimiser cannot; use keep or reset"
        )
    if config.on_failure != "end":
        _check_recovery(config)
    if (options.get("fragments") or 1) > 1 and words(config.state) != {"keep"}:
        raise UserError(
            f"`state = {config.state}` with `fragments`: a piece of the weights averages, and the "
            "state of the optimiser is of all; use keep"
        )
    config.refuse_useless(given)
    if config.replay and config.algorithm in WITH_AUTO and options.get("K") != AUTO:
        raise UserError(
            f"`replay = {config.replay}` means nothing to {config.algorithm} with a fixed K, whose "
            "averages repeat themselves; add `K = auto`, or leave it out"
        )
    if config.model is not None:
        check_choice("model", config.model, tuple(MODELS))
    return config


def _check_recovery(c: TrainConfig) -> None:
    """Raise UserError for learners that are apart, if what each of them has is not kept.

    And for learners with servers on GPUs, which nobody has tried.
    """
    if c.algorithm in algorithms.ASYNCHRONOUS and c.device == "cuda":
        raise UserError(
            f"`on_failure = {c.on_failure}` with `device = cuda`: learners of {c.algorithm} go on "
            "only on the CPU; use `device = cpu`, or leave `on_failure` out"
        )
    if c.recovery_state == "all":
        return
    if c.options.get("delay"):
        why = f"`delay = {c.options['delay']}`: after a delayed average"
    elif (c.options.get("fragments") or 1) > 1:
        why = f"`fragments = {c.options['fragments']}`: after an average of a piece"
    elif c.algorithm == "gossip":
        why = "gossip: after an average of neighbours"
    else:
        return
    raise UserError(
        f"`on_failure = {c.on_failure}` with {why} learners are not equal, so each learner's "
        "weights must be kept; add `recovery_state = all`, or leave `on_failure` out"
    )


def own_options(c: TrainConfig, epoch: float) -> Settings:
    """Return the options of a run's algorithm, with postlocal's `switch` if it was not given.

    That is the first change of the step size, as in Lin et al., for epochs of so many updates.
    """
    if c.algorithm != "postlocal" or c.options.get("switch") is not None:
        return c.options
    t0 = stepsizes.first_change(c, epoch)
    return {**c.options, "switch": None if t0 is None else t0 / epoch}


def all_settings(c: TrainConfig) -> dict[str, object]:
    """Return all settings of a run, with defaults, by their names in the run file."""
    settings = asdict(c)
    given = settings.pop("options")
    return {**settings, **algorithms.filled_in(algorithms.options(c.algorithm) | given)}


def of_today(settings: Settings) -> Settings:
    """Return settings with the outer optimiser where earlier versions had `mu` and `nesterov`.

    `mu` above 0 was block momentum with η = 1, `nesterov` its other form.
    """
    if not _takes_outer(settings) or "outer" in settings or "nesterov" not in settings:
        return settings
    options = algorithms.options(settings["algorithm"])
    new = {name: value for name, value in settings.items() if name != "nesterov"}
    mu = new.pop("mu", options["mu"]) or 0.0
    if not mu and settings["algorithm"] != "mavg":
        return new
    rule = "nesterov" if settings["nesterov"] else "momentum"
    return {**new, "outer": rule, "outer_lr": 1.0, "mu": mu}


def recorded(config: Settings) -> Settings:
    """Return the settings in a run file, by the names and with the values that they have today."""
    name = config.get("algorithm")
    options = algorithms.options(name) if name in algorithms.BOTH else {}
    plain = {option: None for option in options if option in COMMON}  # what earlier versions lack
    return {**plain, **of_today(config)}


def _takes_outer(settings: Settings) -> bool:
    name = settings.get("algorithm")
    return name in algorithms.BOTH and "outer" in algorithms.options(name)


def difference(asked: Settings, config: Settings) -> str | None:
    """Describe the first setting that differs between a run file and `asked`; None if none does.

    A setting that is not given and that the program chooses is not compared.
    """
    asked, there = {**asked}, recorded(config)
    if asked["algorithm"] == "eamsgd" and asked["alpha"] is None:
        asked["alpha"] = 0.9 / there["learners"]
    here = {**asked, "learners": asked.get("learners") or there.get("learners")}
    for name in asked.keys() & there.keys() - FREE:
        want, have = asked[name], there[name]
        if (
            same(name, here, there)
            or (want in (None, "auto") and name in FILLED_IN)
            or (name == "data" and os.path.abspath(str(want)) == have)
        ):
            continue
        return f"`{name}` is {have} there and {want} here"
    return None
