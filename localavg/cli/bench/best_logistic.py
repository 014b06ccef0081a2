"""The loops that one would write by hand for local updates of logistic regression.

On the CPU a NumPy loop, which takes consecutive rows without a copy. On a GPU one CUDA graph, in
which all learners gather their rows and are updated by two batched products; without torch the
loop, in CuPy.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING

import numpy as np

from localavg.cli.bench.best import KEPT, Steps, numbers
from localavg.interfaces import Array, Device
from localavg.learner.sampling import Batch
from localavg.problems.logistic import Logistic

if TYPE_CHECKING:
    from torch import Tensor

LR = 0.01


def makers(
    problem: Logistic, rows: list[list[Batch]], device: Device
) -> dict[str, Callable[[], Steps]]:
    """Return how to make each way of updating the learners, by its name.

    rows: of every update and learner.
    """
    if device.name == "cuda" and find_spec("torch"):
        return {"graph": partial(_graphed, problem, rows)}
    return {"loop": partial(_looped, problem, rows, device)}


def _looped(problem: Logistic, rows: list[list[Batch]], device: Device) -> Steps:
    """Make the loop over learners."""
    w, xp = device.zeros((len(rows[0]), problem.d)), problem.xp

    def go(steps: int) -> None:
        for t in range(steps):
            for w_j, batch in zip(w, rows[t % len(rows)], strict=True):
                _update(w_j, problem.x[batch], problem.y[batch])
        device.settle()

    def _update(w_j: Array, x: Array, y: Array) -> None:
        slope = y / (1 + xp.exp(y * (x @ w_j)))  # [B]
        slope *= LR / len(y)
        step = slope @ x  # [d]
        w_j *= 1 - LR * problem.l2
        w_j += step

    return go


def _graphed(problem: Logistic, rows: list[list[Batch]]) -> Steps:
    """Make the graph."""
    import torch

    x, y = (torch.as_tensor(values, device="cuda") for values in (problem.x, problem.y))
    step, w = batched(x, y, rows, problem.l2)
    side, main = torch.cuda.Stream(), torch.cuda.current_stream()
    side.wait_stream(main)
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    main.wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=side):
        step()

    def go(steps: int, used: object = step) -> None:  # the graph reads what belongs to the step
        for _ in range(steps):
            graph.replay()
        w.sum().item()  # waits until all is done

    return go


def batched(
    x: Tensor, y: Tensor, rows: list[list[Batch]], l2: float
) -> tuple[Callable[[], None], Tensor]:
    """Return a step of all learners on x [n, d], y [n], and their weights [P, d]."""
    import torch

    taken = torch.from_numpy(np.array([[numbers(b) for b in each] for each in rows[:KEPT]]))
    taken, place = taken.to(x.device), torch.zeros(1, dtype=torch.int64, device=x.device)
    _, P, B = taken.shape
    w = torch.zeros(P, x.shape[1], device=x.device)

    def step() -> None:
        these = taken.index_select(0, place)[0]  # [P, B]
        examples, labels = x[these], y[these]  # [P, B, d], [P, B]
        margins = torch.bmm(examples, w[:, :, None])[:, :, 0] * labels
        slope = labels * torch.sigmoid(-margins)
        w.mul_(1 - LR * l2)
        w.add_(torch.bmm(slope[:, None], examples)[:, 0], alpha=LR / B)
        place.add_(1).remainder_(len(taken))

    return step, w
