"""Networks for image classification: torch modules whose tensors are views into the rows of the
flat matrix.

A learner's module is bound once to its row of weights and its row of gradients: `backward` writes
the flat gradient, the local update and the average work on rows, and no tensor is ever copied
between the two worlds. Convolution kernels lie as (O, H, W, I) in a row, which torch calls
channels_last and computes with faster.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.overrides import TorchFunctionMode

from localavg import models
from localavg.datasets import Dataset, Split
from localavg.errors import UserError
from localavg.learner.flat import layout
from localavg.learner.sampling import IID, Sampler
from localavg.parallel.device import Cpu, address
from localavg.problems import Problem
from localavg.problems.feed import examples, make_feed
from localavg.problems.graphs import Graphs
from localavg.streams import Stream, generator

Array = Any
Batch = tuple[
    Tensor, Tensor, int | None
]  # x [B, C, H, W], y [B], the seed of what the network draws itself

NORMS, DROPOUTS = (nn.BatchNorm1d, nn.BatchNorm2d), (nn.Dropout, nn.Dropout2d)
PIXELS = {
    "cpu": 256 * 32 * 32,
    "cuda": 4096 * 32 * 32,
}  # of the images that are evaluated at a time


class Network(Problem):
    """A model of `localavg.models` with the cross-entropy loss.

    Rows hold the parameters, then the floating-point statistics (BatchNorm's running mean and
    variance). l2 is weight decay as in torch.optim: its gradient is added, its value is not part of
    the loss, as in the papers' figures. precision: bf16 for autocast with float32 weights; others
    are up to torch's flags. calibrate: re-estimate BatchNorm's statistics from so many mini-batches
    before the averaged model is evaluated (0: evaluate with the averaged ones). cuda_graphs: replay
    gradients as graphs, learners side by side (`graphs.Graphs`), on the device cuda.
    """

    def __init__(
        self,
        data: Dataset,
        model: str,
        l2: float,
        seed: int,
        *,
        augment: bool = True,
        precision: str = "float32",
        calibrate: int = 0,
        compiled: bool = False,
        cuda_graphs: bool = False,
        device: str = "cpu",
    ) -> None:
        if data.kind == "features":
            raise UserError(
                f"`data = {data.name}`: networks need images, not a feature matrix; use digits, a "
                "prepared "
                f"image file, or `problem = logistic`"
            )
        self.data, self.model, self.l2, self.seed = data, model, l2, seed
        self.augment, self.calibrate, self.compiled, self.device = (
            augment,
            calibrate,
            compiled,
            device,
        )
        self.n = len(data.train.y)
        self.autocast = (
            torch.autocast(device, torch.bfloat16) if precision == "bf16" else nullcontext()
        )
        with torch.device("meta"), _Undrawn():  # shapes without memory
            self._skeleton = self._make()
        tensors = _floating(self._skeleton)
        self.parameters = len(list(self._skeleton.parameters()))
        self.shapes = {name: _in_memory(x) for name, x in tensors.items()}
        self._segments = layout(self.shapes)
        self.d = list(self._segments.values())[-1].stop
        self._draws = any(isinstance(m, DROPOUTS) and m.p for m in self._skeleton.modules())
        self._normalises = any(isinstance(m, NORMS) for m in self._skeleton.modules())
        self._bound: dict[tuple[int, bool], Bound] = {}  # by the address of w and whether it trains
        self._feed: Any = None
        self.cuda_graphs, self._graphs = cuda_graphs, None

    def initial_(self, w: Array) -> None:
        """The model's own initialisation, drawn with the run's seed."""
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(self.seed)
            tensors = _floating(self._make())
            for name, view in self.views(w).items():
                view.copy_(tensors[name])

    def feed(self, sampler: Sampler, learners: range, T: int) -> Callable[[int, int], Batch]:
        if sampler.B < 2 and self._normalises:
            raise UserError(
                f"`batch_size = {sampler.B}`: {self.model} has BatchNorm, which needs at least 2 "
                "examples a batch"
            )
        self.B = sampler.B
        if self.cuda_graphs:
            self._graphs = Graphs(len(learners), self._draws)
        self._feed = draw = make_feed(
            self.data, sampler, self.seed, learners, T, self.device, self.augment
        )
        if not self._draws:
            return lambda j, t: (*draw(j, t), None)
        return lambda j, t: (
            *draw(j, t),
            int(generator(self.seed, j, t, Stream.NETWORK).integers(2**63)),
        )

    def gradient_(self, w: Array, batch: Batch, out: Array) -> float | Tensor:
        """The gradient of the mini-batch loss and the weight decay at w [d] into `out` [d]; returns
        the loss.

        BatchNorm's statistics, at the end of w, move on; their place in `out` is not used.
        """
        bound = self._at(w, out)
        if self._graphs is not None:
            return self._graphs.gradient_(bound, *batch)
        x, y, seed = batch
        if seed is not None:
            torch.manual_seed(seed)
        loss = bound.gradient_(x, y)
        return (
            loss.item() if self.device == "cpu" else loss
        )  # a number would have to wait for the GPU

    def sums(
        self, w: Array, split: Split, lo: int, hi: int, gradient: bool = False
    ) -> tuple[float, int, Array | None]:
        """As the interface says; the gradient [n parameters] is that of the network as it is
        evaluated.
        """
        bound = self._at(w)
        if gradient:
            bound.accumulate_()
        loss, right = (
            torch.zeros((), dtype=torch.float64, device=self.device),
            torch.zeros((), dtype=int, device=self.device),
        )
        H, W, _ = self.data.shape
        for x, y in examples(
            self.data, split, lo, hi, max(1, PIXELS[self.device] // (H * W)), self.device
        ):
            with self.autocast, torch.set_grad_enabled(gradient):
                z = bound.module(x)  # [rows, classes]
                losses = cross_entropy(z.float(), y, reduction="sum")
            if gradient:
                losses.backward()
            loss += losses.detach()
            right += (z.argmax(1) == y).sum()
        return (
            loss.item(),
            int(right),
            bound.g.cpu().numpy().astype(np.float64) if gradient else None,
        )

    def calibrate_(self, w: Array) -> None:
        """Put the mean and variance over `calibrate` mini-batches in the place of the statistics in
        w [d].
        """
        if not (self.calibrate and self._normalises):
            return
        module = self._at(w).module
        norms = [m for m in module.modules() if isinstance(m, NORMS)]
        before = [m.momentum for m in norms]
        draw = make_feed(
            self.data,
            IID(self.n, 1, self.B, self.seed),
            self.seed,
            range(1),
            self.calibrate,
            self.device,
            False,
        )
        for t in range(1, self.calibrate + 1):
            for m in (
                norms
            ):  # alone: what else behaves otherwise in training, dropout, stays as it is evaluated
                m.train().momentum = 1 / t  # so that the result is the mean over all batches
            with torch.no_grad(), self.autocast:
                module(draw(0, t)[0])
        for m, momentum in zip(norms, before, strict=True):
            m.eval().momentum = momentum
        draw.close()

    def close(self) -> None:
        if self._feed is not None:
            self._feed.close()

    def views(self, row: Array) -> dict[str, Tensor]:
        """The tensors of a row [d] by name, in the model's shapes."""
        flat = self.tensor(row)
        return {
            name: _as_seen(flat[segment].view(self.shapes[name]))
            for name, segment in self._segments.items()
        }

    def tensor(self, row: Array) -> Tensor:
        """A row as a tensor in the same memory: NumPy's, or CuPy's by its __cuda_array_interface__;
        a tensor as it is.
        """
        return (
            torch.from_numpy(row)
            if isinstance(row, np.ndarray)
            else torch.as_tensor(row, device=self.device)
        )

    def _make(self) -> nn.Module:
        return models.make(self.model, self.data.shape, len(self.data.classes))

    def _at(self, w: Array, g: Array | None = None) -> Bound:
        """The module whose weights are w [d]: for training with its gradients in g [d], for
        evaluation without g.
        """
        key = address(w), g is not None
        if key not in self._bound:
            self._bound[key] = Bound(self, w, g)
        return self._bound[key]


