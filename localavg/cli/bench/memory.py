"""Measure the memory of a training run against the size of its data."""

from __future__ import annotations

import os
import tempfile
import threading

from mpi4py import MPI

from localavg.cli.bench import Row
from localavg.config import TrainConfig
from localavg.files.record import load
from localavg.interfaces import Settings
from localavg.training.run import run


def bench_memory(world: MPI.Intracomm, data: str, steps: int) -> list[Row]:
    """Measure the largest memory of a training run, all ranks together, against its data.

    The memory of a rank is its proportional set size, sampled at 10 Hz.
    """
    peak, done = 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while True:
            peak = max(peak, _pss_bytes())
            if done.wait(0.1):
                return

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        c = _train(world, data, steps)
    finally:
        done.set()
        watcher.join()
    size = 4 * (c["rows"] + c["test_rows"]) * (c["d"] + 1)
    together = world.allreduce(peak)
    return [
        {
            "data": data,
            "ranks": world.size,
            "data_bytes": size,
            "peak_bytes": together,
            "ratio": together / size,
        }
    ]


def _train(world: MPI.Intracomm, data: str, steps: int) -> Settings:
    """Train, and return the settings in the run file on every rank."""
    with tempfile.TemporaryDirectory() as folder:
        out = world.bcast(os.path.join(folder, "run.h5"))
        config = TrainConfig(
            algorithm="kavg",
            options={"K": 5},
            data=data,
            sampling="block",
            steps=steps,
            device="cpu",  # whose memory it measures
            out=out,
        )
        run(config, world)
        return world.bcast(load(out).config if world.rank == 0 else None)


def _pss_bytes() -> int:
    """Return this process's proportional set size."""
    with open("/proc/self/smaps_rollup") as f:
        return next(1024 * int(line.split()[1]) for line in f if line.startswith("Pss:"))
