"""One learner's local updates on logistic regression, against a bare NumPy loop and the floor of
reading the data.
"""

from __future__ import annotations

from statistics import median
from typing import Any

import numpy as np

from localavg import datasets
from localavg.cli.bench import medians, seconds
from localavg.cli.bench.loop import overhead, train_alone
from localavg.learner import optim
from localavg.learner.sampling import SAMPLERS
from localavg.parallel.fleet import Fleet
from localavg.problems.logistic import Logistic


def bench_logistic(
    fleet: Fleet, data: str, B: int, steps: int, repeats: int
) -> list[dict[str, Any]]:
    """`steps` local updates, medians of `repeats` interleaved turns.

    For block sampling: our whole loop, a bare NumPy loop over the same rows, and X.sum() as the
    floor of reading the data once. overhead: our loop against its gradients, with the taking of
    their rows, and updates alone; recording: time in the run file and progress. overhead_s, add_s
    and their ratio: as `loop.overhead` measures them.
    """
    problem = Logistic(datasets.load(data, fleet), 1e-4)
    x, y, d = problem.x, problem.y, problem.d  # [n, d], [n]
    sampler = SAMPLERS["block"](problem.n, 1, B, seed=0)
    rows = [sampler.batch(0, t) for t in range(1, steps + 1)]
    recorded: list[float] = []
    beside: list[dict[str, float]] = []
    log_every = max(1, steps // 100)

    def ours() -> float:
        wall_s, share = train_alone(fleet, problem, optim.SGD(), sampler, steps, log_every)
        recorded.append(share)
        return wall_s

    def timed_in_parts() -> float:
        return seconds(lambda: beside.append(overhead(fleet, problem, sampler, steps, log_every)))

    times = medians(
        {
            "ours": ours,
            "step": lambda: _gradients_and_updates(problem, rows),
            "bare": lambda: _bare(x, y, rows, d),
            "floor": lambda: seconds(x.sum),
            "parts": timed_in_parts,
        },
        repeats,
    )
    rate = {name: steps * B / times[name] for name in ("ours", "step", "bare")}
    floor = problem.n / times["floor"]
    rest_s, add_s = (median(each[name] for each in beside[1:]) for name in ("overhead_s", "add_s"))
    return [
        {
            "problem": "logistic",
            "model": f"d = {d}, B = {B}, block",
            "device": "cpu",
            "ours_samples_per_s": rate["ours"],
            "bare_samples_per_s": rate["bare"],
            "floor_samples_per_s": floor,
            "ours_over_floor": rate["ours"] / floor,
            "ours_over_bare": rate["ours"] / rate["bare"],
            "overhead": rate["step"] / rate["ours"] - 1,
            "recording": median(recorded[1:]),
            "overhead_s": rest_s,
            "add_s": add_s,
            "overhead_over_add": rest_s / add_s,
        }
    ]


def _gradients_and_updates(problem: Logistic, rows: list[slice]) -> float:
    w, g, sgd = (
        np.zeros((1, problem.d), np.float32),
        np.zeros((1, problem.d), np.float32),
        optim.SGD(),
    )
    w_0, g_0 = w[0], g[0]

    def loop() -> None:
        for r in rows:
            problem.gradient_(w_0, problem.fetch(r), out=g_0)
            sgd.update_(w, g, 0.01)

    return seconds(loop)


def _bare(x: np.ndarray, y: np.ndarray, rows: list[slice], d: int) -> float:
    """The loop one would write by hand."""
    w = np.zeros(d, np.float32)  # [d]

    def loop() -> None:
        nonlocal w
        for r in rows:
            xb, yb = x[r], y[r]  # [B, d], [B]
            slope = -yb / (1 + np.exp(yb * (xb @ w)))
            w = w - 0.01 * (xb.T @ slope / len(yb) + 1e-4 * w)

    return seconds(loop)
