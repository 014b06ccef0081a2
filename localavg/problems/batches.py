"""The mini-batches of a network: images, labels and the seed of what the network draws."""

from __future__ import annotations

import torch
from torch import Tensor

from localavg.problems.device_feed import DeviceFeed
from localavg.problems.device_jpegs import DeviceJpegFeed
from localavg.problems.feed import Feed
from localavg.problems.jpeg_feed import JpegFeed
from localavg.streams import Stream, generator

Batch = tuple[Tensor, Tensor, int | None]
"""x [B, C, H, W], y [B], and the seed of what the network draws itself (None: it draws nothing)"""


class Batches:
    """(j, t) → learner j's mini-batch for update t, and `step` for those of several learners.

    draws: whether the network draws numbers, as dropout does; seed: the run's.
    """

    def __init__(
        self, feed: Feed | JpegFeed | DeviceFeed | DeviceJpegFeed, draws: bool, seed: int
    ) -> None:
        self.feed, self.draws, self.seed = feed, draws, seed
        self.B: int = feed.sampler.B

    def __call__(self, j: int, t: int) -> Batch:
        """Return learner j's mini-batch, valid until the next call."""
        return (*self.feed(j, t), self.seed_of(j, t))

    def step(self, learners: range, t: int) -> tuple[Tensor, Tensor, list[int]]:
        """Return x [L, B, C, H, W], y [L, B] and the seeds of learners, valid until the next call.

        There are no seeds where the network draws nothing.
        An image lies in memory with its channels last.
        """
        seeds = self.seeds(learners, t)
        if isinstance(self.feed, Feed | DeviceJpegFeed):
            return *self.feed.step(learners, t), seeds
        x, y = [], []
        for j in learners:
            images, labels = self.feed(j, t)
            x.append(images.permute(0, 2, 3, 1).clone())  # the next call overwrites them
            y.append(labels)
        return torch.stack(x).permute(0, 1, 4, 2, 3), torch.stack(y), seeds

    def seed_of(self, j: int, t: int) -> int | None:
        """Return the seed of what the network draws for learner j's update t; None: it does not."""
        if not self.draws:
            return None
        return int(generator(self.seed, j, t, Stream.NETWORK).integers(2**63))

    def seeds(self, learners: range, t: int) -> list[int]:
        """Return the seeds of learners; none where the network draws nothing."""
        return [seed for j in learners if (seed := self.seed_of(j, t)) is not None]
