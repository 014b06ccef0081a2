"""Time local updates on a network against a bare torch loop and the floor.

The bare loop has the same model, batch and precision.
"""

from __future__ import annotations

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from localavg import models
from localavg.cli.bench import Row, images, medians, seconds
from localavg.cli.bench.loop import train_alone
from localavg.config import TrainConfig
from localavg.datasets import Dataset, Split
from localavg.errors import UserError
from localavg.interfaces import Device
from localavg.learner.sampling import Sampler
from localavg.parallel.fleet import Fleet
from localavg.problems.network import Network
from localavg.training.build import assemble, make_problem, task_of

BATCHES = 4  # batches in the data set: few, so that evaluation, which is not timed, is short
MOMENTUM, DECAY = 0.9, 1e-4
MEAN, DEVIATION = 127.5, 73.9  # of random bytes
LOG_EVERY = 10  # updates, as in a run of 1000 updates


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
) -> list[Row]:
    """Time `steps` local updates on random images of `side` pixels (None: the model's own).

    The updates are SGD with momentum and weight decay; times are medians of `repeats` interleaved
    turns, which are short because the speed of a shared host changes within seconds. Ours is the
    whole loop of all learners of the fleet, with its run file, from uint8 images. Bare is forward,
    backward and torch.optim.SGD of one learner, on float32 images normalised beforehand. The floor
    is forward and backward of one learner alone, as ours computes them.
    """
    if model not in models.MODELS:
        raise UserError(f"--model {model}: must be one of {', '.join(models.MODELS)}")
    data = _random_images(side or models.MODELS[model].side, B)
    c = _settings(model, B, steps, precision, device, engine)
    problem = make_problem(c, data, fleet, device)
    assert isinstance(problem, Network)
    task = task_of(c, fleet, fleet.P, device, problem)
    ways = {
        "ours": lambda: train_alone(assemble(task))[0],
        "bare": lambda: _bare(problem, task.sampler, steps),
        "floor": lambda: _gradients(problem, task.sampler, steps, device),
    }
    times = medians(ways, repeats)
    learners = {"ours": fleet.P, "bare": 1, "floor": 1}
    rate = {name: steps * B * learners[name] / took for name, took in times.items()}
    return [_row(c, data.image_shape[0], fleet, rate)]


def _row(c: TrainConfig, side: int, fleet: Fleet, rate: dict[str, float]) -> Row:
    """Return the settings, the examples a second, and their ratios."""
    return {
        "problem": "network",
        "model": c.model,
        "side": side,
        "batch_size": c.batch_size,
        "precision": c.precision,
        "device": c.device,
        "threads": fleet.threads,
        "learners": fleet.P,
        "engine": c.engine,
        "ours_samples_per_s": rate["ours"],
        "bare_samples_per_s": rate["bare"],
        "floor_samples_per_s": rate["floor"],
        "ours_over_bare": rate["ours"] / rate["bare"],
        "ours_over_floor": rate["ours"] / rate["floor"],
    }


def _settings(
    model: str, B: int, steps: int, precision: str, device: Device, engine: str
) -> TrainConfig:
    return TrainConfig(
        algorithm="sgd",
        model=model,
        l2=DECAY,
        batch_size=B,
        steps=steps,
        optimizer="momentum",
        momentum=MOMENTUM,
        log_every=LOG_EVERY,
        eval_every=steps,
        precision=precision,
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


def _bare(problem: Network, sampler: Sampler, steps: int) -> float:
    """Time the loop that one would write by hand."""
    data = problem.data
    model = models.make(problem.model, data.image_shape, len(data.classes)).to(problem.device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=MOMENTUM, weight_decay=DECAY)
    x = torch.from_numpy(data.train.x).permute(0, 3, 1, 2).float().contiguous()  # [n, C, H, W]
    x = ((x - MEAN) / DEVIATION).to(problem.device)
    y = torch.from_numpy(data.train.y).to(problem.device)
    rows = [torch.from_numpy(sampler.batch(0, t)).to(problem.device) for t in range(1, steps + 1)]
    losses: list[torch.Tensor] = []

    def loop() -> None:
        for r in rows:
            optimizer.zero_grad()
            with problem.autocast:
                loss = cross_entropy(model(x[r]), y[r])
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        torch.stack(losses).sum().item()  # waits until all is done

    return seconds(loop)


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
