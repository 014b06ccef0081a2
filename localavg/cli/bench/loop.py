"""The real training loop with its run file, on one rank, as the benchmarks time it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from copy import copy
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from localavg import algorithms
from localavg.files.record import Record
from localavg.learner import stepsizes
from localavg.learner.flat import Flat
from localavg.learner.optim import SGD
from localavg.learner.sampling import Sampler
from localavg.parallel.device import Cpu
from localavg.parallel.fleet import Fleet
from localavg.parallel.transport import choose
from localavg.problems import Problem
from localavg.training.evaluate import Evaluator, by_learner
from localavg.training.keeper import Keeper
from localavg.training.length import Length
from localavg.training.loop import train
from localavg.training.monitor import Monitor
from localavg.training.payload import Payload


def train_alone(
    fleet: Fleet,
    problem: Problem,
    optimizer: SGD,
    sampler: Sampler,
    T: int,
    log_every: int,
    device: Cpu | None = None,
) -> tuple[float, float]:
    """T updates of the learners, each by itself: wall clock in seconds, and the share of it that
    recording took.
    """
    algorithm = algorithms.make("sgd", {}, T, sampler.epoch)
    transport = choose("auto", fleet, None, learner_bytes=8 * problem.d, device=device)
    flat = Flat(problem.shapes, fleet.L, problem.parameters, allocate=transport.zeros)
    for w_j in flat.w:
        problem.initial_(w_j)
    algorithm.exchange.start(fleet.learners, 0)
    with tempfile.TemporaryDirectory() as folder:
        timed = Timed(Record.create(os.path.join(folder, "run.h5"), {}, {}))
        monitor = Monitor(
            fleet,
            transport,
            Evaluator(problem, fleet.world, by_learner(fleet)),
            timed,
            Length(fleet.P, T, sampler.B, sampler.epoch, log_every, eval_every=T),
            Payload(algorithm, transport, flat, optimizer),
        )
        monitor.progress = Timed(monitor.progress)
        feed = problem.feed(sampler, fleet.learners, T)
        keeper = Keeper(fleet, None, Path(folder, "run.ckpt"))
        train(
            problem,
            flat,
            algorithm,
            optimizer,
            stepsizes.constant(0.01),
            feed,
            transport,
            fleet.learners,
            T,
            monitor,
            keeper,
        )
        wall_s = monitor.clock.wall_s
        problem.close()
        return wall_s, (timed.seconds + monitor.progress.seconds) / wall_s


def overhead(
    fleet: Fleet, problem: Problem, sampler: Sampler, T: int, log_every: int
) -> dict[str, float]:
    """What the loop takes an update beside taking rows, gradient and update, against np.add.

    overhead_s: the rest of the wall clock, an update, in one run of T updates of plain SGD. add_s:
    one np.add of d float32, timed after every update of that run, when the caches are as cold.
    """
    parts, adding = Seconds(), Seconds()
    x, y, z = (np.ones(problem.d, np.float32) for _ in range(3))  # [d]
    watched, sgd = copy(problem), SGD()
    watched.gradient_ = parts.timing(problem.gradient_)
    watched.feed = lambda *how: parts.timing(problem.feed(*how))
    update_, add = parts.timing(sgd.update_), adding.timing(np.add)

    def update_and_add_(w: Any, g: Any, gamma: float) -> None:
        update_(w, g, gamma)
        add(x, y, z)

    sgd.update_ = update_and_add_
    wall_s, _ = train_alone(fleet, watched, sgd, sampler, T, log_every)
    rest_s = (wall_s - parts.spent - adding.spent) / T
    return {"overhead_s": rest_s, "add_s": adding.spent / T}


class Seconds:
    """Adds up the time that calls take."""

    def __init__(self) -> None:
        self.spent = 0.0

    def timing(self, call: Callable) -> Callable:
        """Return a function that does the same as `call` and adds the time it took."""

        def timed(*args: Any, **named: Any) -> Any:
            start = perf_counter()
            result = call(*args, **named)
            self.spent += perf_counter() - start
            return result

        return timed


class Timed:
    """Passes calls on and adds up the time they take."""

    def __init__(self, thing: Any) -> None:
        self._thing, self.seconds = thing, 0.0

    def __getattr__(self, name: str) -> Callable:
        call = getattr(self._thing, name)

        def timed(*args: Any, **named: Any) -> Any:
            start = perf_counter()
            try:
                return call(*args, **named)
            finally:
                self.seconds += perf_counter() - start

        return timed
