"""The real training loop with its run file, on one rank, as the benchmarks time it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

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
from localavg.training.keeper import Keeper
from localavg.training.loop import train
from localavg.training.monitor import Monitor


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
            problem,
            transport,
            timed,
            T=T,
            epoch=sampler.epoch,
            B=sampler.B,
            log_every=log_every,
            eval_every=T,
            payload=lambda scope: (0, 0),
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
