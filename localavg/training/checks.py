"""A run's settings as a whole: made from what was given, written out for the run file, and compared
with those of an earlier run.
"""

from __future__ import annotations

import os
from dataclasses import asdict, fields
from typing import Any

from localavg import algorithms
from localavg.config import TrainConfig
from localavg.errors import check_choice
from localavg.interfaces import Settings
from localavg.models import MODELS

TIMING = ("timing_from", "step_s", "step_cv", "latency_s", "bandwidth_bytes_per_s", "service_s")
# filled in by the program where they are not given, so not compared then
FILLED_IN = {"learners", "steps", "problem", *TIMING}
FREE = {  # what makes no difference to the result
    "out",
    "transport",
    "ranks_per_node",
    "resume",
    "checkpoint_every",
    "time_limit",
}


def read(given: Settings) -> TrainConfig:
    """The settings of a run from those `given` by name, the algorithm's own options among them.

    Raises UserError for an unknown algorithm, an option that is not the algorithm's, a value that
    breaks its rule, and for a setting that has no effect beside the others.
    """
    names = {f.name for f in fields(TrainConfig)}
    options = {name: value for name, value in given.items() if name not in names}
    plain: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in given.items()
        if name in names
    }
    algorithms.check(plain["algorithm"], options)
    config = TrainConfig(options=options, **plain)
    config.refuse_useless(given)
    if config.model is not None:
        check_choice("model", config.model, tuple(MODELS))
    return config


def all_settings(c: TrainConfig) -> dict[str, Any]:
    """All settings of a run, defaults included, by their names in its run file."""
    settings = asdict(c)
    given = settings.pop("options")
    return settings | algorithms.options(c.algorithm) | given


def difference(asked: Settings, recorded: Settings) -> str | None:
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
            or (want is None and name in FILLED_IN)
            or (name == "data" and os.path.abspath(str(want)) == have)
        ):
            continue
        return f"`{name}` is {have} there and {want} here"
    return None
