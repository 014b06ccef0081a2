"""One learner's local updates on a network, against a bare torch loop of the same model, batch and
precision.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from localavg import models
from localavg.cli.bench import images, medians, seconds
from localavg.cli.bench.loop import train_alone
from localavg.datasets import Dataset, Split
from localavg.errors import UserError
from localavg.learner import optim
from localavg.learner.sampling import IID
from localavg.parallel.device import Cpu
from localavg.parallel.fleet import Fleet
from localavg.problems.network import Network, set_up_torch

BATCHES = 4  # the examples are so many batches, so that evaluation, which is not timed, is short
MOMENTUM, DECAY = 0.9, 1e-4
# as in a run of 1000 updates; turns are short, as the speed of a shared machine changes within
# seconds
LOG_EVERY = 10


def bench_network(
    fleet: Fleet,
    model: str,
    side: int | None,
    B: int,
    steps: int,
    repeats: int,
    precision: str,
    device: Cpu,
    cuda_graphs: bool = False,
) -> list[dict[str, Any]]:
    """`steps` local updates on random images of `side` pixels (None: the model's own), SGD with
    momentum and weight decay.

    Medians of `repeats` interleaved turns. All learners of the fleet train, against a bare loop and
    a floor of one. Ours is the whole loop with its run file, from uint8 images; bare is forward,
    backward and torch.optim.SGD on normalised float32 images that are there already; floor is the
    model's forward and backward alone, as ours computes them.
    """
    if model not in models.MODELS:
        raise UserError(f"--model {model}: must be one of {', '.join(models.MODELS)}")
    set_up_torch(fleet.threads, device, precision)
    side = side or models.MODELS[model].side
    shape, classes = images(side)
    random = np.random.default_rng(0)
    n = BATCHES * B
    split = Split(random.integers(0, 256, (n, *shape), np.uint8), random.integers(0, classes, n))
    data = Dataset(
        "random",
        "images",
        split,
        None,
        tuple(map(str, range(classes))),
        True,
        shape,
        (127.5,) * shape[2],
        (73.9,) * shape[2],
    )
    sampler = IID(n, fleet.P, B, seed=0)
    problem = Network(
        data, model, DECAY, 0, precision=precision, cuda_graphs=cuda_graphs, device=device.name
    )
    times = medians(
        {
            "ours": lambda: train_alone(
                fleet, problem, optim.Momentum(MOMENTUM), sampler, steps, LOG_EVERY, device
            )[0],
            "bare": lambda: _bare(problem, sampler, steps),
            "floor": lambda: _gradients(problem, sampler, steps, device),
        },
        repeats,
    )
    rate = {
        name: steps * B * (fleet.P if name == "ours" else 1) / took for name, took in times.items()
    }
    return [
        {
            "problem": "network",
            "model": model,
            "side": side,
            "batch_size": B,
            "precision": precision,
            "device": device.name,
            "threads": fleet.threads,
            "learners": fleet.P,
            "cuda_graphs": cuda_graphs,
            "ours_samples_per_s": rate["ours"],
            "bare_samples_per_s": rate["bare"],
            "floor_samples_per_s": rate["floor"],
            "ours_over_bare": rate["ours"] / rate["bare"],
            "ours_over_floor": rate["ours"] / rate["floor"],
        }
    ]


def _bare(problem: Network, sampler: IID, steps: int) -> float:
    """The loop one would write by hand."""
    data = problem.data
    model = models.make(problem.model, data.shape, len(data.classes)).to(problem.device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=MOMENTUM, weight_decay=DECAY)
    x = (
        torch.from_numpy(data.train.x).permute(0, 3, 1, 2).float().contiguous() - 127.5
    ) / 73.9  # [n, C, H, W]
    x, y = x.to(problem.device), torch.from_numpy(data.train.y).to(problem.device)
    rows = [torch.from_numpy(sampler.batch(0, t)).to(problem.device) for t in range(1, steps + 1)]
    losses = []

    def loop() -> None:
        for r in rows:
            optimizer.zero_grad()
            with problem.autocast:
                loss = cross_entropy(model(x[r]), y[r])
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        sum(losses).item()  # and so all is done

    return seconds(loop)


def _gradients(problem: Network, sampler: IID, steps: int, device: Cpu) -> float:
    w, g = device.zeros((problem.d,)), device.zeros((problem.d,))
    problem.initial_(w)
    batch = problem.feed(sampler, range(1), steps)(0, 1)

    def loop() -> None:
        for _ in range(steps):
            problem.gradient_(w, batch, g)
        device.settle()

    return seconds(loop)
