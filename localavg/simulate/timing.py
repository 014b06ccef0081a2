"""A model of the machine: how long local updates, averages and exchanges with servers take.

What it leaves out: learners that are slow for good, links that several messages share (but for a
server's own), the passes over the data that ADA-LUPA's loss rule takes, and anything that computing
and communicating do to each other. Times of updates are independent and lognormal.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from localavg.errors import UserError, bad, positive
from localavg.files import record
from localavg.streams import Stream, generator

Array = Any
WINDOW = 256  # updates whose times are drawn at once


@dataclass(frozen=True)
class Machine:
    """What an update, a message and a service cost. The defaults are a GPU cluster's orders of
    magnitude, measured nowhere.
    """

    step_s: float = 0.01
    """mean time of one local update, its data included"""
    step_cv: float = 0.1
    """its standard deviation over its mean"""
    latency_s: float = 5e-6
    """of a message"""
    bandwidth_bytes_per_s: float = 1e10
    """of a learner's or server's link, each way"""
    service_s: float = 1e-4
    """what a server takes for an exchange beside its bytes"""

    def __post_init__(self) -> None:
        for name in ("step_s", "bandwidth_bytes_per_s"):
            positive(name, getattr(self, name))
        for name in ("step_cv", "latency_s", "service_s"):
            if not 0 <= getattr(self, name) < math.inf:
                raise bad(name, getattr(self, name), "must be a finite number of at least 0")

    def mean_s(self, n: int, nbytes: float) -> float:
        """An average over n learners of nbytes each, as Rabenseifner's Allreduce: 2 log₂n messages,
        2 (n−1)/n of the bytes.
        """
        return (
            2 * math.log2(n) * self.latency_s
            + 2 * (n - 1) / n * nbytes / self.bandwidth_bytes_per_s
        )

    def gather_s(self, n: int, nbytes: float) -> float:
        """An Allgather among n learners of nbytes each."""
        return math.log2(n) * self.latency_s + (n - 1) * nbytes / self.bandwidth_bytes_per_s

    def exchange_s(self, nbytes: float, servers: int) -> float:
        """How long an exchange keeps each of the servers busy: its part of nbytes comes in, is
        worked on, and goes out.
        """
        return self.service_s + 2 * nbytes / servers / self.bandwidth_bytes_per_s


class StepTimes:
    """The time of learner j's update t in seconds: a function of (machine, seed, j, t) alone."""

    def __init__(self, machine: Machine, seed: int) -> None:
        self.seed, self._drawn = seed, {}
        self.sigma = math.sqrt(math.log1p(machine.step_cv**2))
        self.mu = math.log(machine.step_s) - self.sigma**2 / 2

    def sum(self, j: int, after: int, to: int) -> float:
        """Of updates after + 1 … to of learner j."""
        total, t = 0.0, after
        while t < to:
            window, first = divmod(t, WINDOW)
            last = min(first + to - t, WINDOW)
            total += float(self._window(j, window)[first:last].sum())
            t += last - first
        return total

    def _window(self, j: int, window: int) -> Array:
        if j not in self._drawn or self._drawn[j][0] != window:
            normal = generator(self.seed, j, window, Stream.TIMES).standard_normal(WINDOW)
            self._drawn[j] = window, np.exp(self.mu + self.sigma * normal)  # [WINDOW]
        return self._drawn[j][1]


def make(c: Any) -> Machine:
    """The machine of a run's settings: --machine, a measured run, if given, with the single options
    on top.
    """
    asked = {f.name: value for f in fields(Machine) if (value := getattr(c, f.name)) is not None}
    return Machine(
        **{**(asdict(fit([record.load(c.machine, weights=False)])) if c.machine else {}), **asked}
    )


def fit(runs: Sequence[record.Run]) -> Machine:
    """A machine from measured synchronous runs with one learner a rank, such as K-AVG on 2 ranks.

    step_s: the wall clock less waiting and averaging, an update. step_cv: from the waiting: who is
    not the slowest of R over a period of τ updates waits e_R · step_cv · step_s · √τ on average,
    e_R the mean of the largest of R standard normals. Latency and bandwidth: least squares over the
    runs' mean times of an average; from runs of one size the default latency is taken and the
    bandwidth follows. service_s cannot be seen in such runs and stays as it is. The first row of
    /train, which warms up, is left out. Raises UserError for other runs.
    """
    steps, cvs, rows, base = [], [], [], Machine()
    for run in runs:
        R, c, train = run.provenance.get("ranks", 1), run.config, run.train
        alone = run.provenance.get("learners_per_rank") == 1 and not c.get("simulate")
        others = (
            c.get("algorithm") in ("qsgd", "hieravg") or c.get("state") == "average"
        )  # not d floats of everyone
        within = (run.averages.t > train.t.min()) & (
            run.averages.t <= train.t.max()
        )  # the first row, which warms up, left out
        if R < 2 or not alone or others or len(train) < 2 or not within.any():
            raise UserError(
                f"{run.path}: no measured synchronous run of one learner a rank on 2 ranks or "
                "more, with averages "
                "of weights over all between 2 rows of /train; give the file of one, such as "
                "K-AVG's"
            )
        spent, count = train.iloc[-1] - train.iloc[0], within.sum()
        steps.append((spent.wall_s - spent.communicate_s - spent.wait_s) / spent.t)
        e_R = float(
            np.sort(generator(0, 0, 0, Stream.TIMES).standard_normal((20000, R)), axis=1)[
                :, -1
            ].mean()
        )
        cvs.append(spent.wait_s / count / (e_R * steps[-1] * math.sqrt(spent.t / count)))
        rows.append((2 * math.log2(R), 2 * (R - 1) / R * 4 * c["d"], spent.communicate_s / count))
    messages, nbytes, seconds = np.array(rows).T  # [runs] each
    latency, per_byte = base.latency_s, 0.0
    if len(set(nbytes)) > 1:
        latency, per_byte = np.linalg.lstsq(np.stack([messages, nbytes], 1), seconds, rcond=None)[0]
    if len(set(nbytes)) == 1 or latency < 0 or per_byte <= 0:
        latency = min(base.latency_s, float((seconds / messages).mean()) / 2)
        per_byte = float(((seconds - messages * latency) / nbytes).mean())
    return Machine(float(np.mean(steps)), float(np.mean(cvs)), float(latency), 1 / float(per_byte))
