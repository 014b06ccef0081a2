"""Networks for image classification, whose tensors are views into the rows of the flat matrix.

A learner's module is bound once to its row of weights and its row of gradients (`rows.Bound`):
`backward` writes the flat gradient, the local update and the average work on rows, and no tensor is
ever copied between torch and the flat matrix.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from types import ModuleType

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.overrides import TorchFunctionMode

from localavg import models
from localavg.datasets import Dataset, Split
from localavg.errors import UserError
from localavg.interfaces import Array, Device, Engine, Feed, Problem
from localavg.learner.sampling import IID, Sampler
from localavg.parallel.aligned import ALIGN
from localavg.parallel.device import address
from localavg.problems.batches import Batch, Batches
from localavg.problems.device_feed import fitting, make_device_feed
from localavg.problems.engines import memory
from localavg.problems.engines.batch import Batch as Batched
from localavg.problems.engines.batch import Net
from localavg.problems.engines.graph import Graph
from localavg.problems.engines.loop import Loop
from localavg.problems.engines.masks import DROPOUTS, Masks, masked_
from localavg.problems.engines.replayed_batch import ReplayedBatch
from localavg.problems.feed import examples, make_feed
from localavg.problems.rows import Bound, Rows, floating

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
PIXELS = {"cpu": 256 * 32 * 32, "cuda": 4096 * 32 * 32}
"""pixels of the images that are evaluated at a time, by device"""


class Network(Problem):
    """A model of `localavg.models` with the cross-entropy loss.

    l2 is weight decay as in torch.optim: its gradient is added, its value is not part of the loss,
    as in the papers' figures. precision: bf16 for autocast with float32 weights; the others are set
    by torch's flags. calibrate: re-estimate BatchNorm's statistics from N mini-batches before the
    averaged model is evaluated (0: evaluate with the averaged ones).

    cuda: torch.cuda where the learners compute on a GPU, None on the CPU; tests set a stand-in.
    """

    align = ALIGN

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
        device: str = "cpu",
    ) -> None:
        if data.kind == "features":
            raise UserError(
                f"`data = {data.name}`: networks need images, not a feature matrix; use digits, a "
                "prepared image file, or `problem = logistic`"
            )
        self.data, self.model, self.l2, self.seed = data, model, l2, seed
        self.augment, self.calibrate, self.device = augment, calibrate, device
        self.compiled = compiled
        if compiled:  # the compiler has a switch of its own
            torch.use_deterministic_algorithms(
                torch.are_deterministic_algorithms_enabled(), warn_only=True
            )
        self.cuda: ModuleType | None = None if device == "cpu" else torch.cuda
        self.n = len(data.train.y)
        self.autocast: AbstractContextManager[object] = nullcontext()
        if precision == "bf16":
            self.autocast = torch.autocast(device, torch.bfloat16)
        with torch.device("meta"), _Undrawn():  # shapes without memory
            self._skeleton = self._make()
        self.rows = rows = Rows(self._skeleton, device)
        self.shapes, self.parameters, self.d = rows.shapes, rows.parameters, rows.d
        self._draws = any(isinstance(m, DROPOUTS) and m.p for m in self._skeleton.modules())
        self._normalises = any(isinstance(m, NORMS) for m in self._skeleton.modules())
        self._bound: dict[tuple[int, bool], Bound] = {}  # by the address of w and whether it trains
        self._batches: Batches | None = None

    def initial_(self, w: Array) -> None:
        """Write the model's own initialisation, drawn with the run's seed, into w [d]."""
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(self.seed)
            tensors = floating(self._make())
            for name, view in self.views(w).items():
                view.copy_(tensors[name])

    def feed(self, sampler: Sampler, learners: range, T: int, in_step: bool = True) -> Batches:
        if sampler.B < 2 and self._normalises:
            raise UserError(
                f"`batch_size = {sampler.B}`: {self.model} has BatchNorm, which needs at least 2 "
                "examples a batch"
            )
        self.close()
        self.B = sampler.B
        how = self.data, sampler, self.seed, learners, T, self.device, self.augment
        # A feed of the device makes the batches of all learners for the same update.
        at_once = self.cuda if in_step or len(learners) == 1 else None
        with fitting(self.data):
            feed = make_device_feed(*how, at_once) if at_once else make_feed(*how)
        self._batches = Batches(feed, self._draws, self.seed)
        return self._batches

    def engines(self) -> Mapping[str, Callable[[Feed, range], Engine]]:
        if self.compiled:  # which rebuilds the gradient of one learner
            return {}
        graph = {} if self.cuda is None else {Graph.name: self._graph}
        return {**graph, Batched.name: self._batch}

    def _graph(self, feed: Feed, learners: range) -> Engine:
        assert self.cuda is not None and isinstance(feed, Batches)
        return Graph(self.bind, self._masks, feed, learners, Loop(self, feed, learners), self.cuda)

    def _batch(self, feed: Feed, learners: range) -> Engine:
        assert isinstance(feed, Batches)
        net = Net(self.model, self._skeleton, self.rows, self.l2, self.autocast)
        if self.cuda is None:
            return Batched(net, feed, learners)
        return ReplayedBatch(net, feed, learners, Loop(self, feed, learners), self.cuda)

    def gradient_(self, w: Array, batch: Batch, out: Array) -> float | Tensor:
        """Write the gradient of the mini-batch loss and the weight decay at w [d] into `out` [d].

        Return the loss: a number on the CPU; on a GPU a tensor, since a number would have to wait
        for the GPU. BatchNorm's statistics, at the end of w, are updated; their place in `out` is
        not used.
        """
        bound = self._at(w, out)
        x, y, seed = batch
        if seed is not None:
            torch.manual_seed(seed)
        with memory.explained(Loop.name, "a smaller `batch_size`"):
            loss = bound.gradient_(x, y)
        return loss.item() if self.device == "cpu" else loss

    def sums(
        self, w: Array, split: Split, lo: int, hi: int, gradient: bool = False
    ) -> tuple[float, int, Array | None]:
        """Sum over rows lo … hi − 1 of a split, as `interfaces.Problem` describes.

        The gradient [n parameters] is that of the network as it is evaluated.
        """
        bound = self._at(w)
        g = bound.accumulate_() if gradient else None
        loss = torch.zeros((), dtype=torch.float64, device=self.device)
        right = torch.zeros((), dtype=torch.int64, device=self.device)
        H, W, _ = self.data.image_shape
        size = max(1, PIXELS[self.device] // (H * W))
        for x, y in examples(self.data, split, lo, hi, size, self.device):
            with self.autocast, torch.set_grad_enabled(gradient):
                z = bound.module(x)  # [rows, classes]
                losses = cross_entropy(z.float(), y, reduction="sum")
            if gradient:
                losses.backward()
            loss += losses.detach()
            right += (z.argmax(1) == y).sum()
        return loss.item(), int(right), None if g is None else g.cpu().numpy().astype(np.float64)

    def calibrate_(self, w: Array) -> None:
        """Set the statistics in w [d] to the mean and variance over `calibrate` mini-batches."""
        if not (self.calibrate and self._normalises):
            return
        module = self._at(w).module
        norms = [m for m in module.modules() if isinstance(m, NORMS)]
        before = [m.momentum for m in norms]
        sampler = IID(self.n, 1, self.B, self.seed)
        draw = make_feed(
            self.data, sampler, self.seed, range(1), self.calibrate, self.device, augment=False
        )
        for t in range(1, self.calibrate + 1):
            # Only these train: all else that differs in training, dropout, stays as in evaluation.
            for m in norms:
                m.train().momentum = 1 / t  # so that the result is the mean over all batches
            with torch.no_grad(), self.autocast:
                module(draw(0, t)[0])
        for m, momentum in zip(norms, before, strict=True):
            m.eval().momentum = momentum
        draw.close()

    def close(self) -> None:
        if self._batches is not None:
            self._batches.feed.close()

    def views(self, row: Array) -> dict[str, Tensor]:
        """Return the tensors of a row [d] by name, in the model's shapes."""
        return self.rows.views(row)

    def _make(self) -> nn.Module:
        return models.make(self.model, self.data.image_shape, len(self.data.classes))

    def _at(self, w: Array, g: Array | None = None) -> Bound:
        """Return the module whose weights are w [d].

        With g [d] it trains and its gradients lie there; without g it evaluates.
        """
        key = address(w), g is not None
        if key not in self._bound:
            self._bound[key] = self.bind(w, g)
        return self._bound[key]

    def _masks(self, w: Array, x: Tensor) -> Masks:
        return Masks(self._skeleton, self.rows, w, x, self.autocast)

    def bind(self, w: Array, g: Array | None = None, masks: Sequence[Tensor] = ()) -> Bound:
        """Make a module whose weights are w [d], as `_at` describes; masks: of its dropouts."""
        module = copy.deepcopy(self._skeleton)
        if masks:
            masked_(module, masks)
        how = self.l2, self.autocast, self.compiled, self.cuda is not None
        return Bound(module, self.rows, w, g, *how)


