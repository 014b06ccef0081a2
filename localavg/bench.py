"""Speed and memory against what the machine can do, measured in one process: ``localavg bench train``, ``bench memory``."""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Callable
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
from mpi4py import MPI

from localavg import algorithms, datasets, optim, stepsizes
from localavg.config import TrainConfig, UserError
from localavg.flat import Flat
from localavg.fleet import Fleet
from localavg.monitor import Monitor
from localavg.problems.logistic import Logistic
from localavg.record import Record, load
from localavg.run import run
from localavg.sampling import SAMPLERS
from localavg.train import train
from localavg.transport import choose


def bench_train(fleet: Fleet, data: str, B: int, steps: int, repeats: int) -> list[dict[str, Any]]:
    """One learner on logistic regression, `steps` local updates, medians of `repeats` interleaved runs.

    For block sampling: our whole loop, a bare NumPy loop over the same rows, and X.sum() as the floor of reading the data
    once. overhead: our loop against its gradients, with the taking of their rows, and updates alone; recording: time in
    the run file and progress.
    """
    if fleet.ranks > 1:
        raise UserError(f"bench train on {fleet.ranks} ranks: it measures one learner; run it without mpirun")
    problem = Logistic(datasets.load(data, fleet), 1e-4)
    x, y, d = problem.x, problem.y, problem.d  # [n, d], [n]
    sampler = SAMPLERS["block"](problem.n, 1, B, seed=0)
    rows = [sampler.batch(0, t) for t in range(1, steps + 1)]
    loops = {
        "ours": lambda: _ours(fleet, problem, sampler, steps, B, recorded)[0],
        "step": lambda: _gradients_and_updates(problem, rows),
        "bare": lambda: _bare(x, y, rows, d),
        "floor": lambda: _seconds(lambda: x.sum()),
    }
    recorded: list[float] = []
    times: dict[str, list[float]] = {name: [] for name in loops}
    for turn in range(repeats + 1):  # the first warms up
        for name, loop in loops.items():
            seconds = loop()
            if turn:
                times[name].append(seconds)
    rate = {name: steps * B / median(times[name]) for name in ("ours", "step", "bare")}
    floor = problem.n / median(times["floor"])
    return [{
        "problem": "logistic", "model": f"d = {d}, B = {B}, block", "device": "cpu",
        "ours_samples_per_s": rate["ours"], "bare_samples_per_s": rate["bare"], "floor_samples_per_s": floor,
        "ours_over_floor": rate["ours"] / floor, "ours_over_bare": rate["ours"] / rate["bare"],
        "overhead": rate["step"] / rate["ours"] - 1, "recording": median(recorded[1:]),
    }]


def _ours(fleet: Fleet, problem: Logistic, sampler: Any, T: int, B: int, recorded: list[float]) -> tuple[float, Flat]:
    """Seconds of the real loop, sequential SGD, writing a run file; appends the share of time that recording took."""
    algorithm = algorithms.make("sgd", {}, T, sampler.epoch)
    transport = choose("auto", fleet, None, nbytes=8 * problem.d)
    flat = Flat(problem.shapes, 1, allocate=transport.zeros)
    algorithm.exchange.start(fleet.learners, 0)
    with tempfile.TemporaryDirectory() as folder:
        timed = _Timed(Record.create(os.path.join(folder, "run.h5"), {}, {}))
        monitor = Monitor(fleet, problem, transport, timed, T=T, epoch=sampler.epoch, B=B, log_every=max(1, T // 100),
                          eval_every=T, payload=lambda scope: (0, 0))
        monitor.progress = _Timed(monitor.progress)
        train(problem, flat, algorithm, optim.SGD(), stepsizes.constant(0.01), sampler, transport, fleet.learners, T, monitor)
        wall_s = monitor.clock.wall_s
        recorded.append((timed.seconds + monitor.progress.seconds) / wall_s)
        return wall_s, flat


class _Timed:
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


def _gradients_and_updates(problem: Logistic, rows: list[slice]) -> float:
    w, g, sgd = np.zeros((1, problem.d), np.float32), np.zeros((1, problem.d), np.float32), optim.SGD()
    w_0, g_0 = w[0], g[0]

    def loop() -> None:
        for r in rows:
            problem.gradient_(w_0, problem.fetch(r), out=g_0)
            sgd.update_(w, g, 0.01)

    return _seconds(loop)


def _bare(x: np.ndarray, y: np.ndarray, rows: list[slice], d: int) -> float:
    """The loop one would write by hand."""
    w = np.zeros(d, np.float32)  # [d]

    def loop() -> None:
        nonlocal w
        for r in rows:
            xb, yb = x[r], y[r]  # [B, d], [B]
            slope = -yb / (1 + np.exp(yb * (xb @ w)))
            w = w - 0.01 * (xb.T @ slope / len(yb) + 1e-4 * w)

    return _seconds(loop)


def _seconds(work: Callable[[], Any]) -> float:
    start = perf_counter()
    work()
    return perf_counter() - start


def bench_memory(world: MPI.Intracomm, data: str, steps: int) -> list[dict[str, Any]]:
    """The most memory a training run holds, all ranks together, against its data: proportional set sizes, sampled at 10 Hz."""
    peak, done = 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.1):
            peak = max(peak, _pss_bytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        with tempfile.TemporaryDirectory() as folder:
            out = world.bcast(os.path.join(folder, "run.h5"))
            run(TrainConfig(algorithm="kavg", data=data, sampling="block", steps=steps, out=out), {"K": 5}, world)
            c = load(out).config
            world.Barrier()
    finally:
        done.set()
        watcher.join()
    size = 4 * (c["rows"] + c["test_rows"]) * (c["d"] + 1)
    together = world.allreduce(peak)
    return [{"data": data, "ranks": world.size, "data_bytes": size, "peak_bytes": together, "ratio": together / size}]


def _pss_bytes() -> int:
    with open("/proc/self/smaps_rollup") as f:
        return next(1024 * int(line.split()[1]) for line in f if line.startswith("Pss:"))
