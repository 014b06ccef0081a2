"""What run files tell the theory: the constants of their problems, and their step sizes.

This module loads MPI, HDF5 and what a problem needs.
"""

from __future__ import annotations

import sys
from collections.abc import Container, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from localavg.config import TrainConfig
from localavg.errors import UserError
from localavg.files.record import Run
from localavg.learner import stepsizes
from localavg.learner.stepsizes import StepSize
from localavg.parallel.fleet import Fleet
from localavg.problems.constants import logistic_constants, network_constants
from localavg.problems.logistic import Logistic
from localavg.theory import Constants
from localavg.training.build import load_data, make_problem

PROBLEM = ("problem", "data", "l2", "model", "batch_size", "seed")
"""settings by which the runs of one problem are known"""


@dataclass(frozen=True)
class Measured:
    """The runs of one problem, and its constants.

    found: other values that were found on the way, by name.
    """

    problem: str
    runs: list[Run]
    constants: Constants
    found: dict[str, float]


def measured(runs: Sequence[Run], fleet: Fleet, delta: float) -> list[Measured]:
    """Measure the constants of every problem among the runs.

    Raises UserError for a run whose file does not say what its problem is, before data is read.
    """
    problems: dict[str, list[Run]] = {}
    for run in runs:
        if missing := [name for name in PROBLEM if name not in run.config]:
            raise UserError(
                f"--from-run {run.path}: its /config does not say {', '.join(missing)}, as in a "
                "log of localavg.attach, so its problem cannot be measured; give a run file of "
                "localavg train, or --F1-minus-Fstar, --L and --M in place of --from-run"
            )
        problems.setdefault(str([run.config.get(name) for name in PROBLEM]), []).append(run)
    found_for = []
    for same in problems.values():
        visited = [run.weights for run in same if run.weights is not None]
        # Images are taken as they are: the constants are those of one objective.
        c = _settings(same[0], PROBLEM)
        c = c if c.problem == "logistic" else replace(c, no_augment=True)
        problem = make_problem(c, load_data(c, fleet), fleet)
        if isinstance(problem, Logistic):
            title = f"{c.data}, λ = {c.l2:g}"
            constants, found = logistic_constants(problem, visited, delta)
        else:
            title = f"{c.model} on {c.data}, B = {c.batch_size}"
            constants, found = network_constants(problem, c.seed, c.batch_size, visited, delta)
        found_for.append(Measured(title, same, constants, found))
    return found_for


def first_step_size(run: Run) -> float:
    """Return γ at the start of the run, after its warm-up."""
    gamma, t = step_size(run)
    return float(gamma(t))


def step_size(run: Run) -> tuple[StepSize, int]:
    """Return γ_t of the run, made from its settings, and the first t after its warm-up."""
    if run.train.empty:
        raise UserError(f"--from-run {run.path}: it has no row of /train yet; give --gamma")
    names = {f.name for f in fields(TrainConfig) if f.metadata["group"] == "step size"}
    config = _settings(run, names)
    last = run.train.iloc[-1]
    epoch = float(last.t / last.epoch)  # updates in an epoch
    return stepsizes.make(config, epoch), 1 + round(config.warmup_epochs * epoch)


def innermost(run: Run) -> dict[str, int]:
    """Return K1 and S of a run's innermost clusters, 1 and 1 without clusters.

    The theory has one level of clusters; a line says so for a run with more of them.
    """
    K1, S = run.config.get("K1") or 1, run.config.get("S") or 1
    if levels := run.config.get("levels"):
        *clusters, _ = [level.split(":") for level in levels.split(",")]
        K1, S = map(int, clusters[0]) if clusters else (1, 1)
        if len(clusters) > 1:
            print(
                f"localavg: {run.path} has {len(clusters)} levels of clusters, and the theory has "
                f"one: it takes the innermost, K1 = {K1} and S = {S}",
                file=sys.stderr,
            )
    return {"K1": K1, "S": S}


def _settings(run: Run, names: Container[str]) -> TrainConfig:
    """Return the settings of a run, of which those of `names` are taken from its file."""
    given: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in run.config.items()
        if name in names
    }
    return TrainConfig(algorithm=run.config["algorithm"], **given)
