"""What a command line asks for, as the settings of a run: nothing that would do nothing, and
whether an earlier run is that.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

from localavg import algorithms
from localavg.algorithms import ASYNCHRONOUS
from localavg.config import TrainConfig
from localavg.errors import UserError, check_choice
from localavg.models import MODELS

LOCKSTEP = {
    "ranks_per_node": None,
    "transport": "auto",
    "statistics": "average",
    "optimizer": "sgd",
    "state": "keep",
    "variance": "no",
}  # what only the synchronous algorithms can have otherwise
MODEL = ("machine", "step_s", "step_cv", "latency_s", "bandwidth_bytes_per_s", "service_s")


CHOSEN = {"learners", "steps", "problem", *MODEL}  # by the program, where they are not given
FREE = {  # what makes no difference to the result
    "out",
    "transport",
    "ranks_per_node",
    "resume",
    "checkpoint_every",
    "time_limit",
}


def flag(name: str) -> str:
    """A setting's name on the command line."""
    return "--" + name.replace("_", "-")


def read(given: Mapping[str, Any]) -> TrainConfig:
    """The settings of a run, from what the parser of `localavg train` made of its words.

    Raises UserError for a value that is against its rule, and for an option that does nothing
    beside the others.
    """
    options = {
        key.removeprefix("own "): value for key, value in given.items() if key.startswith("own ")
    }
    names = {f.name for f in fields(TrainConfig)} - {"options"}
    plain = {
        key: tuple(v) if isinstance(v, list) else v for key, v in given.items() if key in names
    }
    config = TrainConfig(options=options, **plain)
    if config.model is not None:
        check_choice("model", config.model, tuple(MODELS))
    _refuse_idle(plain, config)
    return config


def every(c: TrainConfig) -> dict[str, Any]:
    """All settings of a run, defaults included, by their names in its run file."""
    settings = asdict(c)
    given = settings.pop("options")
    return settings | algorithms.options(c.algorithm) | given


def difference(asked: Mapping[str, Any], recorded: Mapping[str, Any]) -> str | None:
    """The first setting in which a run file differs from what is asked, in words; None if it is the
    same run.

    What the program chooses where an option is not given is not compared.
    """
    asked = {**asked}
    if asked["algorithm"] == "eamsgd" and asked["alpha"] is None:
        asked["alpha"] = 0.9 / recorded["learners"]
    for name in asked.keys() & recorded.keys() - FREE:
        want, have = (list(x) if isinstance(x, tuple) else x for x in (asked[name], recorded[name]))
        if (
            want == have
            or (want is None and name in CHOSEN)
            or (name == "data" and os.path.abspath(want) == have)
        ):
            continue
        return f"{flag(name)} is {have} there and {want} here"
    return None


def _refuse_idle(given: dict[str, Any], c: TrainConfig) -> None:
    """An option that does nothing beside the others is a mistake."""
    asynchronous = c.algorithm in ASYNCHRONOUS
    others = [name for name, value in LOCKSTEP.items() if getattr(c, name) != value]
    no_momentum = c.algorithm != "eamsgd" and c.optimizer not in ("momentum", "nesterov")
    kept = (
        f"{c.algorithm}, which makes no checkpoints"
        if asynchronous
        else "a run with --simulate, which makes no checkpoints"
    )
    idle = {
        "lr": (c.schedule == "inverse", "--schedule inverse, whose γ_t is 4/(μ(t+a))"),
        "factor": (c.schedule != "steps", f"--schedule {c.schedule}; use --schedule steps"),
        "warmup_from": (not c.warmup_epochs, "a run without --warmup-epochs"),
        **dict.fromkeys(
            ("no_augment", "statistics", "calibrate", "precision", "compile"),
            (c.problem == "logistic", "--problem logistic"),
        ),
        **dict.fromkeys(
            others, (asynchronous, f"{c.algorithm}, whose local update and messages are its own")
        ),
        "device": (
            asynchronous and c.device == "cuda",
            f"{c.algorithm}, whose learners compute on the CPU so far",
        ),
        "momentum": (
            no_momentum,
            c.algorithm if asynchronous else f"--optimizer {c.optimizer}; use --optimizer momentum",
        ),
        **dict.fromkeys(MODEL, (not c.simulate, "a run whose time is measured; add --simulate")),
        **dict.fromkeys(("checkpoint_every", "time_limit"), (asynchronous or c.simulate, kept)),
        "replay": (
            c.simulate or not asynchronous,
            "a simulated run, which repeats itself" if asynchronous else c.algorithm,
        ),
    }
    if c.precision == "tf32" and c.device == "cpu":
        idle["precision"] = True, "--device cpu"
    if not asynchronous:
        idle["service_s"] = True, f"{c.algorithm}, which has no servers"
    for name, (does_nothing, beside) in idle.items():
        if name in given and does_nothing:
            said = flag(name) + f" {given[name]}" * (given[name] is not True)
            raise UserError(
                f"{said} means nothing to {beside}{', or' if ';' in beside else ';'} leave it out"
            )
