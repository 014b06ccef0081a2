"""The real training loop with its run file, on one rank, as the benchmarks time it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import replace
from time import perf_counter
from typing import Any, ParamSpec, TypeVar

import numpy as np

from localavg.files.record import Record
from localavg.interfaces import Array
from localavg.training.build import Experiment, Task, assemble
from localavg.training.loop import train
from localavg.training.run import watched

WARM = {"cpu": 0, "cuda": 10}
"""updates of each turn that are not counted: on a GPU a graph is captured in them"""
LOG_EVERY = {"cpu": 10, "cuda": 100}
"""updates from one row of /train to the next, as in a run of 1000 or 10 000 updates"""
P = ParamSpec("P")
R = TypeVar("R")


def updates(steps: int, warm: int) -> int:
    """Return the T of a run of which `train_alone` times so many steps."""
    return warm + steps + 1 if warm else steps


def train_alone(e: Experiment, warm: int = 0) -> tuple[float, float]:
    """Train, and return the wall clock in seconds and the share of it that recording took.

    The wall clock leaves out the first `warm` updates, and then the last one too, in which the
    run ends: what it takes to compare the rows and to write the file comes once in a run.
    """
    with tempfile.TemporaryDirectory() as folder:
        file: Any = Timed(Record.create(os.path.join(folder, "run.h5"), {}, {}))
        monitor, keeper = watched(e, file)
        progress: Any = Timed(monitor.progress)
        monitor.progress = progress
        at: dict[int, float] = {}  # update: when it began
        ends = warm + 1, e.length.T

        def step_size(t: int) -> float:  # which the loop asks for as an update begins
            if t in ends:
                e.device.settle()
                monitor.clock.lap("compute")
                at[t] = monitor.clock.wall_s
            return e.step_size(t)

        train(replace(e, step_size=step_size) if warm else e, monitor, keeper)
        wall_s = at[ends[1]] - at[ends[0]] if warm else monitor.clock.wall_s
        e.problem.close()
        return wall_s, (file.seconds + progress.seconds) / wall_s


def overhead(task: Task) -> dict[str, float]:
    """Measure what an update costs in addition to its rows, gradient and update; and one np.add.

    overhead_s: the rest of the wall clock of a run, per update. add_s: one np.add of d float32,
    timed after every update of the same run, when the caches are as cold.
    """
    problem, parts, adding = task.problem, Seconds(), Seconds()
    x, y, z = (np.ones(problem.d, np.float32) for _ in range(3))  # [d]
    shown: Any = copy(problem)  # its methods are replaced by timed ones
    shown.gradient_ = parts.timing(problem.gradient_)
    shown.feed = lambda *how: parts.timing(problem.feed(*how))
    e = assemble(replace(task, problem=shown))
    optimizer: Any = e.optimizer
    plus: Callable[[Array, Array, Array], object] = np.add  # of its many types the one used here
    update_, add = parts.timing(optimizer.update_), adding.timing(plus)

    def update_and_add_(
        w: Array, g: Array, gamma: float, rows: Sequence[int] | None = None
    ) -> None:
        update_(w, g, gamma, rows)
        add(x, y, z)

    optimizer.update_ = update_and_add_
    wall_s, _ = train_alone(e)
    rest_s = wall_s - parts.spent - adding.spent
    return {"overhead_s": rest_s / task.length.T, "add_s": adding.spent / task.length.T}


class Seconds:
    """Adds up the time that calls take."""

    def __init__(self) -> None:
        self.spent = 0.0

    def timing(self, call: Callable[P, R]) -> Callable[P, R]:
        """Return a function that does the same as `call` and adds the time it took."""

        def timed(*args: P.args, **named: P.kwargs) -> R:
            start = perf_counter()
            result = call(*args, **named)
            self.spent += perf_counter() - start
            return result

        return timed


class Timed:
    """Passes calls on and adds up the time they take."""

    def __init__(self, thing: object) -> None:
        self._thing, self.seconds = thing, 0.0

    def __getattr__(self, name: str) -> Callable[..., object]:
        call = getattr(self._thing, name)

        def timed(*args: object, **named: object) -> object:
            start = perf_counter()
            try:
                return call(*args, **named)
            finally:
                self.seconds += perf_counter() - start

        return timed