def set_up_torch(threads: int, device: Device, precision: str, repeats: bool = True) -> None:
    """Make torch compute on this device, with N threads and in the precision asked for.

    repeats: give the same bits each time where it can. Raises UserError where torch cannot use the
    device.
    """
    torch.set_num_threads(threads)
    if device.name == "cpu":
        return
    if not torch.cuda.is_available():
        raise UserError(
            f"`device = cuda`: torch {torch.__version__}, built for CUDA {torch.version.cuda}, "
            "sees no GPU; install torch with a CUDA that this machine's driver knows"
        )
    torch.cuda.set_device(device.index)
    if precision == "bf16" and not torch.cuda.is_bf16_supported():
        raise UserError("`precision = bf16`: this GPU cannot; use `precision = float32`")
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    # not use_deterministic_algorithms, which loads torch's compiler too: 4 s
    torch.set_deterministic_debug_mode("warn" if repeats else "default")
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


class _Undrawn(TorchFunctionMode):
    """Skip normal draws while a module is made only for its shapes.

    torch computes a normal draw on the device meta in Python, and loads its compiler for it, which
    takes seconds.
    """

    def __torch_function__(
        self,
        function: Callable[..., object],
        types: object,
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        kwargs = kwargs or {}
        if function in (Tensor.normal_, nn.init.normal_):
            return args[0] if args else kwargs["tensor"]
        return function(*args, **kwargs)
