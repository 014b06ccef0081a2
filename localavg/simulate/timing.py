"""A model of the machine: the durations of local updates, averages and exchanges with servers.

Times of updates are independent and lognormal. The model leaves out: learners that are slow all the
time, links that several messages share (except a server's own), the passes over the data that
ADA-LUPA's loss rule makes, and any effect of computing and communicating on each other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields

import numpy as np

from localavg.config import TrainConfig
from localavg.config.state import is_averaged
from localavg.errors import UserError, bad, positive
from localavg.files import record
from localavg.streams import Stream, generator

WINDOW = 256
"""updates whose times are drawn at once"""
MOST = 1e9
"""largest duration in seconds, and largest ratio of two: sums of larger ones are not finite"""


@dataclass(frozen=True)
class Timing:
    """The costs of an update, a message and a service.

    The defaults are orders of magnitude of a GPU cluster and were not measured.
    """

    step_s: float = 0.01
    """mean time of one local update, its data included"""
    step_cv: float = 0.1
    """coefficient of variation of that time: standard deviation over mean"""
    latency_s: float = 5e-6
    """latency of a message"""
    bandwidth_bytes_per_s: float = 1e10
    """bandwidth of a learner's or a server's link, in each direction"""
    service_s: float = 1e-4
    """time of a server for an exchange, in addition to the transfer of its bytes"""

    def __post_init__(self) -> None:
        for name in ("step_s", "bandwidth_bytes_per_s"):
            positive(name, getattr(self, name))
        for name in ("step_cv", "latency_s", "service_s"):
            if not 0 <= getattr(self, name) < math.inf:
                raise bad(name, getattr(self, name), "must be a finite number of at least 0")
        if self.bandwidth_bytes_per_s < 1:
            rule = "must be at least 1 byte per second"
            raise bad("bandwidth_bytes_per_s", self.bandwidth_bytes_per_s, rule)
        for name in ("step_s", "step_cv", "latency_s", "service_s"):
            if getattr(self, name) > MOST:
                raise bad(name, getattr(self, name), f"must be at most {MOST:g}")

    def mean_s(self, n: int, nbytes: float) -> float:
        """Return the duration of an average over n learners of nbytes each.

        The model is Rabenseifner's Allreduce: 2 log₂n messages, 2 (n−1)/n of the bytes.
        """
        messages_s = 2 * math.log2(n) * self.latency_s
        return messages_s + 2 * (n - 1) / n * nbytes / self.bandwidth_bytes_per_s

    def message_s(self, nbytes: float) -> float:
        """Return the duration of a message of nbytes between two learners."""
        return self.latency_s + nbytes / self.bandwidth_bytes_per_s

    def transfer_s(self, nbytes: float, servers: int) -> float:
        """Return how long a server's part of nbytes keeps its link busy, in one direction."""
        return nbytes / servers / self.bandwidth_bytes_per_s


class StepTimes:
    """The time of learner j's update t in seconds: a function of (timing, seed, j, t) alone."""

    def __init__(self, timing: Timing, seed: int) -> None:
        self.timing, self.seed = timing, seed
        self._drawn: dict[int, tuple[int, np.ndarray]] = {}  # learner → (window, times [WINDOW])
        self.sigma = math.sqrt(math.log1p(timing.step_cv**2))
        self.mu = math.log(timing.step_s) - self.sigma**2 / 2

    def sum(self, j: int, after: int, to: int) -> float:
        """Return the total time of updates after + 1 … to of learner j."""
        total, t = 0.0, after
        while t < to:
            window, first = divmod(t, WINDOW)
            last = min(first + to - t, WINDOW)
            total += float(self._window(j, window)[first:last].sum())
            t += last - first
        return total

    def _window(self, j: int, window: int) -> np.ndarray:
        """Return the times [WINDOW] of learner j's updates in a window."""
        if j not in self._drawn or self._drawn[j][0] != window:
            normal = generator(self.seed, j, window, Stream.TIMES).standard_normal(WINDOW)
            self._drawn[j] = window, np.exp(self.mu + self.sigma * normal)  # [WINDOW]
        return self._drawn[j][1]


