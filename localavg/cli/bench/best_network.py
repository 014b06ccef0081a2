"""The loops that one would write by hand in torch for local updates of a network.

All normalise the images once, keep them on the device and gather each mini-batch there, keep
BatchNorm's running statistics, and update by torch's fused SGD. `OneByOne` has a module in
channels_last for each learner, `Vmapped` one module for all learners; on a GPU a whole step is one
CUDA graph (`Graphed`). Written against `torch.cuda` or a stand-in with its names.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from types import ModuleType
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, stack_module_state, vmap
from torch.nn.functional import cross_entropy

from localavg import models
from localavg.cli.bench.best import KEPT, Steps, numbers
from localavg.learner.sampling import Sampler
from localavg.problems.network import Network

LR = 0.01
LANES = 8
"""streams that a graph forks into"""
WARM_UP = 3
"""steps before a capture, which must not contain what libraries set up at first"""


class Way(Protocol):
    """Updates all learners; `step` takes the rows [P, B] of the data that their batches hold."""

    def step(self, rows: Tensor) -> None: ...


def makers(
    problem: Network, sampler: Sampler, P: int, steps: int, momentum: float
) -> dict[str, Callable[[], Steps]]:
    """Return how to make each way of updating P learners, by its name."""
    work = Work(problem, sampler, P, steps, momentum)
    kinds: dict[str, Callable[..., Way]] = {"vmap": Vmapped} if P > 1 else {}
    if problem.cuda is None:
        kinds["loop"] = OneByOne
        return {name: partial(_plain, kind, work) for name, kind in kinds.items()}
    kinds["graph"] = OneByOne
    return {name: partial(_graphed, kind, work) for name, kind in kinds.items()}


class Work:
    """What is trained: P equal modules, the normalised images, and the rows of every batch.

    images: [n, H, W, C]; labels: [n]; rows: [≤ KEPT, P, B].
    """

    def __init__(
        self, problem: Network, sampler: Sampler, P: int, steps: int, momentum: float
    ) -> None:
        data, device = problem.data, problem.device
        self.problem, self.P, self.momentum, self.device = problem, P, momentum, device
        mean, std = (torch.tensor(x, dtype=torch.float32) for x in (data.mean, data.std))
        self.images = ((torch.from_numpy(data.train.x).float() - mean) / std).to(device)
        self.labels = torch.from_numpy(data.train.y).to(device)
        times = range(1, min(steps, KEPT) + 1)
        drawn = [[numbers(sampler.batch(j, t)) for j in range(P)] for t in times]
        self.rows = torch.from_numpy(np.array(drawn)).to(device)
        self.losses = torch.zeros(P, device=device)  # sums over the updates

    def modules(self) -> list[nn.Module]:
        """Make the learners' modules, all with the weights at which ours begins."""
        data = self.problem.data
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.problem.seed)
            first = models.make(self.problem.model, data.image_shape, len(data.classes))
        return [copy.deepcopy(first).to(self.device).train() for _ in range(self.P)]

    def optimizer(self, parameters: Sequence[Tensor]) -> torch.optim.Optimizer:
        """Make the optimiser of some parameters."""
        return torch.optim.SGD(
            parameters,
            lr=LR,
            momentum=self.momentum,
            weight_decay=self.problem.l2,
            fused=self.problem.cuda in (None, torch.cuda),  # stand-ins have no fused kernels
        )

    @property
    def autocast(self) -> AbstractContextManager[object]:
        """The context of a forward pass. A graph must not keep casts of an earlier pass."""
        bf16 = isinstance(self.problem.autocast, torch.autocast)
        return torch.autocast(self.device, torch.bfloat16, enabled=bf16, cache_enabled=False)


