"""Time local updates on logistic regression against a bare NumPy loop and the floor.

The floor is the time to read the data once.
"""

from __future__ import annotations

from statistics import median

import numpy as np

from localavg.cli.bench import Row, medians, seconds
from localavg.cli.bench.loop import overhead, train_alone
from localavg.config import TrainConfig
from localavg.learner import optim
from localavg.learner.sampling import Batch
from localavg.parallel.fleet import Fleet
from localavg.problems.logistic import Logistic
from localavg.training.build import assemble, load_task


def bench_logistic(fleet: Fleet, data: str, B: int, steps: int, repeats: int) -> list[Row]:
    """Time `steps` local updates of one learner; medians of `repeats` interleaved turns.

    Sampling is by blocks. Ours is the whole loop; bare is a NumPy loop over the same rows; the
    floor is X.sum(). overhead: our loop against its row-taking, gradients and updates alone.
    recording: the share of time in the run file and progress bar. overhead_s, add_s and their
    ratio: as `loop.overhead` measures them.
    """
    task = load_task(_settings(data, B, steps), fleet, 1)
    problem = task.problem
    assert isinstance(problem, Logistic)
    x, y, d = problem.x, problem.y, problem.d  # [n, d], [n]
    rows = [task.sampler.batch(0, t) for t in range(1, steps + 1)]
    recorded: list[float] = []
    beside: list[dict[str, float]] = []

    def ours() -> float:
        wall_s, share = train_alone(assemble(task))
        recorded.append(share)
        return wall_s

    times = medians(
        {
            "ours": ours,
            "step": lambda: _gradients_and_updates(problem, rows),
            "bare": lambda: _bare(x, y, rows, d),
            "floor": lambda: seconds(x.sum),
            "parts": lambda: seconds(lambda: beside.append(overhead(task))),
        },
        repeats,
    )
    rate = {name: steps * B / times[name] for name in ("ours", "step", "bare")}
    rate["floor"] = problem.n / times["floor"]
    parts = {name: median(each[name] for each in beside[1:]) for name in ("overhead_s", "add_s")}
    return [_row(f"d = {d}, B = {B}, block", rate, median(recorded[1:]), parts)]


def _row(model: str, rate: dict[str, float], recording: float, parts: dict[str, float]) -> Row:
    """Return the examples a second, and what the loop costs in addition."""
    return {
        "problem": "logistic",
        "model": model,
        "device": "cpu",
        "ours_samples_per_s": rate["ours"],
        "bare_samples_per_s": rate["bare"],
        "floor_samples_per_s": rate["floor"],
        "ours_over_floor": rate["ours"] / rate["floor"],
        "ours_over_bare": rate["ours"] / rate["bare"],
        "overhead": rate["step"] / rate["ours"] - 1,
        "recording": recording,
        **parts,
        "overhead_over_add": parts["overhead_s"] / parts["add_s"],
    }


def _settings(data: str, B: int, steps: int) -> TrainConfig:
    return TrainConfig(
        algorithm="sgd",
        data=data,
        problem="logistic",
        sampling="block",
        force_block=True,
        batch_size=B,
        steps=steps,
        log_every=max(1, steps // 100),
        eval_every=steps,
        engine="loop",  # whose parts are timed
    )


def _gradients_and_updates(problem: Logistic, rows: list[Batch]) -> float:
    """Time row-taking, gradients and updates alone."""
    w, g = (np.zeros((1, problem.d), np.float32) for _ in range(2))  # [1, d]
    w_0, g_0, sgd = w[0], g[0], optim.SGD()

    def loop() -> None:
        for r in rows:
            problem.gradient_(w_0, problem.fetch(r), out=g_0)
            sgd.update_(w, g, 0.01)

    return seconds(loop)


def _bare(x: np.ndarray, y: np.ndarray, rows: list[Batch], d: int) -> float:
    """Time the loop that one would write by hand."""
    w = np.zeros(d, np.float32)  # [d]

    def loop() -> None:
        nonlocal w
        for r in rows:
            xb, yb = x[r], y[r]  # [B, d], [B]
            slope = -yb / (1 + np.exp(yb * (xb @ w)))
            w = w - 0.01 * (xb.T @ slope / len(yb) + 1e-4 * w)

    return seconds(loop)
