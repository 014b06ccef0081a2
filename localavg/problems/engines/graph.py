"""The gradients of all learners of a rank on a GPU, replayed from one CUDA graph.

A graph launches the thousands of small kernels of a step at once, and kernels in different streams
run side by side, so that several learners on a GPU take little more time than their arithmetic.
Written against `torch.cuda` or a stand-in with its names.

Main is the stream that all other work runs in. The step runs in a stream of its own, which waits
for main before it, and main for it after it. It makes the batches, forks into side streams, which
take the learners in turn, and joins them. One rule keeps memory safe: what main and another stream
both use is allocated in main, and main releases it, or writes to it, only after the join. What a
side stream allocates, the activations of a learner, only this stream uses.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import perf_counter
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from localavg.interfaces import Array, Book, Engine, unbooked
from localavg.problems.batches import Batches
from localavg.problems.device_feed import DeviceFeed
from localavg.problems.device_jpegs import DeviceJpegFeed
from localavg.problems.engines import memory
from localavg.problems.engines.capture import Replayed
from localavg.problems.engines.masks import Masks
from localavg.problems.rows import Bound

SIDES = 8
"""largest number of side streams

The kernels of more learners rarely run side by side, and every stream keeps the activations of a
learner.
"""

Bind = Callable[[Array, Array, list[Tensor]], Bound]
"""(w [d], g [d], masks) → a module of its own over these rows, whose dropouts use these masks"""


class Graph(Engine):
    """Replays one CUDA graph a step.

    Steps whose batches are not all of the sampler's size are left to `loop`, the engine that takes
    one learner after the other.

    A network with dropout draws nothing in the graph: the masks of each learner are drawn in main
    before the step, from the seed of (learner, update), and the graph reads them (`Masks`). It
    cannot read those of another step, since main draws the next ones after it has joined the side
    streams.
    """

    name = "graph"

    def __init__(
        self,
        bind: Bind,
        masks: Callable[[Array, Tensor], Masks],
        feed: Batches,
        learners: range,
        loop: Engine,
        cuda: ModuleType,
    ) -> None:
        assert isinstance(feed.feed, DeviceFeed | DeviceJpegFeed)
        self.feed, self.images, self.learners = feed, feed.feed, learners
        self.book: Book = unbooked
        self.loop, self.cuda, self._bind = loop, cuda, bind
        L = len(learners)
        self._masks_for = masks
        self._masks: Masks | None = None
        self.masks: list[Tensor] = []  # [L, …] each
        # torch has 32 streams, which it gives in turn: those made one after the other differ
        self.sides = [cuda.Stream() for _ in range(min(L, SIDES))]
        self._replayed = Replayed(self.name, self._step, cuda)
        self._losses = torch.zeros(L, device=feed.feed.batches[0].device)
        # the matrices that the modules below are views of
        self._w: Array | None = None
        self._out: Array | None = None
        self._bounds: list[Bound] = []

    def gradients_(self, w: Array, t: int, out: Array, rows: Sequence[int] | None = None) -> Any:
        """Compute the gradients as `interfaces.Engine` describes.

        Raises UserError where the network's gradient cannot be captured.
        """
        assert rows is None, "choose loop where some learners rest"
        start = perf_counter()
        fits = self.images.ready(t)
        self.book("data", perf_counter() - start)
        if not fits:
            self.loop.book = self.book
            return self.loop.gradients_(w, t, out)
        if self._w is not w or self._out is not out:
            self._begin(w, out)
        self._draw(t)
        with memory.explained(self.name, "`engine = loop`, or a smaller `batch_size`"):
            self._replayed()
        return [self._losses.clone()]  # before another step

    def _begin(self, w: Array, out: Array) -> None:
        """Bind the learners' modules to their rows of w [L, d] and out [L, d]."""
        self._w, self._out = w, out
        self._replayed.begin()
        if self.feed.draws:
            self._masks = self._masks_for(w[0], self.images.batches[0][0])
            self.masks = self._masks.places(len(self.learners))
        self._bounds = [
            self._bind(*rows, [mask[l] for mask in self.masks])
            for l, rows in enumerate(zip(w, out, strict=True))
        ]

    def _draw(self, t: int) -> None:
        """Draw the masks of all learners for update t, in main."""
        if self._masks is not None:
            self._masks.draw_(self.feed.seeds(self.learners, t), self.masks)

    def _step(self) -> None:
        """Queue the work of one step, eagerly or in a capture."""
        forking = self.cuda.current_stream()
        self.images.gather_()
        x, y = self.images.batches  # [L, B, C, H, W], [L, B]
        for side in self.sides:
            side.wait_stream(forking)
        for l, bound in enumerate(self._bounds):
            with self.cuda.stream(self.sides[l % len(self.sides)]):
                self._losses[l].copy_(bound.gradient_(x[l], y[l]))
        for side in self.sides:
            forking.wait_stream(side)