class OneByOne:
    """A module and an optimiser for each learner. lanes: streams that take the learners in turn."""

    def __init__(self, work: Work, cuda: ModuleType | None = None) -> None:
        self.work, self.cuda = work, cuda
        self.modules = work.modules()
        for module in self.modules:
            module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizers = [work.optimizer(list(m.parameters())) for m in self.modules]
        self.lanes = [cuda.Stream() for _ in range(min(LANES, work.P))] if cuda else []

    def step(self, rows: Tensor) -> None:
        if self.cuda is None:
            for l in range(self.work.P):
                self._update(l, rows[l])
            return
        main = self.cuda.current_stream()
        for lane in self.lanes:
            lane.wait_stream(main)
        for l in range(self.work.P):
            with self.cuda.stream(self.lanes[l % len(self.lanes)]):
                self._update(l, rows[l])
        for lane in self.lanes:
            main.wait_stream(lane)

    def _update(self, l: int, rows: Tensor) -> None:
        work = self.work
        x = work.images.index_select(0, rows).permute(0, 3, 1, 2)  # [B, C, H, W], channels_last
        y = work.labels.index_select(0, rows)
        self.optimizers[l].zero_grad()
        with work.autocast:
            loss = cross_entropy(self.modules[l](x), y)
        loss.backward()
        self.optimizers[l].step()
        work.losses[l].add_(loss.detach())


class Vmapped:
    """One module for all learners, whose parameters and statistics are stacked, [P, …] each."""

    def __init__(self, work: Work, cuda: ModuleType | None = None) -> None:
        self.work = work
        modules = work.modules()
        self.base = copy.deepcopy(modules[0]).to("meta")
        parameters, self.buffers = stack_module_state(modules)
        self.parameters = {name: x.detach() for name, x in parameters.items()}
        self.images = work.images.permute(0, 3, 1, 2).contiguous()  # [n, C, H, W]
        self.optimizer = work.optimizer(list(self.parameters.values()))
        self.gradients = vmap(grad_and_value(self._loss), randomness="different")

    def _loss(self, parameters: Any, buffers: Any, x: Tensor, y: Tensor) -> Tensor:
        return cross_entropy(functional_call(self.base, (parameters, buffers), (x,)), y)

    def step(self, rows: Tensor) -> None:
        flat = rows.flatten()
        x = self.images.index_select(0, flat).unflatten(0, rows.shape)  # [P, B, C, H, W]
        y = self.work.labels.index_select(0, flat).view(rows.shape)
        with self.work.autocast:
            gradients, losses = self.gradients(self.parameters, self.buffers, x, y)
        for name, parameter in self.parameters.items():
            parameter.grad = gradients[name]
        self.optimizer.step()
        self.work.losses += losses


def _plain(kind: Callable[[Work], Way], work: Work) -> Steps:
    """Make a way on the CPU."""
    way, rows = kind(work), work.rows.unbind()

    def go(steps: int) -> None:
        for t in range(steps):
            way.step(rows[t % len(rows)])
        work.losses.sum().item()

    return go


def _graphed(kind: Callable[[Work, ModuleType], Way], work: Work) -> Steps:
    """Make a way on a GPU, whose step is one CUDA graph."""
    cuda = work.problem.cuda
    assert cuda is not None
    with _any_kernel():
        return Graphed(kind(work, cuda), work, cuda)


class Graphed:
    """Replays a step of a way from one CUDA graph; `place` there says which batches come next."""

    def __init__(self, way: Way, work: Work, cuda: ModuleType) -> None:
        self.way, self.work = way, work
        self.place = torch.zeros(1, dtype=torch.int64, device=work.device)
        capturing, main = cuda.Stream(), cuda.current_stream()
        capturing.wait_stream(main)
        with cuda.stream(capturing):
            for _ in range(WARM_UP):
                self._step()
        main.wait_stream(capturing)
        self.graph = cuda.CUDAGraph()
        # thread_local: other threads of the process may call CUDA meanwhile
        with cuda.graph(self.graph, stream=capturing, capture_error_mode="thread_local"):
            self._step()

    def _step(self) -> None:
        rows = self.work.rows.index_select(0, self.place)[0]
        self.way.step(rows)
        self.place.add_(1).remainder_(len(self.work.rows))

    def __call__(self, steps: int) -> None:
        self.place.zero_()
        for _ in range(steps):
            self.graph.replay()
        self.work.losses.sum().item()  # waits until all is done


@contextmanager
def _any_kernel() -> Iterator[None]:
    """Let torch take the fastest kernels, also those that do not repeat their bits."""
    mode, cudnn = torch.get_deterministic_debug_mode(), torch.backends.cudnn
    benchmark = cudnn.benchmark
    torch.set_deterministic_debug_mode("default")
    cudnn.benchmark = True
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(mode)
        cudnn.benchmark = benchmark
