"""Time local updates on a network against the best loop by hand and the floor.

The loop by hand has the same model, batches and precision (`best_network.py`).
"""

from __future__ import annotations

import numpy as np

from localavg import models
from localavg.cli.bench import Row, best, best_network, images, medians, seconds
from localavg.cli.bench.loop import LOG_EVERY, WARM, train_alone, updates
from localavg.config import TrainConfig
from localavg.datasets import Dataset, Split
from localavg.errors import UserError
from localavg.interfaces import Device
from localavg.learner.sampling import Sampler
from localavg.parallel.fleet import Fleet
from localavg.problems.network import Network
from localavg.training.build import Chosen, assemble, make_problem, task_of

BATCHES = 4  # batches in the data set: few, so that evaluation, which is not timed, is short
MOMENTUM, DECAY = 0.9, 1e-4
MEAN, DEVIATION = 127.5, 73.9  # of random bytes


def bench_network(
    fleet: Fleet,
    model: str,
    side: int | None,
    B: int,
    steps: int,
    repeats: int,
    precision: str,
    device: Device,
    engine: str = "auto",
    deterministic: str = "yes",
) -> list[Row]:
    """Time `steps` local updates on random images of `side` pixels (None: the model's own).

    The updates are SGD with momentum and weight decay; times are medians of `repeats` interleaved
    turns, which are short because the speed of a shared host changes within seconds. Ours is the
    whole loop of all learners of the fleet, with its run file, from uint8 images. Best is the
    fastest loop by hand for as many learners. The floor is forward and backward of one learner
    alone, as ours computes them. The engine is chosen once.
    """
    if model not in models.MODELS:
        raise UserError(f"--model {model}: must be one of {', '.join(models.MODELS)}")
    side, warm = side or models.MODELS[model].side, WARM[device.name]
    try:
        data = _random_images(side, B)
    except MemoryError as e:
        raise UserError(
            f"--side {side}: {BATCHES} batches of {B} such images do not fit in memory; use fewer "
            "pixels or a smaller --batch-size"
        ) from e
    c = _settings(model, B, updates(steps, warm), precision, device, engine, deterministic)
    problem = make_problem(c, data, fleet, device)
    assert isinstance(problem, Network)
    task = task_of(c, fleet, fleet.P, device, problem)
    chosen = assemble(task).engine.name
    problem.close()
    by_hand = best.fastest_few(best_network.makers(problem, task.sampler, fleet.P, steps, MOMENTUM))
    ways = {
        "ours": lambda: train_alone(assemble(task, earlier=Chosen(engine=chosen)), warm)[0],
        "floor": lambda: _gradients(problem, task.sampler, steps, device),
        **best.timed(by_hand, steps),
    }
    times = medians(ways, repeats)
    quickest = best.of(times, by_hand)
    samples = steps * B * fleet.P
    rate = {"ours": samples / times["ours"], "best": samples / times[quickest]}
    rate["floor"] = steps * B / times["floor"]
    said = {"engine": chosen, "best": quickest}
    return [_row(c, data.image_shape[0], fleet, said, rate)]


def _row(
    c: TrainConfig, side: int, fleet: Fleet, said: dict[str, str], rate: dict[str, float]
) -> Row:
    """Return the settings, the examples a second, and their ratios."""
    return {
        "problem": "network",
        "model": c.model,
        "side": side,
        "batch_size": c.batch_size,
        "precision": c.precision,
        "deterministic": c.deterministic,
        "device": c.device,
        "threads": fleet.threads,
        "learners": fleet.P,
        **said,
        "ours_samples_per_s": rate["ours"],
        "best_samples_per_s": rate["best"],
        "floor_samples_per_s": rate["floor"],
        "ours_over_best": rate["ours"] / rate["best"],
        "ours_over_floor": rate["ours"] / rate["floor"],
    }


def _settings(
    model: str, B: int, steps: int, precision: str, device: Device, engine: str, deterministic: str
) -> TrainConfig:
    return TrainConfig(
        algorithm="sgd",
        model=model,
        l2=DECAY,
        batch_size=B,
        steps=steps,
        optimizer="momentum",
        momentum=MOMENTUM,
        log_every=LOG_EVERY[device.name],
        eval_every=steps,
        precision=precision,
        deterministic=deterministic,
        engine=engine,
        device=device.name,
    )


def _random_images(side: int, B: int) -> Dataset:
    """Make BATCHES mini-batches of B random images of `side` pixels, with random labels."""
    shape, classes = images(side)
    random, n = np.random.default_rng(0), BATCHES * B
    split = Split(random.integers(0, 256, (n, *shape), np.uint8), random.integers(0, classes, n))
    names, C = tuple(map(str, range(classes))), shape[2]
    pixels = (MEAN,) * C, (DEVIATION,) * C
    return Dataset("random", "images", split, None, names, True, shape, *pixels)


def _gradients(problem: Network, sampler: Sampler, steps: int, device: Device) -> float:
    """Time forward and backward alone, on one mini-batch again and again."""
    w, g = device.zeros((problem.d,)), device.zeros((problem.d,))
    problem.initial_(w)
    batch = problem.feed(sampler, range(1), steps)(0, 1)

    def loop() -> None:
        for _ in range(steps):
            problem.gradient_(w, batch, g)
        device.settle()

    return seconds(loop)