def make(c: TrainConfig) -> Timing:
    """Make the timing of a run's settings.

    `timing_from`, if given, is a measured run that the model is fitted to; single options replace
    its values.
    """
    asked = {f.name: value for f in fields(Timing) if (value := getattr(c, f.name)) is not None}
    fitted = asdict(fit([record.load(c.timing_from, weights=False)])) if c.timing_from else {}
    return Timing(**{**fitted, **asked})


def fit(runs: Sequence[record.Run]) -> Timing:
    """Fit the timing to measured synchronous runs of one learner a rank, such as K-AVG on 2 ranks.

    step_s: computing and taking data, per update. step_cv: from the waiting for averages; a learner
    waits e_R · step_cv · step_s · √τ on average for the slowest of R over a period of τ updates,
    e_R the mean of the largest of R standard normals. Latency and bandwidth: least squares over the
    runs' mean times of an average; with runs of one size only, the latency is the default and the
    bandwidth follows. service_s does not show in such runs and is the default. The first
    row of /train, which contains the warm-up, is left out. Raises UserError for other runs.
    """
    base = Timing()
    steps, cvs, rows = zip(*(_measured(run) for run in runs), strict=True)
    messages, nbytes, seconds = np.array(rows).T  # [runs] each
    latency, per_byte = base.latency_s, 0.0
    if len(set(nbytes)) > 1:
        latency, per_byte = np.linalg.lstsq(np.stack([messages, nbytes], 1), seconds, rcond=None)[0]
    if len(set(nbytes)) == 1 or latency < 0 or per_byte <= 0:
        latency = min(base.latency_s, float((seconds / messages).mean()) / 2)
        per_byte = float(((seconds - messages * latency) / nbytes).mean())
    return Timing(float(np.mean(steps)), float(np.mean(cvs)), float(latency), 1 / float(per_byte))


def _measured(run: record.Run) -> tuple[float, float, tuple[float, float, float]]:
    """Return step_s and step_cv of a run, and (messages, bytes, seconds) of its mean average."""
    R, c, train = run.provenance.get("ranks", 1), run.config, run.train
    alone = run.provenance.get("learners_per_rank") == 1 and not c.get("simulate")
    # these average something else than the d floats of everyone
    alone = alone and c.get("participants") in (None, R)  # everyone works all the time
    elsewhere = c.get("algorithm") in ("qsgd", "hieravg", "gossip")
    elsewhere = elsewhere or c.get("wire") is not None or (c.get("fragments") or 1) > 1
    others = elsewhere or is_averaged(c.get("state", "keep"))
    t = run.averages.t
    within = (t > train.t.min()) & (t <= train.t.max())  # without the warm-up before the first row
    if R < 2 or not alone or others or len(train) < 2 or not within.any():
        raise UserError(
            f"{run.path}: no measured synchronous run of one learner a rank on 2 ranks or more, "
            "with averages of weights over all between 2 rows of /train; give the file of one, "
            "such as K-AVG's"
        )
    spent, count = train.iloc[-1] - train.iloc[0], within.sum()
    step_s = (spent.compute_s + spent.data_s) / spent.t
    normals = generator(0, 0, 0, Stream.TIMES).standard_normal((20000, R))
    e_R = float(np.sort(normals, axis=1)[:, -1].mean())
    rows = run.averages[within]
    known = rows.wait_s.notna().all()  # files of earlier versions do not have it
    waited_s = rows.wait_s.sum() if known else spent.wait_s
    communicate_s = rows.seconds.sum() if known else spent.communicate_s
    step_cv = waited_s / count / (e_R * step_s * math.sqrt(spent.t / count))
    average = 2 * math.log2(R), 2 * (R - 1) / R * 4 * c["d"], communicate_s / count
    return step_s, step_cv, average
