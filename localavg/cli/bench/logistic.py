"""Time local updates on logistic regression against the best loop by hand and the floor.

The floor is the time to read the data once.
"""

from __future__ import annotations

from statistics import median
from typing import Any

import numpy as np

from localavg.cli.bench import Row, best, best_logistic, medians, seconds
from localavg.cli.bench.loop import LOG_EVERY, WARM, overhead, train_alone, updates
from localavg.config import TrainConfig
from localavg.interfaces import Device
from localavg.learner import optim
from localavg.learner.sampling import Batch
from localavg.parallel.fleet import Fleet
from localavg.problems.logistic import Logistic
from localavg.training.build import Chosen, Task, assemble, load_task


def bench_logistic(
    fleet: Fleet, data: str, B: int, steps: int, repeats: int, device: Device, engine: str = "auto"
) -> list[Row]:
    """Time `steps` local updates of all learners; medians of `repeats` interleaved turns.

    Sampling is by blocks. Ours is the whole loop; best is the fastest loop by hand over the same
    rows; the floor is X.sum(). For one learner on the CPU by loop the row also has, overhead: our
    loop against its row-taking, gradients and updates alone; recording: the share of time in the
    run file and progress bar; overhead_s, add_s and their ratio: as `loop.overhead` measures them.
    """
    warm = WARM[device.name]
    c = _settings(data, B, updates(steps, warm), device, engine)
    task = load_task(c, fleet, fleet.P, device)
    chosen = assemble(task).engine.name
    task.problem.close()
    problem, learners = task.problem, range(fleet.P)
    assert isinstance(problem, Logistic)
    rows = [[task.sampler.batch(j, t) for j in learners] for t in range(1, steps + 1)]
    by_hand = best.fastest_few(best_logistic.makers(problem, rows, device))
    inside = Inside(task, [each[0] for each in rows], chosen, warm)
    alone = fleet.P == 1 and device.name == "cpu" and engine in ("auto", "loop")

    def read() -> None:
        problem.x.sum()
        device.settle()

    times = medians(
        {
            "ours": inside.ours,
            "floor": lambda: seconds(read),
            **best.timed(by_hand, steps),
            **(inside.ways() if alone else {}),
        },
        repeats,
    )
    quickest, samples = best.of(times, by_hand), steps * B * fleet.P
    rate = {"ours": samples / times["ours"], "best": samples / times[quickest]}
    rate["floor"] = problem.n / times["floor"]
    row = _row(f"d = {problem.d}, B = {B}, block", task, chosen, quickest, rate)
    return [{**row, **(inside.numbers(times) if alone else {})}]


def _row(model: str, task: Task, engine: str, quickest: str, rate: dict[str, float]) -> Row:
    """Return the examples a second, and their ratios."""
    return {
        "problem": "logistic",
        "model": model,
        "device": task.device.name,
        "learners": task.fleet.P,
        "engine": engine,
        "best": quickest,
        "ours_samples_per_s": rate["ours"],
        "best_samples_per_s": rate["best"],
        "floor_samples_per_s": rate["floor"],
        "ours_over_floor": rate["ours"] / rate["floor"],
        "ours_over_best": rate["ours"] / rate["best"],
    }


class Inside:
    """What the loop of one learner costs in addition to its step."""

    def __init__(self, task: Task, rows: list[Batch], engine: str, warm: int) -> None:
        self.task, self.rows, self.warm = task, rows, warm
        self.earlier = Chosen(engine=engine)
        self.recorded: list[float] = []
        self.parts: list[dict[str, float]] = []

    def ours(self) -> float:
        """Time the whole loop."""
        wall_s, share = train_alone(assemble(self.task, earlier=self.earlier), self.warm)
        self.recorded.append(share)
        return wall_s

    def ways(self) -> dict[str, Any]:
        """Return what else to time."""
        return {
            "step": self._gradients_and_updates,
            "parts": lambda: seconds(lambda: self.parts.append(overhead(self.task))),
        }

    def numbers(self, times: dict[str, float]) -> dict[str, float]:
        """Return the columns, given the median times."""
        parts = {
            name: median(each[name] for each in self.parts[1:]) for name in ("overhead_s", "add_s")
        }
        return {
            "overhead": times["ours"] / times["step"] - 1,
            "recording": median(self.recorded[1:]),
            **parts,
            "overhead_over_add": parts["overhead_s"] / parts["add_s"],
        }

    def _gradients_and_updates(self) -> float:
        """Time row-taking, gradients and updates alone."""
        problem: Any = self.task.problem
        w, g = (np.zeros((1, problem.d), np.float32) for _ in range(2))  # [1, d]
        w_0, g_0, sgd = w[0], g[0], optim.SGD()

        def loop() -> None:
            for r in self.rows:
                problem.gradient_(w_0, problem.fetch(r), out=g_0)
                sgd.update_(w, g, 0.01)

        return seconds(loop)


def _settings(data: str, B: int, steps: int, device: Device, engine: str) -> TrainConfig:
    return TrainConfig(
        algorithm="sgd",
        data=data,
        problem="logistic",
        sampling="block",
        force_block=True,
        batch_size=B,
        steps=steps,
        log_every=max(1, steps // 100) if device.name == "cpu" else LOG_EVERY["cuda"],
        eval_every=steps,
        # on the CPU that whose parts are timed
        engine="loop" if engine == "auto" and device.name == "cpu" else engine,
        device=device.name,
    )
