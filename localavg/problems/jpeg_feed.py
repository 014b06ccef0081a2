"""Mini-batches of pictures that threads decode while the learners compute."""

from __future__ import annotations

from collections import deque

import numpy as np
import torch
from torch import Tensor

from localavg.datasets import Augment, Dataset
from localavg.datasets.jpegs import NUMBERS, Decoder, Pictures
from localavg.learner.sampling import Sampler
from localavg.problems.normalise import Normalise, moved
from localavg.streams import Stream, generator

AHEAD = 2
"""batches of pictures that are decoded while one is used"""


class JpegFeed:
    """Mini-batches of packed pictures, decoded by threads.

    Calls come in the order t = 1 … T and, for each t, over `learners`, or over those of them that
    were asked for before. Batches are prepared in that order, `ahead` of them in addition to the
    one asked for. Any other call is answered too, and the order continues from there. An error in a
    thread is raised by the call that asks for its batch.

    With `augment` and `data.augment.resized` a picture is a crop of random area and aspect,
    resized, flipped or not (`jpegs.random_crop`); without, it is resized and cut in the centre.
    threads: how many decode (default: the number of cores that may be used, at most 8).
    """

    def __init__(
        self,
        data: Dataset,
        sampler: Sampler,
        seed: int,
        learners: range,
        T: int,
        device: str = "cpu",
        augment: bool = True,
        ahead: int = AHEAD,
        threads: int | None = None,
    ) -> None:
        self.sampler, self.seed, self.learners, self.T = sampler, seed, learners, T
        self.device, self.ahead, self.y = device, ahead, data.train.y
        self.change = data.augment if augment else Augment()
        self._normalise = Normalise(data, device)
        self._decoder = Decoder(data.train.x, data.image_shape, threads)
        # ((j, t), pictures, labels [B])
        self._flight: deque[tuple[tuple[int, int], Pictures, np.ndarray]] = deque()
        self._follows: dict[int, int] = {}  # learner → the one that was asked for after it
        self._asked: int | None = None  # the last learner

    def __call__(self, j: int, t: int) -> tuple[Tensor, Tensor]:
        """Return learner j's mini-batch for update t = 1, 2, …."""
        pictures, y = self._next(j, t)
        x = moved(torch.from_numpy(pictures.result()), self.device)
        return self._normalise(x).permute(0, 3, 1, 2), moved(torch.from_numpy(y), self.device)

    def close(self) -> None:
        """End the threads; pictures that are not decoded yet are dropped."""
        self._cancel()
        self._decoder.close()

    def _next(self, j: int, t: int) -> tuple[Pictures, np.ndarray]:
        """Return the batch of learner j for update t, and begin those that follow."""
        if self._asked is not None:
            self._follows[self._asked] = j
        self._asked = j
        if not self._flight or self._flight[0][0] != (j, t):
            self._cancel()
            self._flight.append(self._begin(j, t))
        pair, pictures, y = self._flight.popleft()
        last = self._flight[-1][0] if self._flight else pair
        while len(self._flight) < self.ahead and (following := self._after(*last)):
            self._flight.append(self._begin(*following))
            last = following
        return pictures, y

    def _after(self, j: int, t: int) -> tuple[int, int] | None:
        """Return the (learner, update) that follows (j, t), None after the last."""
        following = j + 1 if j + 1 in self.learners else self.learners[0]
        following = self._follows.get(j, following)
        if following > j:
            return following, t
        return (following, t + 1) if t < self.T else None

    def _begin(self, j: int, t: int) -> tuple[tuple[int, int], Pictures, np.ndarray]:
        """Start to decode the batch of learner j for update t."""
        batch = self.sampler.batch(j, t)
        rows = np.arange(batch.start, batch.stop) if isinstance(batch, slice) else batch  # [B]
        numbers = None  # [B, NUMBERS]
        if self.change:
            numbers = generator(self.seed, j, t, Stream.IMAGES).random((len(rows), NUMBERS))
        return (j, t), self._decoded(rows, numbers), self.y[rows]

    def _decoded(self, rows: np.ndarray, numbers: np.ndarray | None) -> Pictures:
        """Start to decode the pictures rows [B]; numbers [B, NUMBERS] of their random crops."""
        return self._decoder.begin(rows, numbers)

    def _cancel(self) -> None:
        for _, pictures, _ in self._flight:
            pictures.cancel()
        self._flight.clear()
