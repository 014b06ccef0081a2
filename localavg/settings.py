"""What a command line asks for, as the settings of a run: nothing that would do nothing beside the rest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from localavg.algorithms import ASYNCHRONOUS
from localavg.config import TrainConfig, UserError

LOCKSTEP = {"ranks_per_node": None, "transport": "auto", "statistics": "average", "optimizer": "sgd", "state": "keep",
            "variance": "no"}  # what only the synchronous algorithms can have otherwise
MODEL = ("machine", "step_s", "step_cv", "latency_s", "bandwidth_bytes_per_s", "service_s")


def flag(name: str) -> str:
    """A setting's name on the command line."""
    return "--" + name.replace("_", "-")


def read(given: Mapping[str, Any]) -> tuple[TrainConfig, dict[str, Any]]:
    """The settings and the algorithm's own options, from what the parser of `localavg train` made of its words.

    Raises UserError for a value that is against its rule, and for an option that does nothing beside the others.
    """
    options = {key.removeprefix("own "): value for key, value in given.items() if key.startswith("own ")}
    names = {f.name for f in fields(TrainConfig)}
    plain = {key: tuple(v) if isinstance(v, list) else v for key, v in given.items() if key in names}
    config = TrainConfig(**plain)
    _refuse_idle(plain, config)
    return config, options


def _refuse_idle(given: dict[str, Any], c: TrainConfig) -> None:
    """An option that does nothing beside the others is a mistake."""
    asynchronous = c.algorithm in ASYNCHRONOUS
    others = [name for name, value in LOCKSTEP.items() if getattr(c, name) != value]
    no_momentum = c.algorithm != "eamsgd" and c.optimizer not in ("momentum", "nesterov")
    kept = f"{c.algorithm}, which makes no checkpoints" if asynchronous else "a run with --simulate, which makes no checkpoints"
    idle = {
        "lr": (c.schedule == "inverse", "--schedule inverse, whose γ_t is 4/(μ(t+a))"),
        "factor": (c.schedule != "steps", f"--schedule {c.schedule}; use --schedule steps"),
        "warmup_from": (not c.warmup_epochs, "a run without --warmup-epochs"),
        **dict.fromkeys(("no_augment", "statistics", "calibrate", "precision", "compile"),
                        (c.problem == "logistic", "--problem logistic")),
        **dict.fromkeys(others, (asynchronous, f"{c.algorithm}, whose local update and messages are its own")),
        "momentum": (no_momentum, c.algorithm if asynchronous else f"--optimizer {c.optimizer}; use --optimizer momentum"),
        **dict.fromkeys(MODEL, (not c.simulate, "a run whose time is measured; add --simulate")),
        **dict.fromkeys(("checkpoint_every", "time_limit"), (asynchronous or c.simulate, kept)),
        "replay": (c.simulate or not asynchronous, "a simulated run, which repeats itself" if asynchronous else c.algorithm),
    }
    if not asynchronous:
        idle["service_s"] = True, f"{c.algorithm}, which has no servers"
    for name, (does_nothing, beside) in idle.items():
        if name in given and does_nothing:
            said = flag(name) + f" {given[name]}" * (given[name] is not True)
            raise UserError(f"{said} means nothing to {beside}{', or' if ';' in beside else ';'} leave it out")
