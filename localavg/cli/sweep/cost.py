"""What runs cost: the work of a run, and the rate at which its ranks do it.

The hours are work by rate. Work is the examples that all learners of a run train on. Averages,
evaluations and the start of a run are not counted.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TypeAlias

from localavg import algorithms
from localavg.cli.sweep.plan import Planned
from localavg.datasets import where
from localavg.errors import UserError
from localavg.files import record
from localavg.training import checks
from localavg.training.length import Length

# what decides how fast the learners of a run compute
SPEED = (
    *("data", "problem", "model", "batch_size", "precision", "deterministic", "compile", "engine"),
    *("optimizer", "no_augment", "device"),
)


@dataclass(frozen=True)
class Rate:
    """The speed of a kind of runs. rows: the examples of its training data."""

    examples_per_s: float
    rows: int


RateOf: TypeAlias = Callable[[Planned], Rate | str]  # of one rank, or why it is not known


def work(run: Planned, rows: int) -> int:
    """Return the examples that all learners of a run train on, of data with so many rows."""
    c = checks.read(run.given)
    P = c.learners or 1
    return Length.of(c, P, rows / (P * c.batch_size)).T * P * c.batch_size


def computing(run: Planned) -> int:
    """Return the ranks of a run that hold learners: all but the servers."""
    name = str(run.given["algorithm"])
    if name not in algorithms.ASYNCHRONOUS or run.given.get("simulate"):
        return run.ranks
    servers = {**algorithms.options(name), **checks.read(run.given).options}["servers"]
    return run.ranks - int(servers)


def kind(run: Planned) -> tuple[object, ...]:
    """Return what runs with the same rate, all learners together, have in common."""
    return _kind(run.given), str(run.given.get("learners"))


def given_rate(examples_per_s: float) -> RateOf:
    """Make the `rate_of` of a rate that the user gives, which starts nothing."""

    def rate_of(run: Planned) -> Rate | str:
        c = checks.read(run.given)
        rows = 0 if c.steps else where.rows(str(c.data))  # a number of updates asks for no rows
        if rows is None:
            return f"{c.data} is no prepared file here, so the number of its rows is not known"
        return Rate(examples_per_s, rows)

    return rate_of


def found_rate(folder: Path) -> RateOf:
    """Make the `rate_of` that takes the rate of one rank from the runs of a folder."""
    rates: list[tuple[Mapping[str, object], Rate]] = []  # settings and rate of each run
    for path in sorted(folder.glob("*.h5")) if folder.is_dir() else ():
        try:
            run = record.load(path, weights=False)
        except UserError:
            continue
        if len(run.train) and run.train.wall_s.iloc[-1] > 0 and "ranks" in run.provenance:
            last = run.train.iloc[-1]
            per_s = last.samples / last.wall_s / int(run.provenance["ranks"])
            rates.append((run.config, Rate(per_s, int(run.config["rows"]))))

    def rate_of(run: Planned) -> Rate | str:
        asked = run.asked
        found = [rate for config, rate in rates if _alike(asked, config)]
        if not found:
            return f"no run like {run.name} in {folder} has begun: give --rate X"
        return Rate(median(rate.examples_per_s for rate in found), found[0].rows)

    return rate_of


def _alike(asked: Mapping[str, object], config: Mapping[str, object]) -> bool:
    """Return whether a run that is asked for has the rate of one with this config in its file."""
    for name in SPEED:
        want, have = asked[name], str(config.get(name))
        chosen = name in checks.FILLED_IN and want in (None, "auto")
        file = name == "data" and have == os.path.abspath(where.found(str(want)) or str(want))
        if not (chosen or file or str(want) == have):
            return False
    around = [c["algorithm"] in algorithms.ASYNCHRONOUS for c in (asked, config)]
    return around[0] == around[1]


def _kind(config: Mapping[str, object]) -> object:
    speed = tuple((name, str(config.get(name))) for name in SPEED)
    return config["algorithm"] in algorithms.ASYNCHRONOUS, speed
