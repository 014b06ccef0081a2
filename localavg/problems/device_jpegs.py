"""Mini-batches of decoded pictures on their way to a GPU, which computes meanwhile.

Threads decode into pinned memory, and a stream of its own copies to the GPU, so that a copy has to
wait neither for the host nor for the gradients before it. Written against `torch.cuda` or a
stand-in with its names.

Main is the stream that all other work runs in. Two rules keep memory safe. The side stream writes
to memory on the GPU after main has read what was there (`Slot.used`), and main reads it after the
copy (`Slot.copied`). Threads write to pinned memory after the copy from there is done, for which
the host waits.
"""

from __future__ import annotations

from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from localavg.datasets import Dataset
from localavg.datasets.jpegs import Pictures
from localavg.learner.sampling import Sampler
from localavg.problems.jpeg_feed import JpegFeed
from localavg.problems.normalise import batches, stacked


class Slot:
    """Memory for one batch: x [B, H, W, 3] uint8 and y [B], pinned on the host and on the GPU."""

    def __init__(self, shape: tuple[int, ...], device: str, used: torch.cuda.Event) -> None:
        pinned = device != "cpu"
        self.host_x = torch.empty(shape, dtype=torch.uint8, pin_memory=pinned)
        self.host_y = torch.empty(shape[0], dtype=torch.int64, pin_memory=pinned)
        self.x = torch.empty(shape, dtype=torch.uint8, device=device)
        self.y = torch.empty(shape[0], dtype=torch.int64, device=device)
        self.used = used  # main has read x and y
        self.copied: torch.cuda.Event | None = None  # x and y are on the GPU
        self.pictures: Pictures | None = None  # which are decoded into host_x

    def free(self) -> np.ndarray:
        """Wait until nobody reads or writes the host memory; return that for the pictures."""
        if self.pictures is not None:
            self.pictures.end()
        if self.copied is not None:
            self.copied.synchronize()
        self.pictures = None
        return self.host_x.numpy()


class DeviceJpegFeed(JpegFeed):
    """The batches of `JpegFeed`, bit by bit, on the GPU; `step` gives those of all learners.

    There is memory for the batches of a step and those that are prepared ahead, so that the host
    may begin a step while the GPU computes the one before.
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
        threads: int | None = None,
    ) -> None:
        super().__init__(data, sampler, seed, learners, T, device, augment, threads=threads)
        self.cuda, self.B = cuda, sampler.B
        L, shape = len(learners), (self.B, *data.image_shape)
        self._side = cuda.Stream()
        self._slots = [Slot(shape, device, self._event()) for _ in range(L + self.ahead + 1)]
        self._begun = 0  # batches for which a slot was taken
        self._x = batches(L, self.B, data.image_shape, device)
        self._y = torch.empty((L, self.B), dtype=torch.int64, device=device)
        self.batches = self._x.permute(0, 1, 4, 2, 3), self._y

    def __call__(self, j: int, t: int) -> tuple[Tensor, Tensor]:
        """Return learner j's mini-batch for update t; valid until the learner's next one."""
        if j not in self.learners or not self._fits(j, t):
            return super().__call__(j, t)
        x, y = self.batches
        l = self.learners.index(j)
        self._send(l, *self._next(j, t))
        return x[l], y[l]

    def step(self, learners: range, t: int) -> tuple[Tensor, Tensor]:
        """Return the mini-batches x [L, B, C, H, W], y [L, B] of L of the learners for update t."""
        if not all(self._fits(j, t) for j in learners):
            return stacked(self(j, t) for j in learners)
        l = self.learners.index(learners[0])
        for k, j in enumerate(learners):
            self._send(l + k, *self._next(j, t))
        x, y = self.batches
        return x[l : l + len(learners)], y[l : l + len(learners)]

    def ready(self, t: int) -> bool:
        """Make the batches of update t; return False if one has not the sampler's size B."""
        fits = all(self._fits(j, t) for j in self.learners)
        if fits:
            self.step(self.learners, t)
        return fits

    def gather_(self) -> None:
        """Do nothing: `ready` has queued all."""

    def _fits(self, j: int, t: int) -> bool:
        batch = self.sampler.batch(j, t)
        size = batch.stop - batch.start if isinstance(batch, slice) else len(batch)
        return size == self.B

    def _decoded(self, rows: np.ndarray, numbers: np.ndarray | None) -> Pictures:
        if len(rows) != self.B:
            return super()._decoded(rows, numbers)
        slot = self._slots[self._begun % len(self._slots)]
        self._begun += 1
        slot.pictures = self._decoder.begin(rows, numbers, slot.free())
        return slot.pictures

    def _send(self, l: int, pictures: Pictures, y: np.ndarray) -> None:
        """Queue the copy of a batch, labels y [B], and its normalisation into learner l's place."""
        pictures.result()
        slot = next(s for s in self._slots if s.pictures is pictures)
        slot.host_y.numpy()[:] = y
        with self.cuda.stream(self._side):
            self._side.wait_event(slot.used)
            slot.x.copy_(slot.host_x, non_blocking=True)
            slot.y.copy_(slot.host_y, non_blocking=True)
            slot.copied = self._event()
        self.cuda.current_stream().wait_event(slot.copied)
        self._normalise(slot.x, out=self._x[l])
        self._y[l].copy_(slot.y)
        slot.used = self._event()

    def _event(self) -> torch.cuda.Event:
        """Return the event that the work queued so far in the current stream is done."""
        event = self.cuda.Event()
        event.record(self.cuda.current_stream())
        return event