def set_up_torch(threads: int, device: Cpu, precision: str) -> None:
    """Have torch compute on this device with so many threads, as precisely as asked, the same bits
    each time where it can.

    Raises UserError where torch cannot use the device.
    """
    torch.set_num_threads(threads)
    if device.name == "cpu":
        return
    if not torch.cuda.is_available():
        raise UserError(
            f"`device = cuda`: torch {torch.__version__}, built for CUDA {torch.version.cuda}, "
            "sees no GPU; install "
            f"torch with a CUDA that this machine's driver knows"
        )
    torch.cuda.set_device(device.index)
    if precision == "bf16" and not torch.cuda.is_bf16_supported():
        raise UserError("`precision = bf16`: this GPU cannot; use `precision = float32`")
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False


class Bound:
    """A module over one row w [d], and w, g [n parameters] as tensors; gradients are kept where
    there is a row for them.
    """

    def __init__(self, network: Network, w: Array, g: Array | None) -> None:
        self.network = network
        names = list(network.shapes)[: network.parameters]
        stop = network._segments[names[-1]].stop
        tensors = network.views(w)
        self.module = copy.deepcopy(network._skeleton)
        for prefix, module in self.module.named_modules():
            for name in [name for name, p in module._parameters.items() if p is not None]:
                module._parameters[name] = nn.Parameter(tensors[f"{prefix}.{name}".lstrip(".")])
            for name in module._buffers:
                module._buffers[name] = tensors.get(
                    f"{prefix}.{name}".lstrip(".")
                )  # None: num_batches_tracked
        self.w, self.g = network.tensor(w)[:stop], None  # [n]
        self.module.train(g is not None)
        if g is not None:
            self._point_gradients(g)
        if network.compiled:
            self.module.compile()

    def gradient_(self, x: Tensor, y: Tensor) -> Tensor:
        """The gradient of the loss on x [B, C, H, W], y [B] and the weight decay into g; returns
        the loss.
        """
        torch.mul(self.w, self.network.l2, out=self.g)  # backward adds to it
        with self.network.autocast:
            loss = cross_entropy(self.module(x), y)
        loss.backward()
        return loss.detach()

    def accumulate_(self) -> None:
        """Have gradients from now on add up in g, from zero."""
        if self.g is None:
            self._point_gradients(torch.zeros(self.network.d, device=self.network.device))
        self.g.zero_()

    def _point_gradients(self, row: Array) -> None:
        views = self.network.views(row)
        self.g = self.network.tensor(row)[: len(self.w)]
        for name, parameter in self.module.named_parameters():
            parameter.grad = views[name]


class _Undrawn(TorchFunctionMode):
    """Skip normal draws while a module is made for its shapes alone.

    torch computes a normal draw on the device meta in Python, and loads its compiler for it, which
    takes seconds.
    """

    def __torch_function__(
        self, function: Callable, types: object, args: tuple = (), kwargs: dict | None = None
    ) -> object:
        kwargs = kwargs or {}
        if function in (Tensor.normal_, nn.init.normal_):
            return args[0] if args else kwargs["tensor"]
        return function(*args, **kwargs)


def _floating(model: nn.Module) -> dict[str, Tensor]:
    """Parameters, then floating-point statistics, by name."""
    statistics = {name: b for name, b in model.named_buffers() if b.is_floating_point()}
    return dict(model.named_parameters()) | statistics


def _in_memory(x: Tensor) -> tuple[int, ...]:
    """The shape of a tensor as it lies in a row: kernels with their input channels last."""
    return tuple(x.permute(0, 2, 3, 1).shape if x.dim() == 4 else x.shape)


def _as_seen(x: Tensor) -> Tensor:
    return x.permute(0, 3, 1, 2) if x.dim() == 4 else x
