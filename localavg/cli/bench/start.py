"""Time the start of a small run, step by step, from the shell to its first update.

``python -m localavg.cli.bench.start SETTINGS`` is such a run, of one rank. It does what `localavg
train` does, and prints as a line of JSON when each step had ended, by the clock `time.time`.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from importlib import import_module
from statistics import median
from typing import TYPE_CHECKING, Any

from localavg.cli.bench import Row
from localavg.errors import UserError
from localavg.interfaces import Array, Settings
from localavg.parallel.child import answer, run_child

if TYPE_CHECKING:
    from localavg.training.build import Experiment

LIMIT_S = 300  # of a start


class Ends:
    """When each step ended."""

    def __init__(self) -> None:
        self.at: dict[str, float] = {}

    def __call__(self, step: str) -> None:
        """Note that a step has ended now."""
        self.at.setdefault(step, time.time())


def bench_start(settings: Settings, repeats: int) -> list[Row]:
    """Start a run `repeats` times, each in a process of its own; return a row for every step.

    seconds: the median of the step; at_s: the median of the time from the shell to its end. Raises
    UserError for a run that does not start.
    """
    starts = [_started(settings) for _ in range(repeats)]
    rows: list[Row] = []
    for before, step in zip(["", *starts[0]], starts[0], strict=False):
        at = [start[step] for start in starts]
        took = [start[step] - start.get(before, 0.0) for start in starts]
        rows.append({"step": step, "seconds": median(took), "at_s": median(at)})
    return rows


def _started(settings: Settings) -> dict[str, float]:
    """Start one run; return the seconds from the shell to the end of each step."""
    command = [sys.executable, "-m", __name__, json.dumps(settings)]
    begun = time.time()
    status, out, err = run_child(command, os.environ, LIMIT_S)
    ends = answer(out)
    if status != 0 or ends is None:
        lines = err.strip().splitlines() or [f"no answer within {LIMIT_S} s"]
        raise UserError(f"bench start: the run did not start: {lines[-1]}")
    return {step: at - begun for step, at in ends.items()}


def _start(settings: Settings) -> dict[str, float]:
    """Do what `localavg train` does up to the first update; return when each step had ended."""
    end = Ends()
    end("Python")
    for name in ("numpy", "h5py"):
        import_module(name)
        end(f"import {name}")
    from localavg.files.provenance import provenance
    from localavg.training import checks

    c = checks.read(settings)
    end("settings")
    provenance()
    end("provenance")
    import mpi4py

    mpi4py.rc.initialize = False
    from mpi4py import MPI

    end("import mpi4py")
    MPI.Init_thread()
    end("start MPI")
    from localavg.parallel.fleet import Fleet
    from localavg.parallel.gpus import find_gpus
    from localavg.training import build, where
    from localavg.training.rehearsal import rehearse

    fleet = Fleet(MPI.COMM_WORLD, c.learners)
    end("import localavg")
    data = build.load_data(c, fleet)
    end("data")
    gpus = find_gpus()[0] if c.device != "cpu" else ()
    for name in ["cupy"] * bool(gpus) + ["torch"] * c.names_network:
        with suppress(ImportError):  # which the run itself says
            import_module(name)
        end(f"import {name}")
    device = where.choose(c, fleet, None, lambda: data)
    end("device")
    task = build.load_task(c, fleet, fleet.P, device, lambda: data)
    end("problem")
    e = build.assemble(task)
    device.settle()
    end("rows, transport, engine")
    rehearse(e)
    end("kernels of a GPU")
    _first_update(e, end)
    return end.at


def _first_update(e: Experiment, end: Ends) -> None:
    """Train for one update, and note its end and that of the evaluation before it."""
    from localavg.files.record import Record
    from localavg.training.loop import train
    from localavg.training.run import watched

    asked = [0]

    def step_size(t: int) -> float:  # which the loop asks for before it starts, and at an update
        asked[0] += 1
        if asked[0] == 2:
            end("first evaluation")
        return e.step_size(t)

    optimizer: Any = e.optimizer
    update_ = optimizer.update_

    def first_(w: Array, g: Array, gamma: float, rows: Sequence[int] | None = None) -> None:
        update_(w, g, gamma, rows)
        e.device.settle()
        end("first update")

    optimizer.update_ = first_
    with tempfile.TemporaryDirectory() as folder:
        file = Record.create(os.path.join(folder, "run.h5"), {}, {})
        train(replace(e, step_size=step_size), *watched(e, file))
    e.problem.close()


if __name__ == "__main__":
    try:
        print(json.dumps(_start(json.loads(sys.argv[1]))), flush=True)
    except UserError as mistake:
        sys.exit(str(mistake))
