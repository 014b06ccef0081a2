"""Mini-batches of images that lie in a GPU's memory, for all learners of a rank at once.

A step's batches take one sequence of kernels, whatever the number of learners, and nothing of it
waits for the host: a thread draws row numbers and random changes ahead, and those of many updates
travel in one copy. Written against `torch.cuda` or a stand-in with its names.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from localavg.datasets import Dataset
from localavg.errors import UserError
from localavg.learner.sampling import Sampler
from localavg.problems.ahead import Ahead, Window
from localavg.problems.device_jpegs import DeviceJpegFeed
from localavg.problems.feed import Feed
from localavg.problems.normalise import batches, stacked
from localavg.streams import Stream, generator

WINDOW, WINDOW_BYTES = 256, 4 << 20
"""largest number of updates, and of bytes, whose numbers travel in one copy"""


@contextmanager
def fitting(data: Dataset) -> Iterator[None]:
    """Raise UserError if the GPU has no memory for the images that are copied to it."""
    try:
        yield
    except torch.cuda.OutOfMemoryError as e:
        raise UserError(
            f"`device = cuda`: the images of {data.name}, {data.train.x.nbytes / 1e9:.1f} GB, "
            "do not fit in the GPU's free memory; use fewer ranks per GPU, or `device = cpu`"
        ) from e


class DeviceFeed(Feed):
    """The batches of `Feed`, bit by bit, made on the GPU.

    The numbers of an update are int32 [2, L·B]: the row of an image, and its change as in `Feed`.
    The numbers of a window of updates lie on the GPU, and `_place` there says which update's turn
    it is. `ready` moves both on; `gather_` queues the kernels, which read and write memory that
    never moves, so that a CUDA graph may contain them.

    x [L, B, C, H, W] (channels_last for each learner) and y [L, B]: the batches of all learners,
    valid until the next step and read only.
    """

    def __init__(
        self,
        data: Dataset,
        sampler: Sampler,
        seed: int,
        learners: range,
        T: int,
        device: str,
        augment: bool,
        cuda: ModuleType,
    ) -> None:
        with fitting(data):
            super().__init__(data, sampler, seed, device, augment)
        self.learners, self.T, self.cuda = learners, T, cuda
        self.B = sampler.B
        m = len(learners) * self.B
        self.length = max(1, min(WINDOW, WINDOW_BYTES // (8 * m), T))  # updates in a window
        shape = self.length, 2, m
        self._draws = deepcopy(sampler)  # the thread's own
        self._ahead = Ahead(
            self._fill, (self._pinned(shape), self._pinned(shape)), -(-T // self.length)
        )
        self._window: tuple[int, Window[Tensor]] | None = None  # the one on the GPU, and its number
        self._numbers = torch.zeros(shape, dtype=torch.int32, device=device)
        self._place = torch.zeros(1, dtype=torch.int64, device=device)
        self._stepped: int | None = None  # the update whose batches are in x and y
        self._allocate(len(learners), data.image_shape)

    def _pinned(self, shape: tuple[int, ...]) -> Window[Tensor]:
        pinned = self.device != "cpu"
        return Window(torch.zeros(shape, dtype=torch.int32, pin_memory=pinned), shape[0])

    def _allocate(self, L: int, image: tuple[int, int, int]) -> None:
        """Make the memory of a step's images [H, W, C] and labels, which never moves."""
        (H, W, C), m, p, device = image, L * self.B, self.change.pad, self.device
        self._image = torch.arange(m, device=device)
        self._images = torch.empty((m, H, W, C), dtype=self.x.dtype, device=device)
        self._labels = torch.empty(m, dtype=self.y.dtype, device=device)
        self._padded = torch.zeros(
            (m, H + 2 * p, W + 2 * p, C) if p else (0,), dtype=torch.uint8, device=device
        )  # whose borders stay zero
        self._x_all = batches(L, self.B, image, device)
        self.batches = self._x_all.permute(0, 1, 4, 2, 3), self._labels.view(L, self.B)

    def __call__(self, j: int, t: int) -> tuple[Tensor, Tensor]:
        """Return learner j's mini-batch for update t = 1, 2, …."""
        if j not in self.learners or not self._made(t):
            return super().__call__(j, t)
        x, y = self.batches
        l = self.learners.index(j)
        return x[l], y[l]

    def step(self, learners: range, t: int) -> tuple[Tensor, Tensor]:
        """Return the mini-batches x [L, B, C, H, W], y [L, B] of L of the learners for update t."""
        if not self._made(t):
            return stacked(self(j, t) for j in learners)
        x, y = self.batches
        l = self.learners.index(learners[0])
        return x[l : l + len(learners)], y[l : l + len(learners)]

    def _made(self, t: int) -> bool:
        """Make the batches of update t, if that is not done; return whether it can be done."""
        if t != self._stepped and self.ready(t):
            self.gather_()
            self._stepped = t
        return t == self._stepped

    def ready(self, t: int) -> bool:
        """Let the next `gather_` make the batches of update t.

        Return False if it cannot, since a batch has not the sampler's size B, or t > T.
        """
        self._stepped = None
        k, place = divmod(t - 1, self.length)
        if self._window is None or self._window[0] != k:
            self._window = None
            window = self._ahead.take(k)
            self._numbers.copy_(window.numbers, non_blocking=True)
            copied = self.cuda.Event()
            copied.record(self.cuda.current_stream())
            window.copied, self._window = copied, (k, window)
        self._place.fill_(place)
        return bool(self._window[1].fits[place])

    def gather_(self) -> None:
        """Queue the kernels that make the batches."""
        rows, change = self._numbers.index_select(0, self._place)[0]  # [L·B] each
        torch.index_select(self.y, 0, rows, out=self._labels)
        torch.index_select(self.x, 0, rows, out=self._images)
        if self._ready:
            self._x_all.copy_(self._images.view(self._x_all.shape))
        else:
            x = self._changed_all(change).view(self._x_all.shape)
            self._normalise(x, out=self._x_all)

    def close(self) -> None:
        """End the thread."""
        self._ahead.close()

    def _changed_all(self, change: Tensor) -> Tensor:
        """Return the images [L·B, H, W, C] uint8 that were gathered, each cropped and flipped."""
        x, change = self._images, change.long()
        m, H, W, C = x.shape
        p, places = self.change.pad, 2 * self.change.pad + 1
        if p:
            self._padded[:, p:-p, p:-p] = x
            image, row, column, _ = self._padded.stride()
            windows = self._padded.as_strided(
                (m, places, places, H, W * C), (image, row, column, row, 1)
            )
            place = change >> 1
            x = windows[self._image, place // places, place % places].view(m, H, W, C)
        if self.change.flip:
            x = torch.where((change & 1).bool().view(m, 1, 1, 1), x.flip(2), x)
        return x

    def _fill(self, k: int, window: Window[Tensor]) -> None:
        """Draw the numbers of window k, in the thread."""
        numbers = window.numbers.numpy().reshape(self.length, 2, len(self.learners), self.B)
        first = k * self.length + 1
        for t in range(first, min(first + self.length, self.T + 1)):
            if self._ahead.closed:
                return
            drawn = [
                self._draw(j, t, numbers[t - first, :, l]) for l, j in enumerate(self.learners)
            ]
            window.fits[t - first] = all(drawn)

    def _draw(self, j: int, t: int, out: np.ndarray) -> bool:
        """Write learner j's rows and changes for update t into out [2, B]; return if they fit."""
        batch = self._draws.batch(j, t)
        rows = np.arange(batch.start, batch.stop) if isinstance(batch, slice) else batch
        if len(rows) != self.B:
            return False
        out[0] = rows
        if self.change:
            changes = 2 * (2 * self.change.pad + 1) ** 2
            out[1] = generator(self.seed, j, t, Stream.IMAGES).integers(0, changes, self.B)
        return True


def make_device_feed(
    data: Dataset,
    sampler: Sampler,
    seed: int,
    learners: range,
    T: int,
    device: str,
    augment: bool,
    cuda: ModuleType,
) -> DeviceFeed | DeviceJpegFeed:
    """Make the feed of images or pictures that gives the batches of all learners on the GPU."""
    kind = DeviceJpegFeed if data.kind == "jpeg" else DeviceFeed
    return kind(data, sampler, seed, learners, T, device, augment, cuda)
