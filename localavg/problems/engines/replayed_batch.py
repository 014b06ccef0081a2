"""The engine `batch` on a GPU: its step is one CUDA graph."""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from localavg.interfaces import Array, Engine
from localavg.problems.batches import Batches
from localavg.problems.device_feed import DeviceFeed
from localavg.problems.device_jpegs import DeviceJpegFeed
from localavg.problems.engines.batch import Batch, Net
from localavg.problems.engines.capture import Replayed


class ReplayedBatch(Batch):
    """Replays one CUDA graph a step: the batches of all learners, then the gradients.

    Steps whose batches are not all of
    the sampler's size are left to `loop`. The masks of dropouts are drawn before the step, into
    memory that the graph reads.
    """

    def __init__(
        self,
        net: Net,
        feed: Batches,
        learners: range,
        loop: Engine,
        cuda: ModuleType,
        size: int | None = None,
    ) -> None:
        super().__init__(net, feed, learners, size)
        assert isinstance(feed.feed, DeviceFeed | DeviceJpegFeed)
        self.images, self.loop = feed.feed, loop
        self._replayed = Replayed(self.name, self._step, cuda)
        self._losses = torch.zeros(len(learners), device=self.images.batches[0].device)
        self._drawn_masks: list[list[Tensor]] = []  # of each chunk

    def gradients_(self, w: Array, t: int, out: Array, rows: Sequence[int] | None = None) -> Any:
        """Compute the gradients as `interfaces.Engine` describes."""
        assert rows is None, "choose loop where some learners rest"
        new = self._rows is None or self._rows[0] is not w or self._rows[1] is not out
        if new:
            self._bind(w, t, out)
            self._replayed.begin()
            masks, chunks = self.masks, self._chunks
            self._drawn_masks = [masks.places(len(js)) if masks else [] for js, _ in chunks]
        start = perf_counter()
        fits = self.images.ready(t)
        self.book("data", perf_counter() - start)
        if not fits:
            self.loop.book = self.book
            return self.loop.gradients_(w, t, out)
        self._draw(t)
        with self._explained():
            self._replayed()
        self._works = True
        return [self._losses.clone()]  # before another step

    def _draw(self, t: int) -> None:
        """Draw the masks of all learners for update t into memory that stays."""
        for (learners, _), masks in zip(self._chunks, self._drawn_masks, strict=True):
            if self.masks is not None:
                self.masks.draw_(self.feed.seeds(learners, t), masks)

    def _step(self) -> None:
        """Queue the work of one step in the current stream."""
        self.images.gather_()
        x, y = self.images.batches  # [L, B, C, H, W], [L, B]
        first = 0
        for (learners, together), masks in zip(self._chunks, self._drawn_masks, strict=True):
            rows = slice(first, first + len(learners))
            self._losses[rows].copy_(together.gradient_(x[rows], y[rows], masks))
            first = rows.stop
