"""What a sweep at scale gpu needs in addition: a GPU here, and the hours that it will take.

The hours are work by rate. Work is the examples that all learners of the runs train on. The rate,
in examples a second, is measured before the sweep starts: the first run of each kind makes a few
updates outside the sweep's folder.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from pathlib import Path

from localavg.algorithms import ASYNCHRONOUS
from localavg.cli import flag
from localavg.cli.sweep import launch
from localavg.cli.sweep.cost import Rate, kind, work
from localavg.cli.sweep.plan import Planned
from localavg.config import TrainConfig
from localavg.errors import UserError
from localavg.files import record
from localavg.parallel.gpus import find_gpus
from localavg.training import checks

UPDATES = 40  # of a measurement; the second half counts
# what a measurement does not need: it has a length of its own, and no modelled time
OTHER = {*checks.TIMING, "simulate", "steps", "epochs", "eval_examples", "save_weights", "variance"}


def check_gpu(runs: Sequence[Planned]) -> None:
    """Raise UserError if a run computes on a GPU and this machine has none that may be used."""
    gpus, why = find_gpus()
    if any(run.given.get("device") == "cuda" for run in runs) and not gpus:
        raise UserError(
            f"--scale gpu: this machine has no NVIDIA GPU that this process may use ({why}); start "
            "the sweep where there is one, submit it by --launcher slurm or lsf, or see its plan by"
            " --dry-run"
        )


def hours(
    runs: Sequence[Planned], rate_of: Callable[[Planned], Rate | str]
) -> Iterator[tuple[float | None, str]]:
    """Yield (hours, what takes them) for the runs of each kind.

    rate_of: returns the rate of the kind of a run, or why it is not known: the hours are None then.
    Evaluations are not counted.
    """
    kinds: dict[object, list[Planned]] = {}
    for run in runs:
        kinds.setdefault(kind(run), []).append(run)
    for like in kinds.values():
        first, rate = like[0].given, rate_of(like[0])
        what = f"{len(like)} run{'s' * (len(like) > 1)} like {like[0].name}"
        if isinstance(rate, str):
            yield None, f"{what}: {rate}"
            continue
        taken = sum(work(run, rate.rows) for run in like) / rate.examples_per_s / 3600
        learners = f"P = {first.get('learners', 1)}"
        yield taken, f"{what}, {learners}, at {rate.examples_per_s:,.0f} examples/s"


def measured_rate(mpirun: str | None) -> Callable[[Planned], Rate | str]:
    """Make the `rate_of` that measures: it starts a few updates of the run. mpirun: of `launch`."""

    def rate_of(run: Planned) -> Rate | str:
        with tempfile.TemporaryDirectory(prefix="localavg-rate-") as folder:
            path = Path(folder, "run.h5")
            line = launch.command(_short(run), path, mpirun)
            done = subprocess.run(
                line, env=launch.environment(), stdin=subprocess.DEVNULL, text=True,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            )  # fmt: skip
            if done.returncode:
                return f"not measured, {launch.last_line(done.stdout)}"
            found = record.load(path, weights=False)
        rows = found.train
        passed = rows.iloc[-1] - rows.iloc[-2]  # the first row has what is done once, too
        return Rate(float(passed.samples / passed.wall_s), int(found.config["rows"]))

    return rate_of


def _short(run: Planned) -> Planned:
    """Return a run of UPDATES updates that computes as fast as `run`.

    Learners of an asynchronous algorithm compute one gradient at a time, as those of K-AVG do by
    the engine loop.
    """
    given = {name: value for name, value in run.given.items() if name not in OTHER}
    if given["algorithm"] in ASYNCHRONOUS:
        common = {f.name for f in fields(TrainConfig)} - {"momentum"}
        given = {name: value for name, value in given.items() if name in common}
        given |= {"algorithm": "kavg", "engine": "loop"}
    given |= {"lr": 1e-6} if "lr" in given else {}  # it must not diverge
    given |= {
        "steps": UPDATES,
        "log_every": UPDATES // 2,
        "eval_every": UPDATES,
        "eval_examples": 1,
    }
    words = ["train", str(given["algorithm"])]
    for name, value in given.items():
        if name != "algorithm":
            values = value if isinstance(value, list) else [] if value is True else [value]
            words += [flag(name), *map(str, values)]
    return Planned(run.name, 1, tuple(words), given)
